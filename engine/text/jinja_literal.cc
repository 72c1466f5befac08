#include "engine/text/jinja_literal.h"

#include <cstdint>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {

int DigitValue(char c) {
  if (IsDigit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 99;
}

size_t SkipDigits(std::string_view text, size_t at) {
  const auto digit = [&text](size_t i) { return i < text.size() && IsDigit(text[i]); };
  if (!digit(at)) return at;
  while (digit(at) || (at < text.size() && text[at] == '_' && digit(at + 1))) ++at;
  return at;
}

namespace {

// \xhh, \uhhhh, \Uhhhhhhhh and octal: the code point, and how many bytes of `text` it takes.
std::optional<char32_t> NumericEscape(std::string_view text, size_t* length) {
  const char kind = text[0];
  size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
  uint32_t code = 0;
  if (digits == 0) {
    size_t i = 0;
    for (; i < 3 && i < text.size() && text[i] >= '0' && text[i] <= '7'; ++i) {
      code = code * 8 + static_cast<uint32_t>(text[i] - '0');
    }
    *length = i;
  } else {
    if (text.size() <= digits) return std::nullopt;
    for (size_t i = 1; i <= digits; ++i) {
      const int value = DigitValue(text[i]);
      if (value > 15) return std::nullopt;
      code = code * 16 + static_cast<uint32_t>(value);
    }
    *length = digits + 1;
  }
  if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return std::nullopt;
  return code;
}

}  // namespace

std::optional<std::string> Unescape(std::string_view text) {
  static constexpr std::string_view kFrom = "\\'\"abfnrtv";
  static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (text[i] != '\\') {
      out += text[i++];
      continue;
    }
    if (++i >= text.size()) return std::nullopt;
    const char c = text[i];
    if (const size_t simple = kFrom.find(c); simple != std::string_view::npos) {
      out += kTo[simple];
      ++i;
    } else if (c == '\n') {
      ++i;
    } else if (c == 'x' || c == 'u' || c == 'U' || (c >= '0' && c <= '7')) {
      size_t length = 0;
      const std::optional<char32_t> code = NumericEscape(text.substr(i), &length);
      if (!code) return std::nullopt;
      AppendUtf8(*code, &out);
      i += length;
    } else if (c == 'N') {
      return std::nullopt;  // Names of characters: no table, so refused.
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      // The reference first turns the character into an escape of its own, whose backslash then
      // pairs with the one before: the escape's text is what remains.
      const char32_t code = NextCodePoint(text, &i);
      out += code <= 0xFF     ? absl::StrFormat("\\x%02x", static_cast<uint32_t>(code))
             : code <= 0xFFFF ? absl::StrFormat("\\u%04x", static_cast<uint32_t>(code))
                              : absl::StrFormat("\\U%08x", static_cast<uint32_t>(code));
    } else {
      out += '\\';
      out += c;
      ++i;
    }
  }
  return out;
}

}  // namespace morphserve::jinja
