#include "engine/text/jinja_unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "engine/text/jinja_case_table.h"

namespace morphserve::jinja {
namespace {

utf8proc_category_t Category(char32_t code) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(code));
}

const SpecialCase* FindSpecial(char32_t code) {
  const auto* found =
      std::lower_bound(std::begin(kSpecialCases), std::end(kSpecialCases), code,
                       [](const SpecialCase& entry, char32_t c) { return entry.code < c; });
  return found != std::end(kSpecialCases) && found->code == code ? found : nullptr;
}

std::string Encode(const char32_t (&codes)[3]) {
  std::string text;
  for (const char32_t code : codes) {
    if (code != 0) AppendUtf8(code, &text);
  }
  return text;
}

std::string Encode(utf8proc_int32_t code) {
  std::string text;
  AppendUtf8(static_cast<char32_t>(code), &text);
  return text;
}

bool IsContinuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// Skipped when looking for the letters around a sigma (Unicode Case_Ignorable, in the main).
bool IsCaseIgnorable(char32_t code) {
  switch (Category(code)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK: return true;
    default:
      return code == '\'' || code == '.' || code == ':' || code == 0xB7 || code == 0x2018 ||
             code == 0x2019 || code == 0x2024 || code == 0x2027;
  }
}

}  // namespace

char32_t NextCodePoint(std::string_view text, size_t* at) {
  const auto byte = [&text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const size_t i = *at;
  const unsigned lead = byte(i);
  const size_t want = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  const size_t length = std::min(want, text.size() - i);
  *at = i + length;
  if (length < want) return 0xFFFD;
  switch (length) {
    case 1: return lead;
    case 2: return ((lead & 0x1Fu) << 6) | (byte(i + 1) & 0x3Fu);
    case 3: return ((lead & 0x0Fu) << 12) | ((byte(i + 1) & 0x3Fu) << 6) | (byte(i + 2) & 0x3Fu);
    default:
      return ((lead & 0x07u) << 18) | ((byte(i + 1) & 0x3Fu) << 12) | ((byte(i + 2) & 0x3Fu) << 6) |
             (byte(i + 3) & 0x3Fu);
  }
}

char32_t PreviousCodePoint(std::string_view text, size_t* end) {
  size_t begin = *end - 1;
  while (begin > 0 && IsContinuation(text[begin])) --begin;
  *end = begin;
  return NextCodePoint(text, &begin);
}

void AppendUtf8(char32_t code, std::string* out) {
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t count = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
  out->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
}

std::optional<size_t> InvalidUtf8At(std::string_view text) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (size_t at = 0; at < text.size();) {
    if (bytes[at] < 0x80) {
      ++at;
      continue;
    }
    utf8proc_int32_t code;
    const utf8proc_ssize_t length =
        utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    if (length <= 0) return at;
    at += static_cast<size_t>(length);
  }
  return std::nullopt;
}

size_t CountCodePoints(std::string_view text) {
  size_t continuations = 0;
  for (const char c : text) continuations += IsContinuation(c) ? 1 : 0;
  return text.size() - continuations;
}

size_t OffsetOfCodePoint(std::string_view text, size_t index) {
  size_t at = 0;
  while (index > 0 && at < text.size()) {
    ++at;
    while (at < text.size() && IsContinuation(text[at])) ++at;
    --index;
  }
  return at;
}

bool IsSpace(char32_t c) {
  if (c < 0x80) return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsPrintable(char32_t code) {
  if (code < 0x7F) return code >= 0x20;
  switch (Category(code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    default: return true;
  }
}

bool IsLineBreak(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool IsIdentifierStart(char32_t c) {
  if (c < 0x80) return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  const utf8proc_category_t category = Category(c);
  return (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) ||
         category == UTF8PROC_CATEGORY_NL;
}

bool IsIdentifierPart(char32_t c) {
  if (c < 0x80) return IsIdentifierStart(c) || (c >= '0' && c <= '9');
  const utf8proc_category_t category = Category(c);
  return IsIdentifierStart(c) || category == UTF8PROC_CATEGORY_MN ||
         category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ND ||
         category == UTF8PROC_CATEGORY_PC;
}

bool IsUpper(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216F) ||
         (c >= 0x24B6 && c <= 0x24CF);
}

bool IsLower(char32_t c) {
  return Category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA ||
         (c >= 0x2170 && c <= 0x217F) || (c >= 0x24D0 && c <= 0x24E9);
}

bool IsCased(char32_t c) { return IsUpper(c) || IsLower(c) || Category(c) == UTF8PROC_CATEGORY_LT; }

std::string ToUpper(char32_t code) {
  if (code < 0x80) {
    return std::string(1, static_cast<char>(code >= 'a' && code <= 'z' ? code - 32 : code));
  }
  if (const SpecialCase* special = FindSpecial(code)) return Encode(special->upper);
  return Encode(utf8proc_toupper(static_cast<utf8proc_int32_t>(code)));
}

std::string ToLower(char32_t code) {
  if (code < 0x80) {
    return std::string(1, static_cast<char>(code >= 'A' && code <= 'Z' ? code + 32 : code));
  }
  if (code == 0x130) return "i\xCC\x87";  // The one code point whose lower case is two.
  return Encode(utf8proc_tolower(static_cast<utf8proc_int32_t>(code)));
}

std::string ToTitle(char32_t code) {
  if (const SpecialCase* special = FindSpecial(code)) return Encode(special->title);
  return Encode(utf8proc_totitle(static_cast<utf8proc_int32_t>(code)));
}

std::string LowerSigma(std::string_view text, size_t offset) {
  bool letter_before = false;
  for (size_t at = offset; at > 0;) {
    const char32_t code = PreviousCodePoint(text, &at);
    if (IsCaseIgnorable(code)) continue;
    letter_before = IsCased(code);
    break;
  }
  bool letter_after = false;
  for (size_t at = offset + 2; at < text.size();) {
    const char32_t code = NextCodePoint(text, &at);
    if (IsCaseIgnorable(code)) continue;
    letter_after = IsCased(code);
    break;
  }
  return letter_before && !letter_after ? "\xCF\x82" : "\xCF\x83";
}

}  // namespace morphserve::jinja
