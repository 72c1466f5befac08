// Interpreter evaluates a parsed template. One Interpreter serves one rendering; the template may
// be shared by any number of them. It never recurses deeper than its limits, whatever the template.
#pragma once

#include <cstdint>

#include "engine/text/jinja_args.h"
#include "engine/text/jinja_ast.h"
#include "engine/text/jinja_loop.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

inline constexpr int kMacroDepthMax = 64;
inline constexpr int kEvalDepthMax = 1500;  // Nested evaluations; sized for 2 MiB of stack.

// The variables of one function activation.
struct Frame {
  Frame* parent = nullptr;  // Of the function around it in the template.
  Value* slots = nullptr;
};

class Interpreter {
 public:
  // `variables` are the input of the rendering. Both must outlive the interpreter.
  Interpreter(Runtime& rt, const Dict& variables) : rt_(rt), variables_(variables) {}

  // Appends the rendering to `out`; false when the runtime has failed.
  [[nodiscard]] bool Run(const TemplateNode& root, TextBuilder* out);

 private:
  friend class FilteredItems;
  class DepthGuard;
  enum class Flow : uint8_t { kNext, kBreak, kContinue, kFail };
  using Body = std::span<Stmt* const>;

  // Statements (jinja_eval.cc).
  Flow ExecBody(Body body, Frame* frame, TextBuilder* out);
  Flow Exec(const Stmt& stmt, Frame* frame, TextBuilder* out);
  Flow ExecIf(const Stmt& stmt, Frame* frame, TextBuilder* out);
  Flow ExecFor(const Stmt& stmt, Frame* frame, TextBuilder* out);
  Flow ExecLoop(const ForNode& loop, Frame* frame, const Value& iterable, int64_t depth0,
                TextBuilder* out);
  Flow ExecIteration(const ForNode& loop, Frame* frame, LoopState* state, TextBuilder* out);
  Flow ExecSet(const Stmt& stmt, Frame* frame);
  Flow ExecSetBlock(const Stmt& stmt, Frame* frame);
  Flow ExecFilterBlock(const Stmt& stmt, Frame* frame, TextBuilder* out);
  Flow ExecGeneration(const Stmt& stmt, Frame* frame, TextBuilder* out);
  Flow ExecMacro(const Stmt& stmt, Frame* frame);
  [[nodiscard]] bool Assign(const Target& target, Frame* frame, const Value& value);
  [[nodiscard]] bool CheckNamespaces(const Target& target, Frame* frame);
  [[nodiscard]] bool Enter(const Scope& scope, Frame* frame);
  Frame* NewFrame(const FunctionInfo& function, Frame* parent);
  static Value& Slot(SlotRef ref, Frame* frame);

  // Expressions (jinja_eval_expr.cc).
  [[nodiscard]] bool Eval(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalName(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalItems(std::span<Expr* const> items, Frame* frame,
                               std::span<const Value>* out);
  [[nodiscard]] bool EvalSequence(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalDict(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalSubscript(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalSlice(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalCall(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalArgs(const Expr& expr, Frame* frame, Args* out);
  [[nodiscard]] bool EvalFilter(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalTest(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalUnary(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalBinary(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalLogic(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalConcat(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalCompare(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool EvalConditional(const Expr& expr, Frame* frame, Value* out);
  [[nodiscard]] bool Call(const Value& callee, const Args& args, Value* out);
  [[nodiscard]] bool CallMacro(const Macro& macro, const Args& args, Value* out);
  [[nodiscard]] bool BindMacroArgs(const Macro& macro, const Args& args, Frame* frame);
  [[nodiscard]] bool BindExtraArgs(const MacroNode& node, const Args& args, Frame* frame);
  [[nodiscard]] bool CallLoop(LoopState& loop, const Args& args, Value* out);

  Runtime& rt_;
  const Dict& variables_;
  int depth_ = 0;
  int macro_depth_ = 0;
  Value block_input_;  // What the first filter of a filter block gets.
};

class Interpreter::DepthGuard {
 public:
  explicit DepthGuard(Interpreter& interpreter) : interpreter_(interpreter) {
    ++interpreter_.depth_;
  }
  ~DepthGuard() { --interpreter_.depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;
  [[nodiscard]] bool ok() const {
    return interpreter_.depth_ <= kEvalDepthMax ||
           interpreter_.rt_.Fail("evaluation is nested too deeply");
  }

 private:
  Interpreter& interpreter_;
};

}  // namespace morphserve::jinja
