#include "engine/text/jinja_eval.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_print.h"

namespace morphserve::jinja {

// The items of `for x in items if condition`, tested one by one as the loop asks for them.
class FilteredItems final : public Generator {
 public:
  FilteredItems(Interpreter& interpreter, const ForNode& loop, Frame* frame, Generator* source)
      : interpreter_(interpreter), loop_(loop), frame_(frame), source_(source) {}

  bool Next(Runtime& rt, Value* out, bool* done) override {
    if (!entered_ && !interpreter_.Enter(loop_.test_scope, frame_)) return false;
    entered_ = true;
    while (true) {
      Value verdict;
      if (!source_->Next(rt, out, done)) return false;
      if (*done) return true;
      if (!interpreter_.Assign(*loop_.test_target, frame_, *out)) return false;
      if (!interpreter_.Eval(*loop_.test, frame_, &verdict)) return false;
      if (Truthy(verdict)) return Rebuild(rt, *loop_.test_target, out);
    }
  }

 private:
  // What was unpacked is handed on as a tuple of the bound values.
  bool Rebuild(Runtime& rt, const Target& target, Value* out) {
    if (target.kind == Target::Kind::kName) {
      *out = Interpreter::Slot(target.slot, frame_);
      return true;
    }
    std::vector<Value> items(target.items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      if (!Rebuild(rt, *target.items[i], &items[i])) return false;
    }
    return rt.MakeTuple(items, out);
  }

  Interpreter& interpreter_;
  const ForNode& loop_;
  Frame* const frame_;
  Generator* const source_;
  bool entered_ = false;
};

bool Interpreter::Run(const TemplateNode& root, TextBuilder* out) {
  Frame* frame = NewFrame(root.function, nullptr);
  if (frame == nullptr || !Enter(root.scope, frame)) return false;
  return ExecBody(root.body, frame, out) != Flow::kFail && !rt_.failed();
}

Frame* Interpreter::NewFrame(const FunctionInfo& function, Frame* parent) {
  Frame* frame = rt_.arena().New<Frame>();
  Value* slots = rt_.arena().NewArray<Value>(function.slots);
  if (frame == nullptr || slots == nullptr) return rt_.FailMemory(), nullptr;
  std::fill_n(slots, function.slots, Value::Missing());
  frame->parent = parent;
  frame->slots = slots;
  return frame;
}

Value& Interpreter::Slot(SlotRef ref, Frame* frame) {
  for (uint16_t i = 0; i < ref.hops; ++i) frame = frame->parent;
  return frame->slots[ref.slot];
}

bool Interpreter::Enter(const Scope& scope, Frame* frame) {
  for (const Load& load : scope.loads) {
    Value& slot = frame->slots[load.slot];
    switch (load.action) {
      case LoadAction::kMissing: slot = Value::Missing(); break;
      case LoadAction::kAlias: slot = Slot(load.alias, frame); break;
      case LoadAction::kContext:
        if (const Value* given = variables_.FindText(load.name)) {
          slot = *given;
        } else if (!FindGlobal(load.name, &slot)) {
          slot = Value::Missing();
        }
        break;
    }
  }
  return rt_.Charge(static_cast<int64_t>(scope.loads.size()) / 4);
}

Interpreter::Flow Interpreter::ExecBody(Body body, Frame* frame, TextBuilder* out) {
  for (const Stmt* stmt : body) {
    const Flow flow = Exec(*stmt, frame, out);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::Exec(const Stmt& stmt, Frame* frame, TextBuilder* out) {
  DepthGuard guard(*this);
  rt_.set_line(stmt.line);
  if (!rt_.Charge() || !guard.ok()) return Flow::kFail;
  switch (stmt.kind) {
    case StmtKind::kText: out->Append(*stmt.text); break;
    case StmtKind::kPrint: {
      Value value;
      if (!Eval(*stmt.expr, frame, &value)) return Flow::kFail;
      AppendText(rt_, value, out);
      break;
    }
    case StmtKind::kIf: return ExecIf(stmt, frame, out);
    case StmtKind::kFor: return ExecFor(stmt, frame, out);
    case StmtKind::kSet: return ExecSet(stmt, frame);
    case StmtKind::kSetBlock: return ExecSetBlock(stmt, frame);
    case StmtKind::kMacro: return ExecMacro(stmt, frame);
    case StmtKind::kFilterBlock: return ExecFilterBlock(stmt, frame, out);
    case StmtKind::kGeneration: return ExecGeneration(stmt, frame, out);
    case StmtKind::kBreak: return Flow::kBreak;
    case StmtKind::kContinue: return Flow::kContinue;
  }
  return rt_.failed() ? Flow::kFail : Flow::kNext;
}

Interpreter::Flow Interpreter::ExecIf(const Stmt& stmt, Frame* frame, TextBuilder* out) {
  for (const Branch& branch : stmt.branches) {
    Value condition;
    if (!Eval(*branch.condition, frame, &condition)) return Flow::kFail;
    if (Truthy(condition)) return ExecBody(branch.body, frame, out);
  }
  return ExecBody(stmt.orelse, frame, out);
}

Interpreter::Flow Interpreter::ExecFor(const Stmt& stmt, Frame* frame, TextBuilder* out) {
  const ForNode& loop = *stmt.loop;
  Value iterable;
  if (!Eval(*loop.iterable, frame, &iterable)) return Flow::kFail;
  return ExecLoop(loop, frame, iterable, 0, out);
}

Interpreter::Flow Interpreter::ExecLoop(const ForNode& loop, Frame* frame, const Value& iterable,
                                        int64_t depth0, TextBuilder* out) {
  LoopState* state = rt_.arena().New<LoopState>();
  if (state == nullptr) return rt_.FailMemory(), Flow::kFail;
  state->node = &loop;
  state->frame = frame;
  state->depth0 = depth0;
  if (!Iterate(rt_, iterable, &state->source)) return Flow::kFail;
  Frame* inner = loop.recursive ? NewFrame(loop.function, frame) : frame;
  if (inner == nullptr) return Flow::kFail;
  if (loop.test != nullptr) {
    state->source = rt_.arena().New<FilteredItems>(*this, loop, inner, state->source);
    if (state->source == nullptr) return rt_.FailMemory(), Flow::kFail;
  } else if (!iterable.is(Kind::kGenerator)) {
    state->has_size = true;
    state->sized = iterable;
  }
  bool ran = false;
  while (true) {
    bool done = false;
    if (!LoopNext(rt_, *state, &done)) return Flow::kFail;
    if (done) break;
    const Flow flow = ExecIteration(loop, inner, state, out);
    if (flow == Flow::kFail) return flow;
    if (flow != Flow::kNext) {
      // A pass that was left early does not count as one for `else`, as in the reference.
      if (flow == Flow::kBreak) break;
      continue;
    }
    ran = true;
  }
  if (ran || loop.orelse.empty()) return Flow::kNext;
  if (!Enter(loop.else_scope, inner)) return Flow::kFail;
  return ExecBody(loop.orelse, inner, out);
}

Interpreter::Flow Interpreter::ExecIteration(const ForNode& loop, Frame* frame, LoopState* state,
                                             TextBuilder* out) {
  if (!Assign(*loop.target, frame, state->current)) return Flow::kFail;
  if (loop.uses_loop) Slot(loop.loop_slot, frame) = Value::OfLoop(state);
  if (!Enter(loop.body_scope, frame)) return Flow::kFail;
  return ExecBody(loop.body, frame, out);
}

bool Interpreter::CheckNamespaces(const Target& target, Frame* frame) {
  if (target.kind == Target::Kind::kTuple) {
    return std::all_of(target.items.begin(), target.items.end(),
                       [this, frame](const Target* t) { return CheckNamespaces(*t, frame); });
  }
  return target.kind == Target::Kind::kName || Slot(target.slot, frame).is(Kind::kNamespace) ||
         rt_.Fail("cannot assign an attribute of what is not a namespace");
}

bool Interpreter::Assign(const Target& target, Frame* frame, const Value& value) {
  switch (target.kind) {
    case Target::Kind::kName: Slot(target.slot, frame) = value; return true;
    case Target::Kind::kAttribute: {
      if (target.attribute.starts_with('_')) {
        return rt_.Fail(absl::StrFormat("cannot store '%s' in a namespace: it starts with '_'",
                                        target.attribute));
      }
      Value key;
      return rt_.MakeText(target.attribute, true, &key) &&
             rt_.SetItem(&Slot(target.slot, frame).dict(), key, value);
    }
    case Target::Kind::kTuple: break;
  }
  Generator* source = nullptr;
  if (!Iterate(rt_, value, &source)) return false;
  const size_t count = target.items.size();
  std::vector<Value> items;
  for (bool done = false; items.size() <= count && !done;) {
    Value item;
    if (!source->Next(rt_, &item, &done)) return false;
    if (!done) items.push_back(item);
  }
  if (items.size() != count) {
    return rt_.Fail(absl::StrFormat("%s values to unpack into %d",
                                    items.size() < count ? "not enough" : "too many", count));
  }
  for (size_t i = 0; i < count; ++i) {
    if (!Assign(*target.items[i], frame, items[i])) return false;
  }
  return true;
}

Interpreter::Flow Interpreter::ExecSet(const Stmt& stmt, Frame* frame) {
  Value value;
  const bool ok = CheckNamespaces(*stmt.target, frame) && Eval(*stmt.expr, frame, &value) &&
                  Assign(*stmt.target, frame, value);
  return ok ? Flow::kNext : Flow::kFail;
}

Interpreter::Flow Interpreter::ExecSetBlock(const Stmt& stmt, Frame* frame) {
  TextBuilder captured(rt_);
  if (!Enter(stmt.scope, frame)) return Flow::kFail;
  const Flow flow = ExecBody(stmt.body, frame, &captured);
  if (flow != Flow::kNext) return flow;
  Value value;
  if (!captured.Finish(&value)) return Flow::kFail;
  if (stmt.filter != nullptr) {
    block_input_ = value;
    if (!Eval(*stmt.filter, frame, &value)) return Flow::kFail;
  }
  const bool ok = CheckNamespaces(*stmt.target, frame) && Assign(*stmt.target, frame, value);
  return ok ? Flow::kNext : Flow::kFail;
}

Interpreter::Flow Interpreter::ExecFilterBlock(const Stmt& stmt, Frame* frame, TextBuilder* out) {
  TextBuilder captured(rt_);
  if (!Enter(stmt.scope, frame)) return Flow::kFail;
  const Flow flow = ExecBody(stmt.body, frame, &captured);
  if (flow != Flow::kNext) return flow;
  Value value;
  if (!captured.Finish(&block_input_) || !Eval(*stmt.filter, frame, &value)) return Flow::kFail;
  AppendText(rt_, value, out);
  return rt_.failed() ? Flow::kFail : Flow::kNext;
}

Interpreter::Flow Interpreter::ExecGeneration(const Stmt& stmt, Frame* frame, TextBuilder* out) {
  Frame* inner = NewFrame(stmt.function, frame);
  if (inner == nullptr || !Enter(stmt.scope, inner)) return Flow::kFail;
  return ExecBody(stmt.body, inner, out);
}

Interpreter::Flow Interpreter::ExecMacro(const Stmt& stmt, Frame* frame) {
  Macro* macro = rt_.arena().New<Macro>();
  if (macro == nullptr) return rt_.FailMemory(), Flow::kFail;
  macro->node = stmt.macro;
  macro->closure = frame;
  Slot(stmt.target->slot, frame) = Value::OfMacro(macro);
  return Flow::kNext;
}

}  // namespace morphserve::jinja
