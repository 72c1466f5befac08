// Expressions and calls of the interpreter.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_methods.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_print.h"

namespace morphserve::jinja {

bool Interpreter::Eval(const Expr& expr, Frame* frame, Value* out) {
  DepthGuard guard(*this);
  rt_.set_line(expr.line);
  if (!rt_.Charge() || !guard.ok()) return false;
  switch (expr.kind) {
    case ExprKind::kConstant: *out = expr.constant; return true;
    case ExprKind::kName: return EvalName(expr, frame, out);
    case ExprKind::kTuple:
    case ExprKind::kList: return EvalSequence(expr, frame, out);
    case ExprKind::kDict: return EvalDict(expr, frame, out);
    case ExprKind::kAttribute: {
      Value object;
      return Eval(*expr.a, frame, &object) && GetAttribute(rt_, object, expr.text, out);
    }
    case ExprKind::kSubscript: return EvalSubscript(expr, frame, out);
    case ExprKind::kSlice: return EvalSlice(expr, frame, out);
    case ExprKind::kCall: return EvalCall(expr, frame, out);
    case ExprKind::kFilter: return EvalFilter(expr, frame, out);
    case ExprKind::kTest: return EvalTest(expr, frame, out);
    case ExprKind::kNot:
    case ExprKind::kNegate:
    case ExprKind::kPlus: return EvalUnary(expr, frame, out);
    case ExprKind::kBinary: return EvalBinary(expr, frame, out);
    case ExprKind::kAnd:
    case ExprKind::kOr: return EvalLogic(expr, frame, out);
    case ExprKind::kConcat: return EvalConcat(expr, frame, out);
    case ExprKind::kCompare: return EvalCompare(expr, frame, out);
    case ExprKind::kConditional: return EvalConditional(expr, frame, out);
  }
  return false;
}

bool Interpreter::EvalName(const Expr& expr, Frame* frame, Value* out) {
  *out = Slot(expr.slot, frame);
  return !out->is(Kind::kMissing) || rt_.MakeUndefined(expr.text, nullptr, out);
}

bool Interpreter::EvalItems(std::span<Expr* const> items, Frame* frame,
                            std::span<const Value>* out) {
  Value* values = rt_.arena().NewArray<Value>(items.size());
  if (values == nullptr) return rt_.FailMemory();
  for (size_t i = 0; i < items.size(); ++i) {
    if (!Eval(*items[i], frame, &values[i])) return false;
  }
  *out = {values, items.size()};
  return true;
}

bool Interpreter::EvalSequence(const Expr& expr, Frame* frame, Value* out) {
  std::span<const Value> items;
  if (!EvalItems(expr.items, frame, &items)) return false;
  return expr.kind == ExprKind::kTuple ? rt_.MakeTuple(items, out) : rt_.MakeList(items, out);
}

bool Interpreter::EvalDict(const Expr& expr, Frame* frame, Value* out) {
  std::span<const Value> items;
  Dict* dict = rt_.MakeDict();
  if (dict == nullptr || !EvalItems(expr.items, frame, &items)) return false;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    if (!rt_.SetItem(dict, items[i], items[i + 1])) return false;
  }
  *out = Value::OfDict(dict);
  return true;
}

bool Interpreter::EvalSubscript(const Expr& expr, Frame* frame, Value* out) {
  Value object;
  Value key;
  return Eval(*expr.a, frame, &object) && Eval(*expr.b, frame, &key) &&
         GetItem(rt_, object, key, out);
}

bool Interpreter::EvalSlice(const Expr& expr, Frame* frame, Value* out) {
  Value object;
  Value bounds[3];
  const Expr* const parts[] = {expr.b, expr.c, expr.d};
  if (!Eval(*expr.a, frame, &object)) return false;
  for (size_t i = 0; i < 3; ++i) {
    if (parts[i] != nullptr && !Eval(*parts[i], frame, &bounds[i])) return false;
  }
  return GetSlice(rt_, object, &bounds[0], &bounds[1], &bounds[2], out);
}

bool Interpreter::EvalArgs(const Expr& expr, Frame* frame, Args* out) {
  if (!EvalItems(expr.items, frame, &out->positional)) return false;
  NamedValue* named = rt_.arena().NewArray<NamedValue>(expr.named.size());
  if (named == nullptr) return rt_.FailMemory();
  for (size_t i = 0; i < expr.named.size(); ++i) {
    named[i].name = expr.named[i].name;
    if (!Eval(*expr.named[i].value, frame, &named[i].value)) return false;
  }
  out->named = {named, expr.named.size()};
  return true;
}

bool Interpreter::EvalCall(const Expr& expr, Frame* frame, Value* out) {
  Value callee;
  Args args;
  if (!Eval(*expr.a, frame, &callee) || !EvalArgs(expr, frame, &args)) return false;
  rt_.set_line(expr.line);
  return Call(callee, args, out);
}

bool Interpreter::EvalFilter(const Expr& expr, Frame* frame, Value* out) {
  Value input = block_input_;
  Args args;
  if (expr.a != nullptr && !Eval(*expr.a, frame, &input)) return false;
  if (!EvalArgs(expr, frame, &args)) return false;
  rt_.set_line(expr.line);
  if (expr.filter == nullptr) return rt_.Fail(absl::StrFormat("no filter named '%s'", expr.text));
  return expr.filter->apply(rt_, input, args, out);
}

bool Interpreter::EvalTest(const Expr& expr, Frame* frame, Value* out) {
  Value input;
  Args args;
  bool verdict = false;
  if (!Eval(*expr.a, frame, &input) || !EvalArgs(expr, frame, &args)) return false;
  rt_.set_line(expr.line);
  if (expr.test == nullptr) return rt_.Fail(absl::StrFormat("no test named '%s'", expr.text));
  if (!expr.test->apply(rt_, input, args, &verdict)) return false;
  *out = Value::Bool(verdict);
  return true;
}

bool Interpreter::EvalUnary(const Expr& expr, Frame* frame, Value* out) {
  Value value;
  if (!Eval(*expr.a, frame, &value)) return false;
  if (expr.kind != ExprKind::kNot) return Negate(rt_, value, expr.kind == ExprKind::kNegate, out);
  *out = Value::Bool(!Truthy(value));
  return true;
}

bool Interpreter::EvalBinary(const Expr& expr, Frame* frame, Value* out) {
  Value a;
  Value b;
  if (!Eval(*expr.a, frame, &a) || !Eval(*expr.b, frame, &b)) return false;
  rt_.set_line(expr.line);
  return Operate(rt_, expr.op, a, b, out);
}

bool Interpreter::EvalLogic(const Expr& expr, Frame* frame, Value* out) {
  if (!Eval(*expr.a, frame, out)) return false;
  const bool stops = expr.kind == ExprKind::kAnd ? !Truthy(*out) : Truthy(*out);
  return stops || Eval(*expr.b, frame, out);
}

bool Interpreter::EvalConcat(const Expr& expr, Frame* frame, Value* out) {
  std::span<const Value> items;
  if (!EvalItems(expr.items, frame, &items)) return false;
  TextBuilder text(rt_);
  for (const Value& item : items) AppendText(rt_, item, &text);
  return text.Finish(out);
}

bool Interpreter::EvalCompare(const Expr& expr, Frame* frame, Value* out) {
  Value left;
  bool holds = true;
  if (!Eval(*expr.a, frame, &left)) return false;
  for (const CompareStep& step : expr.steps) {
    Value right;
    if (!Eval(*step.operand, frame, &right)) return false;
    rt_.set_line(expr.line);
    if (!Compare(rt_, step.op, left, right, &holds)) return false;
    if (!holds) break;
    left = right;
  }
  *out = Value::Bool(holds);
  return true;
}

bool Interpreter::EvalConditional(const Expr& expr, Frame* frame, Value* out) {
  Value condition;
  if (!Eval(*expr.b, frame, &condition)) return false;
  if (Truthy(condition)) return Eval(*expr.a, frame, out);
  if (expr.c != nullptr) return Eval(*expr.c, frame, out);
  return rt_.MakeUndefined("inline if without else", nullptr, out);
}

bool Interpreter::Call(const Value& callee, const Args& args, Value* out) {
  switch (callee.kind()) {
    case Kind::kMacro: return CallMacro(callee.macro(), args, out);
    case Kind::kMethod: return CallMethod(rt_, callee.method(), args, out);
    case Kind::kFunction: return CallFunction(rt_, callee.function(), args, out);
    case Kind::kLoop: return CallLoop(callee.loop(), args, out);
    case Kind::kUndefined: return rt_.FailUndefined(callee);
    default: return rt_.Fail(absl::StrFormat("'%s' object is not callable", TypeName(callee)));
  }
}

bool Interpreter::CallMacro(const Macro& macro, const Args& args, Value* out) {
  if (macro_depth_ >= kMacroDepthMax) {
    return rt_.Fail(absl::StrFormat("macros nest deeper than %d", kMacroDepthMax));
  }
  Frame* frame = NewFrame(macro.node->function, macro.closure);
  if (frame == nullptr || !Enter(macro.node->scope, frame)) return false;
  if (!BindMacroArgs(macro, args, frame)) return false;
  TextBuilder text(rt_);
  const int line = rt_.line();
  ++macro_depth_;
  const Flow flow = ExecBody(macro.node->body, frame, &text);
  --macro_depth_;
  rt_.set_line(line);
  return flow != Flow::kFail && text.Finish(out);
}

bool Interpreter::BindMacroArgs(const Macro& macro, const Args& args, Frame* frame) {
  const MacroNode& node = *macro.node;
  const size_t count = node.parameters.size();
  if (args.positional.size() > count && !node.takes_varargs) {
    return rt_.Fail(
        absl::StrFormat("macro '%s' takes not more than %d arguments", node.name, count));
  }
  for (size_t i = 0; i < count; ++i) {
    Value& slot = Slot(node.parameters[i]->slot, frame);
    const auto named = std::find_if(
        args.named.begin(), args.named.end(),
        [&](const NamedValue& argument) { return argument.name == node.parameters[i]->name; });
    if (i < args.positional.size()) {
      slot = args.positional[i];
    } else if (named != args.named.end()) {
      slot = named->value;
    }
  }
  if (!BindExtraArgs(node, args, frame)) return false;
  for (size_t i = 0; i < count; ++i) {
    Value& slot = Slot(node.parameters[i]->slot, frame);
    if (!slot.is(Kind::kMissing)) continue;
    const size_t first_default = count - node.defaults.size();
    Value value;
    const bool ok = i >= first_default
                        ? Eval(*node.defaults[i - first_default], frame, &value)
                        : rt_.MakeUndefined(node.parameters[i]->name, nullptr, &value);
    if (!ok) return false;
    slot = value;
  }
  return true;
}

// varargs, kwargs and caller, for macros that mention them; an error for what is left over else.
bool Interpreter::BindExtraArgs(const MacroNode& node, const Args& args, Frame* frame) {
  const size_t count = node.parameters.size();
  Dict* kwargs = rt_.MakeDict();
  if (kwargs == nullptr) return false;
  Value caller;
  if (!rt_.MakeUndefined("caller", nullptr, &caller)) return false;
  for (const NamedValue& argument : args.named) {
    bool taken = false;
    for (size_t i = args.positional.size(); i < count; ++i) {
      taken = taken || node.parameters[i]->name == argument.name;
    }
    if (taken) continue;
    if (node.takes_caller && argument.name == "caller") {
      if (!argument.value.is(Kind::kNone)) caller = argument.value;
      continue;
    }
    if (!node.takes_kwargs) {
      return rt_.Fail(
          absl::StrFormat("macro '%s' takes no keyword argument '%s'", node.name, argument.name));
    }
    Value key;
    if (!rt_.MakeText(argument.name, true, &key) || !rt_.SetItem(kwargs, key, argument.value)) {
      return false;
    }
  }
  if (node.takes_caller) Slot(node.caller_slot, frame) = caller;
  if (node.takes_kwargs) Slot(node.kwargs_slot, frame) = Value::OfDict(kwargs);
  if (!node.takes_varargs) return true;
  const auto rest = args.positional.subspan(std::min(count, args.positional.size()));
  return rt_.MakeTuple(rest, &Slot(node.varargs_slot, frame));
}

bool Interpreter::CallLoop(LoopState& loop, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt_, "loop", args, {"iterable"}, 1)) return false;
  if (!loop.node->recursive) return rt_.Fail("the loop is not marked as recursive");
  if (macro_depth_ >= kMacroDepthMax) {
    return rt_.Fail(absl::StrFormat("loops recurse deeper than %d", kMacroDepthMax));
  }
  TextBuilder text(rt_);
  ++macro_depth_;
  const Flow flow = ExecLoop(*loop.node, loop.frame, *bound[0], loop.depth0 + 1, &text);
  --macro_depth_;
  return flow != Flow::kFail && text.Finish(out);
}

}  // namespace morphserve::jinja
