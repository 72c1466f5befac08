// The tests of templates (`x is name`).
#include <algorithm>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_print.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

// Tests of one value, without arguments.
template <bool (*kPredicate)(const Value&)>
bool Plain(Runtime& rt, const Value& input, const Args& args, bool* out) {
  if (args.size() > 0) return rt.Fail("the test takes no argument");
  *out = kPredicate(input);
  return true;
}

bool Defined(const Value& v) { return !v.is_undefined(); }
bool Undefined(const Value& v) { return v.is_undefined(); }
bool None(const Value& v) { return v.is(Kind::kNone); }
bool Boolean(const Value& v) { return v.is(Kind::kBool); }
bool True(const Value& v) { return v.is(Kind::kBool) && v.boolean(); }
bool False(const Value& v) { return v.is(Kind::kBool) && !v.boolean(); }
bool Integer(const Value& v) { return v.is(Kind::kInt); }
bool Float(const Value& v) { return v.is(Kind::kFloat); }
bool Number(const Value& v) { return v.is_number(); }
bool IsString(const Value& v) { return v.is_string(); }
bool Mapping(const Value& v) { return v.is(Kind::kDict); }
bool Escaped(const Value& v) { return v.is_string() && v.str().markup; }
bool Sequence(const Value& v) {
  return v.is_undefined() || v.is_string() || v.is_sequence() || v.is(Kind::kDict) ||
         v.is(Kind::kRange);
}
bool Callable(const Value& v) {
  return v.is_undefined() || v.is(Kind::kMacro) || v.is(Kind::kMethod) || v.is(Kind::kFunction) ||
         v.is(Kind::kLoop);
}

// value % divisor == wanted.
bool HasRemainder(Runtime& rt, const Value& input, const Value& divisor, int64_t wanted,
                  bool* out) {
  Value remainder;
  return Operate(rt, BinaryOp::kMod, input, divisor, &remainder) &&
         EqualValues(rt, remainder, Value::Int(wanted), out);
}

template <int64_t kWanted>
bool Parity(Runtime& rt, const Value& input, const Args& args, bool* out) {
  BoundArgs bound;
  return bound.Bind(rt, kWanted == 1 ? "odd" : "even", args, {}) &&
         HasRemainder(rt, input, Value::Int(2), kWanted, out);
}

bool DivisibleBy(Runtime& rt, const Value& input, const Args& args, bool* out) {
  BoundArgs bound;
  return bound.Bind(rt, "divisibleby", args, {"num"}, 1) &&
         HasRemainder(rt, input, *bound[0], 0, out);
}

template <CompareOp kOp>
bool Comparison(Runtime& rt, const Value& input, const Args& args, bool* out) {
  BoundArgs bound;
  return bound.Bind(rt, "comparison", args, {"other"}, 1) &&
         Compare(rt, kOp, input, *bound[0], out);
}

bool In(Runtime& rt, const Value& input, const Args& args, bool* out) {
  BoundArgs bound;
  return bound.Bind(rt, "in", args, {"seq"}, 1) && Contains(rt, *bound[0], input, out);
}

bool SameAs(Runtime& rt, const Value& input, const Args& args, bool* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "sameas", args, {"other"}, 1)) return false;
  const Value& other = *bound[0];
  *out = false;
  if (input.kind() != other.kind()) return true;
  switch (input.kind()) {
    case Kind::kNone: *out = true; return true;
    case Kind::kBool:
    case Kind::kInt: *out = input.integer() == other.integer(); return true;
    case Kind::kFloat: return true;
    case Kind::kFunction: *out = input.function() == other.function(); return true;
    default: *out = input.identity() == other.identity(); return true;
  }
}

// str.islower and str.isupper: some letter of the case, and none of another.
template <bool kUpper>
bool Cased(Runtime& rt, const Value& input, const Args& args, bool* out) {
  BoundArgs bound;
  Value value;
  if (!bound.Bind(rt, kUpper ? "upper" : "lower", args, {}) || !ToText(rt, input, &value) ||
      !rt.ChargeBytes(value.str().size)) {
    return false;
  }
  *out = false;
  for (size_t at = 0; at < value.str().size;) {
    const char32_t code = NextCodePoint(value.text(), &at);
    if (!IsCased(code)) continue;
    *out = kUpper ? IsUpper(code) : IsLower(code);
    if (!*out) return true;
  }
  return true;
}

template <bool kFilter>
bool Exists(Runtime& rt, const Value& input, const Args& args, bool* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, kFilter ? "filter" : "test", args, {})) return false;
  *out = input.is_string() &&
         (kFilter ? FindFilter(input.text()) != nullptr : FindTest(input.text()) != nullptr);
  return true;
}

constexpr TestEntry kTests[] = {
    {"defined", Plain<Defined>},
    {"undefined", Plain<Undefined>},
    {"none", Plain<None>},
    {"boolean", Plain<Boolean>},
    {"true", Plain<True>},
    {"false", Plain<False>},
    {"integer", Plain<Integer>},
    {"float", Plain<Float>},
    {"number", Plain<Number>},
    {"string", Plain<IsString>},
    {"mapping", Plain<Mapping>},
    {"sequence", Plain<Sequence>},
    {"iterable", Plain<IsIterable>},
    {"callable", Plain<Callable>},
    {"escaped", Plain<Escaped>},
    {"odd", Parity<1>},
    {"even", Parity<0>},
    {"divisibleby", DivisibleBy},
    {"in", In},
    {"sameas", SameAs},
    {"lower", Cased<false>},
    {"upper", Cased<true>},
    {"filter", Exists<true>},
    {"test", Exists<false>},
    {"eq", Comparison<CompareOp::kEq>},
    {"equalto", Comparison<CompareOp::kEq>},
    {"==", Comparison<CompareOp::kEq>},
    {"ne", Comparison<CompareOp::kNe>},
    {"!=", Comparison<CompareOp::kNe>},
    {"lt", Comparison<CompareOp::kLt>},
    {"lessthan", Comparison<CompareOp::kLt>},
    {"<", Comparison<CompareOp::kLt>},
    {"le", Comparison<CompareOp::kLe>},
    {"<=", Comparison<CompareOp::kLe>},
    {"gt", Comparison<CompareOp::kGt>},
    {"greaterthan", Comparison<CompareOp::kGt>},
    {">", Comparison<CompareOp::kGt>},
    {"ge", Comparison<CompareOp::kGe>},
    {">=", Comparison<CompareOp::kGe>},
};

}  // namespace

const TestEntry* FindTest(std::string_view name) {
  const auto* found = std::find_if(std::begin(kTests), std::end(kTests),
                                   [name](const TestEntry& entry) { return entry.name == name; });
  return found == std::end(kTests) ? nullptr : found;
}

}  // namespace morphserve::jinja
