// Filters on text and numbers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_methods.h"
#include "engine/text/jinja_number.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_print.h"
#include "engine/text/jinja_unicode.h"
#include "engine/text/json_printer.h"

namespace morphserve::jinja {
namespace {

bool Default(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "default", args, {"default_value", "boolean"})) return false;
  if (!input.is_undefined() && !(bound.Truth(1) && !Truthy(input))) {
    *out = input;
    return true;
  }
  if (bound[0] == nullptr) return rt.MakeText("", true, out);
  *out = *bound[0];
  return true;
}

template <CaseForm kForm>
bool Case(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Value text;
  return bound.Bind(rt, "case filter", args, {}) && ToText(rt, input, &text) &&
         ChangeCase(rt, text.str(), kForm, out);
}

// Unlike str.title: a word begins behind white space, a hyphen or an opening bracket.
bool Title(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Value value;
  if (!bound.Bind(rt, "title", args, {}) || !ToText(rt, input, &value)) return false;
  const Str& text = value.str();
  TextBuilder builder(rt);
  bool word_begins = true;
  for (size_t at = 0; at < text.size && !rt.failed();) {
    const size_t begin = at;
    const char32_t code = NextCodePoint(text.view(), &at);
    const bool separator =
        IsSpace(code) || code == '-' || code == '(' || code == '{' || code == '[' || code == '<';
    builder.AppendFor(word_begins && !separator ? ToUpper(code) : ToLower(code), text,
                      static_cast<uint32_t>(begin));
    word_begins = separator;
  }
  return builder.Finish(out);
}

bool Trim(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Value text;
  if (!bound.Bind(rt, "trim", args, {"chars"}) || !ToText(rt, input, &text)) return false;
  const bool given = bound[0] != nullptr && !bound[0]->is(Kind::kNone);
  if (given && !WantString(rt, "trim", *bound[0])) return false;
  return Strip(rt, text.str(), given ? &bound[0]->str() : nullptr, true, true, out);
}

bool String(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  return bound.Bind(rt, "string", args, {}) && ToText(rt, input, out);
}

bool Safe(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Value text;
  if (!bound.Bind(rt, "safe", args, {}) || !ToText(rt, input, &text)) return false;
  Str str = text.str();
  str.markup = true;
  return rt.MakeStr(str, out);
}

bool Escape(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Value text;
  if (!bound.Bind(rt, "escape", args, {}) || !ToText(rt, input, &text)) return false;
  if (!text.str().markup) return EscapeHtml(rt, text.str(), out);
  *out = text;
  return true;
}

bool ReplaceFilter(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Value text;
  Value from;
  Value to;
  int64_t count = -1;
  if (!bound.Bind(rt, "replace", args, {"old", "new", "count"}, 2)) return false;
  if (!ToText(rt, input, &text) || !ToText(rt, *bound[0], &from) || !ToText(rt, *bound[1], &to)) {
    return false;
  }
  if (bound[2] != nullptr && !bound[2]->is(Kind::kNone) &&
      !WantInt(rt, "replace", *bound[2], &count)) {
    return false;
  }
  return Replace(rt, text.str(), from.str(), to.str(), count, false, out);
}

bool IndentLines(Runtime& rt, const Str& text, const Str& indent, bool first, bool blank,
                 Value* out) {
  std::vector<Value> lines;
  Value extended;
  Str newline;
  newline.data = "\n";
  newline.size = 1;
  newline.trusted = true;
  // One line break more, so that text that ends in one keeps it.
  if (!Concat(rt, text, newline, false, &extended) ||
      !SplitLines(rt, extended.str(), false, &lines)) {
    return false;
  }
  TextBuilder builder(rt);
  for (size_t i = 0; i < lines.size() && !rt.failed(); ++i) {
    if (i > 0) builder.Append(newline);
    if (i == 0 ? first : (blank || lines[i].str().size > 0)) builder.Append(indent);
    builder.Append(lines[i].str());
  }
  return builder.Finish(out, text.markup);
}

bool Indent(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "indent", args, {"width", "first", "blank"})) return false;
  if (input.is_undefined()) return rt.FailUndefined(input);
  if (!WantString(rt, "indent", input)) return false;
  Value width = bound[0] == nullptr ? Value::Int(4) : *bound[0];
  if (!width.is_string()) {
    int64_t spaces = 0;
    Value space;
    if (!WantInt(rt, "indent", width, &spaces) || !rt.MakeText(" ", true, &space) ||
        !Operate(rt, BinaryOp::kMul, space, Value::Int(spaces), &width)) {
      return false;
    }
  }
  return IndentLines(rt, input.str(), width.str(), bound.Truth(1), bound.Truth(2), out);
}

// json.dumps takes an indent as a number of spaces or as text, and separators as a pair.
bool ReadJsonStyle(Runtime& rt, const BoundArgs& bound, JsonStyle* style) {
  style->ensure_ascii = bound.Truth(0);
  style->sort_keys = bound.Truth(3);
  if (const Value* indent = bound[1]; indent != nullptr && !indent->is(Kind::kNone)) {
    if (indent->is_string()) {
      style->indent = std::string(indent->text());
    } else {
      int64_t width = 0;
      if (!WantInt(rt, "tojson", *indent, &width)) return false;
      if (width > rt.text_bytes_max()) return rt.FailLimit(static_cast<size_t>(width));
      style->indent = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
    style->item_separator = ",";
  }
  const Value* separators = bound[2];
  if (separators == nullptr || separators->is(Kind::kNone)) return true;
  std::vector<Value> pair;
  if (!Collect(rt, *separators, &pair)) return false;
  if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string()) {
    return rt.Fail("tojson wants two strings as separators");
  }
  style->item_separator = pair[0].text();
  style->key_separator = pair[1].text();
  return true;
}

bool ToJson(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  JsonStyle style;
  if (!bound.Bind(rt, "tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"}) ||
      !ReadJsonStyle(rt, bound, &style)) {
    return false;
  }
  TextBuilder builder(rt);
  AppendJson(rt, input, style, &builder);
  return builder.Finish(out);
}

bool TruncateToInt(Runtime& rt, double value, Value* out) {
  if (!(value >= -0x1p63 && value < 0x1p63)) return rt.Fail("integer does not fit in 64 bits");
  *out = Value::Int(static_cast<int64_t>(value));
  return true;
}

bool Int(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  int64_t base = 10;
  if (!bound.Bind(rt, "int", args, {"default", "base"})) return false;
  if (bound[1] != nullptr && !WantInt(rt, "int", *bound[1], &base)) return false;
  if (input.is_undefined()) return rt.FailUndefined(input);
  *out = bound[0] == nullptr ? Value::Int(0) : *bound[0];
  if (input.is_integral()) {
    *out = Value::Int(input.integer());
  } else if (input.is(Kind::kFloat)) {
    if (std::isinf(input.number())) return rt.Fail("cannot convert float infinity to integer");
    return std::isnan(input.number()) || TruncateToInt(rt, input.number(), out);
  } else if (input.is_string()) {
    bool too_large = false;
    if (!rt.ChargeBytes(input.str().size)) return false;
    if (base == 0 || (base >= 2 && base <= 36)) {
      if (const auto value = ParseInt(input.text(), static_cast<int>(base), &too_large)) {
        *out = Value::Int(*value);
        return true;
      }
    }
    if (too_large) return rt.Fail("integer does not fit in 64 bits");
    const auto value = ParseFloat(input.text());
    if (value && std::isfinite(*value)) return TruncateToInt(rt, *value, out);
  }
  return true;
}

bool Float(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "float", args, {"default"})) return false;
  if (input.is_undefined()) return rt.FailUndefined(input);
  *out = bound[0] == nullptr ? Value::Float(0) : *bound[0];
  if (input.is_number()) {
    *out = Value::Float(input.number());
  } else if (input.is_string()) {
    if (!rt.ChargeBytes(input.str().size)) return false;
    if (const auto value = ParseFloat(input.text())) *out = Value::Float(*value);
  }
  return true;
}

bool Abs(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "abs", args, {})) return false;
  if (input.is_undefined()) return rt.FailUndefined(input);
  if (!input.is_number()) {
    return rt.Fail(absl::StrFormat("bad operand type for abs: '%s'", TypeName(input)));
  }
  const bool negative = input.is(Kind::kFloat) ? std::signbit(input.number()) : input.integer() < 0;
  return Negate(rt, input, negative, out);
}

bool Round(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  int64_t precision = 0;
  if (!bound.Bind(rt, "round", args, {"precision", "method"})) return false;
  if (bound[0] != nullptr && !WantInt(rt, "round", *bound[0], &precision)) return false;
  const std::string_view method =
      bound[1] == nullptr || !bound[1]->is_string() ? "common" : bound[1]->text();
  if (input.is_undefined()) return rt.FailUndefined(input);
  if (!input.is_number() || precision < 0 || precision > 15) {
    return rt.Fail("round wants a number and a precision from 0 to 15");
  }
  if (method == "common") {
    if (input.is_integral()) {
      *out = Value::Int(input.integer());
      return true;
    }
    const std::string rounded = FormatFixed(input.number(), static_cast<int>(precision), 'f');
    *out = Value::Float(ParseFloat(rounded).value_or(input.number()));
    return true;
  }
  if (method != "ceil" && method != "floor")
    return rt.Fail("round method is common, ceil or floor");
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = input.number() * scale;
  *out = Value::Float((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
  return true;
}

constexpr FilterEntry kEntries[] = {
    {"default", Default},
    {"d", Default},
    {"upper", Case<CaseForm::kUpper>},
    {"lower", Case<CaseForm::kLower>},
    {"capitalize", Case<CaseForm::kCapitalize>},
    {"title", Title},
    {"trim", Trim},
    {"string", String},
    {"safe", Safe},
    {"e", Escape},
    {"escape", Escape},
    {"replace", ReplaceFilter},
    {"indent", Indent},
    {"tojson", ToJson},
    {"int", Int},
    {"float", Float},
    {"abs", Abs},
    {"round", Round},
};

}  // namespace

const std::span<const FilterEntry> kTextFilters = kEntries;

}  // namespace morphserve::jinja
