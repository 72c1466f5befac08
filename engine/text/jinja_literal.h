// The insides of literals in template source. Pure functions, any thread.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace morphserve::jinja {

inline bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// The value of a hexadecimal digit; 99 for what is none.
int DigitValue(char c);

// Skips digits with single underscores between them: the offset behind them, or `at` when there are
// none.
size_t SkipDigits(std::string_view text, size_t at);

// Python's unicode-escape decoding. None for what Python refuses, and for lone surrogates.
std::optional<std::string> Unescape(std::string_view text);

}  // namespace morphserve::jinja
