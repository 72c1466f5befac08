#include "engine/text/jinja_number.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <system_error>

#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

std::string_view StripSpace(std::string_view text) {
  while (!text.empty()) {
    size_t next = 0;
    if (!IsSpace(NextCodePoint(text, &next))) break;
    text.remove_prefix(next);
  }
  while (!text.empty()) {
    size_t end = text.size();
    if (!IsSpace(PreviousCodePoint(text, &end))) break;
    text = text.substr(0, end);
  }
  return text;
}

int DigitOf(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'z') return c - 'a' + 10;
  if (c >= 'A' && c <= 'Z') return c - 'A' + 10;
  return 99;
}

// Drops underscores that stand between digits; none when one stands elsewhere.
std::optional<std::string> DropUnderscores(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
      continue;
    }
    if (i == 0 || i + 1 == text.size() || DigitOf(text[i - 1]) > 9 || DigitOf(text[i + 1]) > 9) {
      return std::nullopt;
    }
  }
  return out;
}

bool EqualsIgnoringCase(std::string_view text, std::string_view lower) {
  if (text.size() != lower.size()) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i] >= 'A' && text[i] <= 'Z' ? static_cast<char>(text[i] + 32) : text[i];
    if (c != lower[i]) return false;
  }
  return true;
}

}  // namespace

std::string FormatFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  if (value == 0) return std::signbit(value) ? "-0.0" : "0.0";
  char buffer[40];
  const auto [end, error] =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  static_cast<void>(error);  // 40 bytes hold every double.
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  std::string out;
  if (text[0] == '-') {
    out = "-";
    text.remove_prefix(1);
  }
  const size_t e = text.find('e');
  int exponent = 0;
  const std::string_view exponent_text = text.substr(text[e + 1] == '+' ? e + 2 : e + 1);
  std::from_chars(exponent_text.data(), exponent_text.data() + exponent_text.size(), exponent);
  std::string digits(1, text[0]);
  if (e > 2) digits += text.substr(2, e - 2);
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (count > 1) out += "." + digits.substr(1);
    out += exponent < 0 ? "e-" : "e+";
    const std::string magnitude = std::to_string(std::abs(exponent));
    return out + (magnitude.size() < 2 ? "0" : "") + magnitude;
  }
  if (exponent < 0) {
    return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  }
  if (exponent + 1 >= count) {
    return out + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  }
  const size_t point = static_cast<size_t>(exponent) + 1;
  return out + digits.substr(0, point) + "." + digits.substr(point);
}

std::string FormatFixed(double value, int precision, char conversion) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  const std::chars_format form = conversion == 'f'   ? std::chars_format::fixed
                                 : conversion == 'e' ? std::chars_format::scientific
                                                     : std::chars_format::general;
  std::string buffer(static_cast<size_t>(precision) + 350, '\0');
  const auto [end, error] =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, form, precision);
  static_cast<void>(error);  // The largest double has 309 digits before the point.
  buffer.resize(static_cast<size_t>(end - buffer.data()));
  return buffer;
}

std::optional<int64_t> ParseInt(std::string_view text, int base, bool* too_large) {
  *too_large = false;
  text = StripSpace(text);
  bool negative = false;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  bool after_prefix = false;
  if (text.size() > 2 && text[0] == '0' && (base == 2 || base == 8 || base == 16 || base == 0)) {
    const char mark = static_cast<char>(text[1] | 0x20);
    const int prefixed = mark == 'b' ? 2 : mark == 'o' ? 8 : mark == 'x' ? 16 : 0;
    if (prefixed != 0 && (base == 0 || base == prefixed)) {
      base = prefixed;
      text.remove_prefix(2);
      after_prefix = true;
    }
  }
  if (base == 0) {
    base = 10;
    if (text.size() > 1 && text[0] == '0' && text.find_first_not_of("0_") != text.npos) {
      return std::nullopt;
    }
  }
  if (text.empty()) return std::nullopt;
  int64_t value = 0;
  bool digit_before = after_prefix;  // 0x_1 is a number, _1 is not.
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_') {
      if (!digit_before || i + 1 == text.size()) return std::nullopt;
      digit_before = false;
      continue;
    }
    const int digit = DigitOf(text[i]);
    if (digit >= base) return std::nullopt;
    digit_before = true;
    if (__builtin_mul_overflow(value, int64_t{base}, &value) ||
        __builtin_sub_overflow(value, int64_t{digit}, &value)) {
      *too_large = true;  // Keep on: a wrong character further on is the stronger reason.
      value = 0;
    }
  }
  if (*too_large) return std::nullopt;
  if (negative) return value;
  if (value == std::numeric_limits<int64_t>::min()) {
    *too_large = true;
    return std::nullopt;
  }
  return -value;
}

std::optional<double> ParseFloat(std::string_view text) {
  text = StripSpace(text);
  bool negative = false;
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  const double sign = negative ? -1.0 : 1.0;
  if (EqualsIgnoringCase(text, "inf") || EqualsIgnoringCase(text, "infinity")) {
    return sign * std::numeric_limits<double>::infinity();
  }
  if (EqualsIgnoringCase(text, "nan")) return std::numeric_limits<double>::quiet_NaN();
  const std::optional<std::string> digits = DropUnderscores(text);
  // from_chars would take a second sign or a name here.
  if (!digits || digits->empty() || !(DigitOf(digits->front()) < 10 || digits->front() == '.')) {
    return std::nullopt;
  }
  double value = 0;
  const char* const last = digits->data() + digits->size();
  const auto [end, error] = std::from_chars(digits->data(), last, value);
  if (end != last) return std::nullopt;
  if (error == std::errc::result_out_of_range) {
    const bool small = digits->find("e-") != std::string::npos ||
                       digits->find("E-") != std::string::npos || digits->front() == '0' ||
                       digits->front() == '.';
    value = small ? 0 : std::numeric_limits<double>::infinity();
  } else if (error != std::errc()) {
    return std::nullopt;
  }
  return sign * value;
}

}  // namespace morphserve::jinja
