#include "engine/text/normalizer_unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

#include "engine/base/check.h"
#include "engine/text/normalizer_tables.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

// Nothing from here up decomposes, composes or is reordered: the compatibility ideographs end
// below.
constexpr uint32_t kAffectedEnd = 0x30000;
using CodePoints = std::bitset<kAffectedEnd>;

utf8proc_option_t Options(UnicodeForm form) {
  int options = UTF8PROC_STABLE;
  const bool composed = form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc;
  options |= composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
  if (form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd) options |= UTF8PROC_COMPAT;
  return static_cast<utf8proc_option_t>(options);
}

bool Contains(std::span<const uint32_t> sorted, uint32_t code_point) {
  return std::binary_search(sorted.begin(), sorted.end(), code_point);
}

bool IsSeparator(UnicodeForm form, uint32_t code_point) {
  if (Contains(kUnknownToReference, code_point)) return true;
  const bool compatible = form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
  return compatible && Contains(kUnknownCompatible, code_point);
}

// One bit a code point: it may change, move or take part in a composition.
std::unique_ptr<CodePoints> FindAffected(UnicodeForm form) {
  auto affected = std::make_unique<CodePoints>();
  for (uint32_t c = 0x80; c < kAffectedEnd; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    const utf8proc_property_t* property = utf8proc_get_property(static_cast<int32_t>(c));
    if (property->combining_class != 0 || IsSeparator(form, c)) affected->set(c);
    std::array<utf8proc_int32_t, 32> parts{};
    int last_boundary = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<int32_t>(c), parts.data(), parts.size(),
        static_cast<utf8proc_option_t>(Options(form) | UTF8PROC_DECOMPOSE), &last_boundary);
    MS_CHECK(count >= 1 && count <= static_cast<utf8proc_ssize_t>(parts.size()));
    if (count == 1 && parts[0] == static_cast<int32_t>(c)) continue;
    // A composed form keeps most characters that decompose, yet what follows may join them.
    affected->set(c);
    for (utf8proc_ssize_t i = 1; i < count; ++i) {
      const auto part = static_cast<uint32_t>(parts[static_cast<size_t>(i)]);
      if (part >= 0x80 && part < kAffectedEnd) affected->set(part);
    }
  }
  return affected;
}

const CodePoints& Affected(UnicodeForm form) {
  static const std::array<std::unique_ptr<CodePoints>, 4> sets = {
      FindAffected(UnicodeForm::kNfc), FindAffected(UnicodeForm::kNfd),
      FindAffected(UnicodeForm::kNfkc), FindAffected(UnicodeForm::kNfkd)};
  return *sets[static_cast<size_t>(form)];
}

void AppendPart(UnicodeForm form, std::string_view text, std::string* out) {
  if (text.empty()) return;
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &mapped, Options(form));
  const std::unique_ptr<utf8proc_uint8_t, void (*)(void*)> owned(mapped, std::free);
  MS_CHECK(length >= 0);  // Fails only on bytes that are not UTF-8, and without memory.
  out->append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
}

}  // namespace

bool IsSurelyNormalized(UnicodeForm form, std::string_view text) {
  const CodePoints& affected = Affected(form);
  for (size_t i = 0; i < text.size();) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    size_t length = 0;
    const uint32_t c = DecodeUtf8(text.substr(i), &length);
    if (c < kAffectedEnd && affected.test(c)) return false;
    i += length;
  }
  return true;
}

void AppendNormalized(UnicodeForm form, std::string_view text, std::string* out) {
  const CodePoints& affected = Affected(form);
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    size_t length = 0;
    const uint32_t c = DecodeUtf8(text.substr(i), &length);
    if (c >= 0x80 && c < kAffectedEnd && affected.test(c) && IsSeparator(form, c)) {
      AppendPart(form, text.substr(begin, i - begin), out);
      out->append(text.substr(i, length));
      begin = i + length;
    }
    i += length;
  }
  AppendPart(form, text.substr(begin), out);
}

}  // namespace morphserve
