#include "engine/text/jinja_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_format.h"
#include "engine/text/jinja_print.h"

namespace morphserve::jinja {
namespace {

constexpr std::string_view kOpNames[] = {"+", "-", "*", "/", "//", "%", "**"};

bool FailOperands(Runtime& rt, std::string_view op, const Value& a, const Value& b) {
  if (a.is_undefined()) return rt.FailUndefined(a);
  if (b.is_undefined()) return rt.FailUndefined(b);
  return rt.Fail(absl::StrFormat("unsupported operand types for %s: '%s' and '%s'", op, TypeName(a),
                                 TypeName(b)));
}

bool FailOverflow(Runtime& rt) { return rt.Fail("integer does not fit in 64 bits"); }

int64_t FloorDiv(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return (a % b != 0) && ((a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

double FloatMod(double a, double b) {
  double mod = std::fmod(a, b);
  if (mod == 0) return std::copysign(0.0, b);
  return (mod < 0) != (b < 0) ? mod + b : mod;
}

double FloatFloorDiv(double a, double b) {
  const double mod = std::fmod(a, b);
  double div = (a - mod) / b;
  if (mod != 0 && (b < 0) != (mod < 0)) div -= 1.0;
  if (div == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(div);
  return div - floored > 0.5 ? floored + 1.0 : floored;
}

bool IntPower(Runtime& rt, int64_t base, int64_t exponent, Value* out) {
  int64_t result = 1;
  // 2 ** 63 overflows already: only -1, 0 and 1 get past 63 rounds.
  if (base == 1 || base == 0 || base == -1) {
    if (exponent > 0 && base == 0) result = 0;
    if (base == -1 && exponent % 2 != 0) result = -1;
  } else {
    for (int64_t i = 0; i < exponent; ++i) {
      if (__builtin_mul_overflow(result, base, &result)) return FailOverflow(rt);
    }
  }
  *out = Value::Int(result);
  return true;
}

bool OperateInts(Runtime& rt, BinaryOp op, int64_t a, int64_t b, Value* out) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case BinaryOp::kAdd: overflow = __builtin_add_overflow(a, b, &result); break;
    case BinaryOp::kSub: overflow = __builtin_sub_overflow(a, b, &result); break;
    case BinaryOp::kMul: overflow = __builtin_mul_overflow(a, b, &result); break;
    case BinaryOp::kDiv:
      if (b == 0) return rt.Fail("division by zero");
      *out = Value::Float(static_cast<double>(a) / static_cast<double>(b));
      return true;
    case BinaryOp::kFloorDiv:
    case BinaryOp::kMod:
      if (b == 0) return rt.Fail("integer division or modulo by zero");
      // The one pair whose quotient does not fit, and whose remainder traps.
      overflow = b == -1 && a == std::numeric_limits<int64_t>::min() && op == BinaryOp::kFloorDiv;
      if (overflow || b == -1) {
        result = op == BinaryOp::kMod || overflow ? 0 : -a;
      } else {
        result = FloorDiv(a, b);
        if (op == BinaryOp::kMod) result = a - result * b;
      }
      break;
    case BinaryOp::kPow:
      if (b >= 0) return IntPower(rt, a, b, out);
      if (a == 0) return rt.Fail("0.0 cannot be raised to a negative power");
      *out = Value::Float(std::pow(static_cast<double>(a), static_cast<double>(b)));
      return true;
  }
  if (overflow) return FailOverflow(rt);
  *out = Value::Int(result);
  return true;
}

bool OperateFloats(Runtime& rt, BinaryOp op, double a, double b, Value* out) {
  double result = 0;
  switch (op) {
    case BinaryOp::kAdd: result = a + b; break;
    case BinaryOp::kSub: result = a - b; break;
    case BinaryOp::kMul: result = a * b; break;
    case BinaryOp::kDiv:
    case BinaryOp::kFloorDiv:
    case BinaryOp::kMod:
      if (b == 0) return rt.Fail("float division by zero");
      result = op == BinaryOp::kDiv        ? a / b
               : op == BinaryOp::kFloorDiv ? FloatFloorDiv(a, b)
                                           : FloatMod(a, b);
      break;
    case BinaryOp::kPow:
      if (a == 0 && b < 0) return rt.Fail("0.0 cannot be raised to a negative power");
      if (a < 0 && std::isfinite(a) && std::isfinite(b) && b != std::floor(b)) {
        return rt.Fail("complex numbers are not supported");
      }
      result = std::pow(a, b);
      if (std::isinf(result) && std::isfinite(a) && std::isfinite(b)) {
        return rt.Fail("numerical result out of range");
      }
      break;
  }
  *out = Value::Float(result);
  return true;
}

bool AddStrings(Runtime& rt, const Value& a, const Value& b, Value* out) {
  const bool markup = a.str().markup || b.str().markup;
  Value left = a;
  Value right = b;
  if (markup && !a.str().markup && !EscapeHtml(rt, a.str(), &left)) return false;
  if (markup && !b.str().markup && !EscapeHtml(rt, b.str(), &right)) return false;
  return Concat(rt, left.str(), right.str(), markup, out);
}

bool AddLists(Runtime& rt, const Value& a, const Value& b, Value* out) {
  std::vector<Value> items(a.list().span().begin(), a.list().span().end());
  items.insert(items.end(), b.list().span().begin(), b.list().span().end());
  if (!rt.Charge(static_cast<int64_t>(items.size()) / 8)) return false;
  return a.is(Kind::kTuple) ? rt.MakeTuple(items, out) : rt.MakeList(items, out);
}

// text * count or list * count.
bool Repeat(Runtime& rt, const Value& value, int64_t count, Value* out) {
  count = std::max<int64_t>(count, 0);
  if (value.is_string()) {
    const int64_t size = value.str().size;
    if (size > 0 && count > rt.text_bytes_max() / size) {
      return rt.Fail(
          absl::StrFormat("repeated text exceeds the limit of %d bytes", rt.text_bytes_max()));
    }
    TextBuilder builder(rt);
    for (int64_t i = 0; size > 0 && i < count && !rt.failed(); ++i) {
      if (rt.Charge()) builder.Append(value.str());
    }
    return builder.Finish(out, value.str().markup);
  }
  const auto items = value.list().span();
  const int64_t size = static_cast<int64_t>(items.size());
  if (size > 0 && count > *rt.steps_left() / size) return rt.Charge(*rt.steps_left() + 1);
  std::vector<Value> repeated;
  if (size > 0) {
    if (!rt.Charge(size * count)) return false;
    for (int64_t i = 0; i < count; ++i) {
      repeated.insert(repeated.end(), items.begin(), items.end());
    }
  }
  return value.is(Kind::kTuple) ? rt.MakeTuple(repeated, out) : rt.MakeList(repeated, out);
}

}  // namespace

bool Operate(Runtime& rt, BinaryOp op, const Value& a, const Value& b, Value* out) {
  if (a.is_integral() && b.is_integral()) {
    return OperateInts(rt, op, a.integer(), b.integer(), out);
  }
  if (a.is_number() && b.is_number()) return OperateFloats(rt, op, a.number(), b.number(), out);
  if (op == BinaryOp::kAdd) {
    if (a.is_string() && b.is_string()) return AddStrings(rt, a, b, out);
    if (a.is_sequence() && a.kind() == b.kind()) return AddLists(rt, a, b, out);
  }
  if (op == BinaryOp::kMul) {
    if ((a.is_string() || a.is_sequence()) && b.is_integral()) {
      return Repeat(rt, a, b.integer(), out);
    }
    if ((b.is_string() || b.is_sequence()) && a.is_integral()) {
      return Repeat(rt, b, a.integer(), out);
    }
  }
  if (op == BinaryOp::kMod && a.is_string()) return FormatPercent(rt, a.str(), b, out);
  return FailOperands(rt, kOpNames[static_cast<size_t>(op)], a, b);
}

bool Negate(Runtime& rt, const Value& value, bool negative, Value* out) {
  if (value.is_integral()) {
    if (!negative) {
      *out = Value::Int(value.integer());
      return true;
    }
    return OperateInts(rt, BinaryOp::kSub, 0, value.integer(), out);
  }
  if (value.is(Kind::kFloat)) {
    *out = Value::Float(negative ? -value.number() : value.number());
    return true;
  }
  if (value.is_undefined()) return rt.FailUndefined(value);
  return rt.Fail(absl::StrFormat("bad operand type for unary %c: '%s'", negative ? '-' : '+',
                                 TypeName(value)));
}

bool EqualValues(Runtime& rt, const Value& a, const Value& b, bool* out) {
  *out = Equal(a, b, rt.steps_left());
  return rt.Charge(0);
}

namespace {

template <typename T>
bool Holds(CompareOp op, const T& a, const T& b) {
  switch (op) {
    case CompareOp::kLt: return a < b;
    case CompareOp::kLe: return a <= b;
    case CompareOp::kGt: return a > b;
    default: return a >= b;
  }
}

// Exact order of an int64 against a double: -1, 0, 1; 2 for NaN.
int OrderIntFloat(int64_t i, double d) {
  if (std::isnan(d)) return 2;
  if (d >= 0x1p63) return -1;
  if (d < -0x1p63) return 1;
  const int64_t whole = static_cast<int64_t>(d);  // Towards zero.
  if (i != whole) return i < whole ? -1 : 1;
  const double rest = d - static_cast<double>(whole);
  return rest == 0 ? 0 : rest > 0 ? -1 : 1;
}

bool OrderNumbers(CompareOp op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return Holds(op, a.integer(), b.integer());
  if (a.is(Kind::kFloat) && b.is(Kind::kFloat)) return Holds(op, a.number(), b.number());
  const bool left_int = a.is_integral();
  const int order =
      left_int ? OrderIntFloat(a.integer(), b.number()) : OrderIntFloat(b.integer(), a.number());
  if (order == 2) return false;
  return Holds(op, left_int ? order : -order, 0);
}

bool Order(Runtime& rt, CompareOp op, const Value& a, const Value& b, int depth, bool* out) {
  static constexpr std::string_view kNames[] = {"==", "!=", "<", "<=", ">", ">="};
  if (!rt.Charge()) return false;
  if (a.is_number() && b.is_number()) {
    *out = OrderNumbers(op, a, b);
    return true;
  }
  if (a.is_string() && b.is_string()) {
    // UTF-8 sorts by code point.
    if (!rt.ChargeBytes(std::min(a.str().size, b.str().size))) return false;
    *out = Holds(op, a.text().compare(b.text()), 0);
    return true;
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    if (depth > kValueDepthMax) return rt.Fail("value is nested too deeply to compare");
    const auto left = a.list().span();
    const auto right = b.list().span();
    for (size_t i = 0; i < std::min(left.size(), right.size()); ++i) {
      bool same = false;
      if (!rt.Charge() || !EqualValues(rt, left[i], right[i], &same)) return false;
      if (!same) return Order(rt, op, left[i], right[i], depth + 1, out);
    }
    *out = Holds(op, left.size(), right.size());
    return true;
  }
  if (a.is_undefined()) return rt.FailUndefined(a);
  if (b.is_undefined()) return rt.FailUndefined(b);
  return rt.Fail(absl::StrFormat("'%s' not supported between '%s' and '%s'",
                                 kNames[static_cast<size_t>(op)], TypeName(a), TypeName(b)));
}

}  // namespace

bool Compare(Runtime& rt, CompareOp op, const Value& a, const Value& b, bool* out) {
  switch (op) {
    case CompareOp::kEq: return EqualValues(rt, a, b, out);
    case CompareOp::kNe:
      if (!EqualValues(rt, a, b, out)) return false;
      *out = !*out;
      return true;
    case CompareOp::kIn: return Contains(rt, b, a, out);
    case CompareOp::kNotIn:
      if (!Contains(rt, b, a, out)) return false;
      *out = !*out;
      return true;
    default: return Order(rt, op, a, b, 0, out);
  }
}

bool Contains(Runtime& rt, const Value& container, const Value& item, bool* out) {
  *out = false;
  switch (container.kind()) {
    case Kind::kString:
      if (!item.is_string()) {
        if (item.is_undefined()) return rt.FailUndefined(item);
        return rt.Fail(absl::StrFormat("'in <string>' requires a string, not %s", TypeName(item)));
      }
      if (!rt.ChargeBytes(container.str().size)) return false;
      *out = memmem(container.str().data, container.str().size, item.str().data, item.str().size) !=
             nullptr;
      return true;
    case Kind::kDict:
      if (!Hashable(item)) {
        return rt.Fail(absl::StrFormat("unhashable type: '%s'", TypeName(item)));
      }
      *out = container.dict().Find(item) != nullptr;
      return true;
    default: break;
  }
  Generator* items = nullptr;
  if (!IsIterable(container)) {
    return rt.Fail(absl::StrFormat("argument of type '%s' is not iterable", TypeName(container)));
  }
  if (!Iterate(rt, container, &items)) return false;
  while (true) {
    Value candidate;
    bool done = false;
    if (!items->Next(rt, &candidate, &done)) return false;
    if (done) return true;
    if (!EqualValues(rt, candidate, item, out)) return false;
    if (*out) return true;
  }
}

}  // namespace morphserve::jinja
