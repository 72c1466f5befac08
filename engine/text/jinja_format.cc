#include "engine/text/jinja_format.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_number.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_print.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

constexpr int64_t kWidthMax = 10'000;

// How a converted value is laid out.
struct Layout {
  char align = 0;  // < > ^ =, 0: the default of the type.
  std::string fill = " ";
  bool plus = false;
  bool space = false;
  bool alternate = false;
  bool grouped = false;
  int64_t width = 0;
  std::optional<int64_t> precision;
  char conversion = 0;  // 0: none given.
};

void AppendPadded(Runtime& rt, const Str& text, const Layout& layout, char default_align,
                  TextBuilder* out) {
  const int64_t length = static_cast<int64_t>(CountCodePoints(text.view()));
  const int64_t padding = std::max<int64_t>(layout.width - length, 0);
  const char align = layout.align != 0 ? layout.align : default_align;
  const int64_t left = align == '>' ? padding : align == '^' ? padding / 2 : 0;
  // `=` puts the padding between sign and digits.
  const bool behind_sign = align == '=';
  const bool has_sign = text.size > 0 && (text.data[0] == '-' || text.data[0] == '+' ||
                                          (text.data[0] == ' ' && behind_sign));
  const uint32_t sign = behind_sign && has_sign ? 1 : 0;
  out->AppendSlice(text, 0, sign);
  const int64_t before = behind_sign ? padding : left;
  for (int64_t i = 0; i < before && !rt.failed(); ++i) out->Append(layout.fill, true);
  out->AppendSlice(text, sign, text.size);
  for (int64_t i = before; i < padding && !rt.failed(); ++i) out->Append(layout.fill, true);
}

// Thousands separators for the digits before the point.
std::string Group(std::string digits) {
  size_t end = digits.find_first_not_of("0123456789");
  if (end == std::string::npos) end = digits.size();
  for (size_t at = end; at > 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

std::string WithSign(std::string_view number, const Layout& layout) {
  const bool negative = number.starts_with('-');
  if (negative) number.remove_prefix(1);
  std::string text = negative ? "-" : layout.plus ? "+" : layout.space ? " " : "";
  text += layout.grouped ? Group(std::string(number)) : std::string(number);
  return text;
}

std::string IntegerDigits(int64_t value, char conversion) {
  const uint64_t magnitude =
      value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  const std::string digits = conversion == 'x'   ? absl::StrFormat("%x", magnitude)
                             : conversion == 'X' ? absl::StrFormat("%X", magnitude)
                             : conversion == 'o' ? absl::StrFormat("%o", magnitude)
                                                 : absl::StrFormat("%d", magnitude);
  return value < 0 ? absl::StrFormat("-%s", digits) : digits;
}

void AppendNumber(Runtime& rt, std::string_view number, const Layout& layout, TextBuilder* out) {
  const std::string text = WithSign(number, layout);
  Str str;
  str.data = text.data();
  str.size = static_cast<uint32_t>(text.size());
  str.trusted = true;
  AppendPadded(rt, str, layout, '>', out);
}

// One conversion that both languages share. False (failed) for what does not fit together.
bool AppendConverted(Runtime& rt, const Value& value, const Layout& layout, TextBuilder* out) {
  switch (layout.conversion) {
    case 'd':
    case 'x':
    case 'X':
    case 'o':
      if (layout.precision || layout.alternate) break;
      if (!value.is_integral()) {
        return rt.Fail(absl::StrFormat("format %c wants an integer, got '%s'", layout.conversion,
                                       TypeName(value)));
      }
      AppendNumber(rt, IntegerDigits(value.integer(), layout.conversion), layout, out);
      return !rt.failed();
    case 'f':
    case 'F':
    case 'e': {
      if (layout.alternate) break;
      if (!value.is_number()) {
        return rt.Fail(absl::StrFormat("format %c wants a number, got '%s'", layout.conversion,
                                       TypeName(value)));
      }
      const int precision = static_cast<int>(layout.precision.value_or(6));
      const char form = layout.conversion == 'e' ? 'e' : 'f';
      AppendNumber(rt, FormatFixed(value.number(), precision, form), layout, out);
      return !rt.failed();
    }
    case 's': {
      Value text;
      if (!ToText(rt, value, &text)) return false;
      Str str = text.str();
      if (layout.precision) {
        const size_t end = OffsetOfCodePoint(str.view(), static_cast<size_t>(*layout.precision));
        if (!Substr(rt, str, 0, end, &text)) return false;
        str = text.str();
      }
      AppendPadded(rt, str, layout, '<', out);
      return !rt.failed();
    }
    default: break;
  }
  return rt.Fail(absl::StrFormat("format conversion '%c' is not supported", layout.conversion));
}

// Reads digits at `*at` into `*value`; false (failed) past the width limit.
bool ReadNumber(Runtime& rt, std::string_view text, size_t* at, int64_t* value) {
  *value = 0;
  while (*at < text.size() && text[*at] >= '0' && text[*at] <= '9') {
    *value = *value * 10 + (text[(*at)++] - '0');
    if (*value > kWidthMax) {
      return rt.Fail(absl::StrFormat("format width or precision over %d", kWidthMax));
    }
  }
  return true;
}

// ---- '%s' % x

class PercentFormatter {
 public:
  PercentFormatter(Runtime& rt, const Str& format, const Value& argument)
      : rt_(rt), format_(format), argument_(argument), out_(rt) {
    arguments_ =
        argument.is(Kind::kTuple) ? argument.list().span() : std::span<const Value>(&argument_, 1);
  }

  bool Run(Value* out) {
    const std::string_view text = format_.view();
    size_t plain = 0;
    for (size_t at = text.find('%'); at != std::string_view::npos; at = text.find('%', at)) {
      out_.AppendSlice(format_, static_cast<uint32_t>(plain), static_cast<uint32_t>(at));
      ++at;
      if (!rt_.Charge() || !Convert(text, &at)) return false;
      plain = at;
    }
    out_.AppendSlice(format_, static_cast<uint32_t>(plain), format_.size);
    // A mapping may be used by name, and need not be used up.
    const bool leftover =
        next_ < arguments_.size() && !argument_.is(Kind::kDict) && !argument_.is(Kind::kList);
    if (leftover) return rt_.Fail("not all arguments converted during string formatting");
    return out_.Finish(out);
  }

 private:
  bool Convert(std::string_view text, size_t* at) {
    Layout layout;
    Value value;
    bool by_name = false;
    if (*at < text.size() && text[*at] == '(') {
      const size_t close = text.find(')', *at);
      if (close == std::string_view::npos) return rt_.Fail("incomplete format key");
      if (!argument_.is(Kind::kDict)) return rt_.Fail("format requires a mapping");
      const Value* found = argument_.dict().FindText(text.substr(*at + 1, close - *at - 1));
      if (found == nullptr) return rt_.Fail("format key is missing in the mapping");
      value = *found;
      by_name = true;
      *at = close + 1;
    }
    bool left = false;
    bool zero = false;
    for (; *at < text.size(); ++*at) {
      const char flag = text[*at];
      if (flag == '-') {
        left = true;
      } else if (flag == '0') {
        zero = true;
      } else if (flag == '+') {
        layout.plus = true;
      } else if (flag == ' ') {
        layout.space = true;
      } else {
        break;
      }
    }
    if (!ReadNumber(rt_, text, at, &layout.width)) return false;
    if (*at < text.size() && text[*at] == '.') {
      int64_t precision = 0;
      ++*at;
      if (!ReadNumber(rt_, text, at, &precision)) return false;
      layout.precision = precision;
    }
    if (*at >= text.size()) return rt_.Fail("incomplete format");
    layout.conversion = text[(*at)++];
    if (layout.conversion == '%') {
      out_.Append("%", true);
      return true;
    }
    if (!by_name) {
      if (next_ >= arguments_.size()) return rt_.Fail("not enough arguments for format string");
      value = arguments_[next_++];
    }
    return Layin(value, layout, left, zero);
  }

  // The percent language's own defaults: right aligned, floats cut to integers by %d, %r.
  bool Layin(Value value, Layout layout, bool left, bool zero) {
    const char conversion = layout.conversion;
    const bool text = conversion == 's' || conversion == 'r';
    layout.align = left ? '<' : (zero && !text) ? '=' : '>';
    if (layout.align == '=') layout.fill = "0";
    if (conversion == 'r') {
      TextBuilder repr(rt_);
      AppendRepr(rt_, value, &repr);
      if (!repr.Finish(&value)) return false;
      layout.conversion = 's';
    } else if (conversion == 'd' || conversion == 'i' || conversion == 'u') {
      layout.conversion = 'd';
      if (value.is(Kind::kFloat)) {
        const double whole = std::trunc(value.number());
        if (!(whole >= -0x1p63 && whole < 0x1p63)) {
          return rt_.Fail("integer does not fit in 64 bits");
        }
        value = Value::Int(static_cast<int64_t>(whole));
      }
    }
    return AppendConverted(rt_, value, layout, &out_);
  }

  Runtime& rt_;
  const Str& format_;
  const Value argument_;
  std::span<const Value> arguments_;
  size_t next_ = 0;
  TextBuilder out_;
};

// ---- '{}'.format(x)

class BraceFormatter {
 public:
  BraceFormatter(Runtime& rt, const Str& format, const Args& args)
      : rt_(rt), format_(format), args_(args), out_(rt) {}

  bool Run(Value* out) {
    const std::string_view text = format_.view();
    size_t plain = 0;
    for (size_t at = text.find_first_of("{}"); at != std::string_view::npos;
         at = text.find_first_of("{}", at)) {
      out_.AppendSlice(format_, static_cast<uint32_t>(plain), static_cast<uint32_t>(at));
      if (!rt_.Charge()) return false;
      if (at + 1 < text.size() && text[at + 1] == text[at]) {
        out_.AppendSlice(format_, static_cast<uint32_t>(at), static_cast<uint32_t>(at + 1));
        at += 2;
      } else {
        if (text[at] == '}') return rt_.Fail("single '}' in format string");
        const size_t close = text.find_first_of("{}", at + 1);
        if (close == std::string_view::npos) return rt_.Fail("expected '}' in format string");
        if (text[close] == '{') return rt_.Fail("nested format fields are not supported");
        if (!Field(text.substr(at + 1, close - at - 1))) return false;
        at = close + 1;
      }
      plain = at;
    }
    out_.AppendSlice(format_, static_cast<uint32_t>(plain), format_.size);
    return out_.Finish(out);
  }

 private:
  bool Field(std::string_view field) {
    std::string_view spec;
    if (const size_t colon = field.find(':'); colon != std::string_view::npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    char conversion = 0;
    if (const size_t mark = field.find('!'); mark != std::string_view::npos) {
      if (mark + 2 != field.size()) return rt_.Fail("bad conversion in format string");
      conversion = field[mark + 1];
      field = field.substr(0, mark);
    }
    Value value;
    if (!Argument(field, &value)) return false;
    if (conversion == 'r' || conversion == 's') {
      TextBuilder text(rt_);
      if (conversion == 'r') {
        AppendRepr(rt_, value, &text);
      } else {
        AppendText(rt_, value, &text);
      }
      if (!text.Finish(&value)) return false;
    } else if (conversion != 0) {
      return rt_.Fail("bad conversion in format string");
    }
    return Lay(value, spec);
  }

  bool Argument(std::string_view name, Value* out) {
    if (name.find_first_of(".[") != std::string_view::npos) {
      return rt_.Fail("attributes in format fields are not supported");
    }
    const bool digits = name.find_first_not_of("0123456789") == std::string_view::npos;
    if (digits) {
      int64_t index = next_;
      size_t at = 0;
      if (!name.empty() && !ReadNumber(rt_, name, &at, &index)) return false;
      // Automatic and explicit numbering do not mix.
      const int style = name.empty() ? 1 : 2;
      if (numbering_ != 0 && numbering_ != style) {
        return rt_.Fail("format mixes automatic and manual field numbers");
      }
      numbering_ = style;
      if (name.empty()) ++next_;
      if (index >= static_cast<int64_t>(args_.positional.size())) {
        return rt_.Fail("format has more fields than arguments");
      }
      *out = args_.positional[static_cast<size_t>(index)];
      return true;
    }
    for (const NamedValue& argument : args_.named) {
      if (argument.name != name) continue;
      *out = argument.value;
      return true;
    }
    return rt_.Fail("format names an argument that is not given");
  }

  bool Lay(const Value& value, std::string_view spec) {
    if (spec.empty()) {
      AppendText(rt_, value, &out_);
      return !rt_.failed();
    }
    Layout layout;
    if (!ReadSpec(spec, &layout)) return false;
    if (value.is_number() && !value.is(Kind::kBool) && layout.conversion == 's') {
      return rt_.Fail("format 's' does not fit a number");
    }
    if (layout.conversion == 0) {
      if (value.is_string()) {
        layout.conversion = 's';
      } else if (value.is(Kind::kInt)) {
        layout.conversion = 'd';
      } else if (value.is(Kind::kFloat) && !layout.precision && !layout.grouped) {
        AppendNumber(rt_, FormatFloat(value.number()), layout, &out_);
        return !rt_.failed();
      } else {
        return rt_.Fail(
            absl::StrFormat("format of '%s' with this layout is not supported", TypeName(value)));
      }
    }
    return AppendConverted(rt_, value, layout, &out_);
  }

  // [[fill]align][sign][0][width][,][.precision][type]
  bool ReadSpec(std::string_view spec, Layout* layout) {
    constexpr std::string_view kAligns = "<>^=";
    size_t at = 0;
    size_t fill_end = 0;
    NextCodePoint(spec, &fill_end);
    if (fill_end < spec.size() && kAligns.find(spec[fill_end]) != std::string_view::npos) {
      layout->fill = spec.substr(0, fill_end);
      layout->align = spec[fill_end];
      at = fill_end + 1;
    } else if (kAligns.find(spec[0]) != std::string_view::npos) {
      layout->align = spec[0];
      at = 1;
    }
    const auto take = [&](char c) {
      const bool there = at < spec.size() && spec[at] == c;
      at += there ? 1 : 0;
      return there;
    };
    layout->plus = take('+');
    layout->space = take(' ');
    take('-');
    if (take('0') && layout->align == 0) {
      layout->align = '=';
      layout->fill = "0";
    }
    if (!ReadNumber(rt_, spec, &at, &layout->width)) return false;
    layout->grouped = take(',');
    if (take('.')) {
      int64_t precision = 0;
      if (!ReadNumber(rt_, spec, &at, &precision)) return false;
      layout->precision = precision;
    }
    if (at < spec.size()) layout->conversion = spec[at++];
    return at == spec.size() || rt_.Fail("format layout is not supported");
  }

  Runtime& rt_;
  const Str& format_;
  const Args& args_;
  TextBuilder out_;
  int64_t next_ = 0;
  int numbering_ = 0;  // 1: automatic, 2: explicit.
};

}  // namespace

bool FormatPercent(Runtime& rt, const Str& format, const Value& argument, Value* out) {
  if (format.markup) return rt.Fail("% of a safe string is not supported");
  return PercentFormatter(rt, format, argument).Run(out);
}

bool FormatBraces(Runtime& rt, const Str& format, const Args& args, Value* out) {
  return BraceFormatter(rt, format, args).Run(out);
}

}  // namespace morphserve::jinja
