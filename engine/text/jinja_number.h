// Numbers as Python reads and writes them. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace morphserve::jinja {

// repr(float): shortest digits that read back, exponent form below 1e-4 and from 1e16.
std::string FormatFloat(double value);

// format(value, '.<precision>f') and the like: conversion is one of f, e, g.
std::string FormatFixed(double value, int precision, char conversion);

// int(text, base). None when Python raises ValueError or the number needs more than 64 bits
// (`*too_large` tells).
std::optional<int64_t> ParseInt(std::string_view text, int base, bool* too_large);

// float(text). None when Python raises ValueError.
std::optional<double> ParseFloat(std::string_view text);

}  // namespace morphserve::jinja
