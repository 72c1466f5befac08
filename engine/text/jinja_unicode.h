// The character properties that Python's str methods use: white space, printable, letters, case.
// Pure functions, any thread. Tables: utf8proc, plus the special casings it lacks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace morphserve::jinja {

// One code point at `*at`, which moves behind it. The text is valid UTF-8 and `*at` in range.
char32_t NextCodePoint(std::string_view text, size_t* at);
// The code point that ends at `*end`, which moves to its start. `*end` > 0.
char32_t PreviousCodePoint(std::string_view text, size_t* end);
void AppendUtf8(char32_t code, std::string* out);
// Offset of the first byte that is not valid UTF-8; none when all is.
std::optional<size_t> InvalidUtf8At(std::string_view text);

size_t CountCodePoints(std::string_view text);
// Byte offset of code point `index`; text.size() when there are not as many.
size_t OffsetOfCodePoint(std::string_view text, size_t index);

bool IsSpace(char32_t code);      // str.isspace
bool IsPrintable(char32_t code);  // str.isprintable: repr() escapes the others.
bool IsLineBreak(char32_t code);  // str.splitlines
bool IsIdentifierStart(char32_t code);
bool IsIdentifierPart(char32_t code);
bool IsCased(char32_t code);
bool IsUpper(char32_t code);
bool IsLower(char32_t code);

// Case mappings of one code point, with the full (one to many) forms.
std::string ToUpper(char32_t code);
std::string ToLower(char32_t code);  // Without the final-sigma rule; see LowerSigma.
std::string ToTitle(char32_t code);
// What a capital sigma at `offset` becomes: ς at the end of a word, else σ.
std::string LowerSigma(std::string_view text, size_t offset);

}  // namespace morphserve::jinja
