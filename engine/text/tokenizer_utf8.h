// UTF-8 and the few character classes the tokenizer's rules name. Thread rule: pure functions.
// Source: The Unicode Standard 3.9, table 3-7 (well-formed byte sequences); maximal subparts as in
// U+FFFD substitution of the same section.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace morphserve {

// U+FFFD in UTF-8.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// What the bytes at the front of a text are.
struct Utf8Step {
  enum class Kind {
    kCharacter,   // A whole character.
    kInvalid,     // A maximal subpart of an ill-formed sequence: stands for one U+FFFD.
    kIncomplete,  // The text ends inside what may still become a character.
  };
  Kind kind = Kind::kInvalid;
  size_t length = 0;  // Bytes it covers, at least 1.
};

// `text` is not empty.
Utf8Step ClassifyUtf8(std::string_view text);

// The offset of the first byte that is not part of well-formed UTF-8; npos when all of it is.
size_t FindInvalidUtf8(std::string_view text);

// The character at the front of a well-formed, non-empty text; stores its bytes in *length.
uint32_t DecodeUtf8(std::string_view text, size_t* length);

// Bytes of the character that starts with `lead`, of well-formed text.
inline size_t Utf8Length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

void AppendUtf8(uint32_t code_point, std::string* out);

// The start of the last character of a well-formed, non-empty text.
size_t LastCharacterStart(std::string_view text);

// White_Space of Unicode (25 code points).
bool IsWhiteSpace(uint32_t code_point);
// General category N (Nd, Nl, No).
bool IsNumeric(uint32_t code_point);
// \w: alphabetic, marks, decimal digits, connector punctuation, join controls.
bool IsWordCharacter(uint32_t code_point);

// Bytes of white space at the front and at the back of a well-formed text.
size_t LeadingWhiteSpace(std::string_view text);
size_t TrailingWhiteSpace(std::string_view text);

}  // namespace morphserve
