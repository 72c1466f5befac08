#include "engine/text/jinja_scope.h"

#include <algorithm>
#include <deque>
#include <initializer_list>
#include <map>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_lexer.h"
#include "engine/text/jinja_names.h"

namespace morphserve::jinja {
namespace {

using Body = std::span<Stmt* const>;

constexpr size_t kSlotsMax = 60'000;

struct FunctionState {
  int depth = 0;
  size_t slots = 0;
};

enum class Origin : uint8_t { kNone, kParameter, kContext, kAlias, kMissing };

struct Variable {
  Origin origin = Origin::kNone;  // kNone: only known to be stored.
  size_t slot = 0;
  bool stored = false;
  const struct FrameState* alias_frame = nullptr;  // kAlias: where the outer variable lives.
};

using Variables = std::map<std::string_view, Variable>;

// One scope while names are resolved. `layers` has more than one entry only while the branches of
// an `if` are looked at: what a branch does is kept apart until all of them are known.
struct FrameState {
  FrameState* parent = nullptr;
  FunctionState* function = nullptr;
  std::map<std::string_view, size_t> slots;
  std::deque<Variables> layers = std::deque<Variables>(1);

  const Variable* Find(std::string_view name) const {
    for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) {
      const auto found = layer->find(name);
      if (found != layer->end() && found->second.origin != Origin::kNone) return &found->second;
    }
    return nullptr;
  }
  bool Stored(std::string_view name) const {
    return std::any_of(layers.begin(), layers.end(), [name](const Variables& layer) {
      const auto found = layer.find(name);
      return found != layer.end() && found->second.stored;
    });
  }
  // The innermost enclosing scope that knows the name, this one included.
  const FrameState* Owner(std::string_view name) const {
    const FrameState* frame = this;
    while (frame != nullptr && frame->Find(name) == nullptr) frame = frame->parent;
    return frame;
  }
  const FrameState* OuterOwner(std::string_view name) const {
    return parent == nullptr ? nullptr : parent->Owner(name);
  }
};

class Resolver {
 public:
  explicit Resolver(Arena& arena) : arena_(arena) {}

  absl::Status Run(TemplateNode* root) {
    FunctionState* function = NewFunction(nullptr);
    FrameState* frame = NewFrame(nullptr, function);
    See(root->body, frame);
    Bind(root->body, frame);
    Finish(frame, &root->scope);
    root->function.slots = static_cast<uint16_t>(function->slots);
    return error_;
  }

 private:
  FunctionState* NewFunction(const FrameState* outer) {
    functions_.emplace_back();
    functions_.back().depth = outer == nullptr ? 0 : outer->function->depth + 1;
    return &functions_.back();
  }
  FrameState* NewFrame(FrameState* parent, FunctionState* function) {
    frames_.emplace_back();
    frames_.back().parent = parent;
    frames_.back().function = function;
    return &frames_.back();
  }

  // First pass over one scope: which names it loads and stores, in order.
  void See(Body body, FrameState* frame);
  void SeeStmt(const Stmt& stmt, FrameState* frame);
  void SeeIf(const Stmt& stmt, size_t branch, FrameState* frame);
  void MergeBranches(FrameState* frame, std::initializer_list<const Variables*> branches);
  void SeeExpr(const Expr* expr, FrameState* frame);
  void SeeTarget(const Target* target, FrameState* frame, bool as_parameter);
  void Define(FrameState* frame, std::string_view name, Origin origin, const FrameState* alias);
  void LoadName(FrameState* frame, std::string_view name);
  void StoreName(FrameState* frame, std::string_view name);
  SlotRef Declare(FrameState* frame, std::string_view name);

  // Second pass: names to slots, inner scopes.
  void Bind(Body body, FrameState* frame);
  void BindStmt(Stmt* stmt, FrameState* frame);
  void BindFor(Stmt* stmt, FrameState* frame);
  void BindMacro(Stmt* stmt, FrameState* frame);
  void BindExpr(Expr* expr, FrameState* frame);
  void BindTarget(Target* target, FrameState* frame);
  SlotRef Ref(std::string_view name, FrameState* frame);
  void Finish(FrameState* frame, Scope* scope);
  void Fail(int line, std::string_view message) {
    if (error_.ok()) error_ = SyntaxError(line, 1, message);
  }

  Arena& arena_;
  std::deque<FunctionState> functions_;
  std::deque<FrameState> frames_;
  absl::Status error_;
};

void Resolver::Define(FrameState* frame, std::string_view name, Origin origin,
                      const FrameState* alias) {
  const auto [slot, is_new] = frame->slots.try_emplace(name, frame->function->slots);
  if (is_new && ++frame->function->slots > kSlotsMax) {
    --frame->function->slots;
    Fail(1, "template has too many variables");
  }
  Variable& variable = frame->layers.back()[name];
  variable.origin = origin;
  variable.slot = slot->second;
  variable.alias_frame = alias;
}

void Resolver::LoadName(FrameState* frame, std::string_view name) {
  if (frame->Owner(name) == nullptr) Define(frame, name, Origin::kContext, nullptr);
}

void Resolver::StoreName(FrameState* frame, std::string_view name) {
  if (frame->Find(name) == nullptr) {
    const FrameState* outer = frame->OuterOwner(name);
    Define(frame, name, outer != nullptr ? Origin::kAlias : Origin::kMissing, outer);
  }
  frame->layers.back()[name].stored = true;
}

SlotRef Resolver::Declare(FrameState* frame, std::string_view name) {
  Define(frame, name, Origin::kParameter, nullptr);
  frame->layers.back()[name].stored = true;
  return {0, static_cast<uint16_t>(frame->layers.back()[name].slot)};
}

void Resolver::SeeExpr(const Expr* expr, FrameState* frame) {
  auto visit = [this, frame](std::string_view name, bool) {
    LoadName(frame, name);
    return true;
  };
  NameWalk::OverExpr(expr, visit);
}

void Resolver::SeeTarget(const Target* target, FrameState* frame, bool as_parameter) {
  switch (target->kind) {
    case Target::Kind::kName:
      if (as_parameter) {
        Declare(frame, target->name);
      } else {
        StoreName(frame, target->name);
      }
      return;
    case Target::Kind::kAttribute: return LoadName(frame, target->name);
    case Target::Kind::kTuple:
      for (const Target* item : target->items) SeeTarget(item, frame, as_parameter);
  }
}

void Resolver::See(Body body, FrameState* frame) {
  for (const Stmt* stmt : body) SeeStmt(*stmt, frame);
}

void Resolver::SeeStmt(const Stmt& stmt, FrameState* frame) {
  switch (stmt.kind) {
    case StmtKind::kPrint: return SeeExpr(stmt.expr, frame);
    case StmtKind::kIf: return SeeIf(stmt, 0, frame);
    case StmtKind::kFor: return SeeExpr(stmt.loop->iterable, frame);
    case StmtKind::kSet: SeeExpr(stmt.expr, frame); return SeeTarget(stmt.target, frame, false);
    case StmtKind::kSetBlock: return SeeTarget(stmt.target, frame, false);
    case StmtKind::kMacro: return StoreName(frame, stmt.macro->name);
    case StmtKind::kFilterBlock: return SeeExpr(stmt.filter, frame);
    case StmtKind::kText:
    case StmtKind::kGeneration:
    case StmtKind::kBreak:
    case StmtKind::kContinue: return;
  }
}

// An `if` with its `elif`s: each `elif` is an `if` of its own, all of them in the second branch.
void Resolver::SeeIf(const Stmt& stmt, size_t branch, FrameState* frame) {
  SeeExpr(stmt.branches[branch].condition, frame);
  const auto in_layer = [frame](auto&& see) {
    frame->layers.emplace_back();
    see();
    Variables seen = std::move(frame->layers.back());
    frame->layers.pop_back();
    return seen;
  };
  const Variables body = in_layer([&] { See(stmt.branches[branch].body, frame); });
  if (branch > 0) return MergeBranches(frame, {&body});
  const Variables elifs = in_layer([&] {
    for (size_t i = 1; i < stmt.branches.size(); ++i) SeeIf(stmt, i, frame);
  });
  const Variables orelse = in_layer([&] { See(stmt.orelse, frame); });
  MergeBranches(frame, {&body, &elifs, &orelse});
}

void Resolver::MergeBranches(FrameState* frame, std::initializer_list<const Variables*> branches) {
  std::vector<std::string_view> newly_stored;
  for (const Variables* branch : branches) {
    for (const auto& [name, variable] : *branch) {
      if (variable.stored && !frame->Stored(name)) newly_stored.push_back(name);
    }
  }
  for (const Variables* branch : branches) {
    for (const auto& [name, variable] : *branch) {
      Variable& merged = frame->layers.back()[name];
      const bool stored = merged.stored || variable.stored;
      if (variable.origin != Origin::kNone) merged = variable;
      merged.stored = stored;
    }
  }
  // A name stored in some branch only: where no branch stored it, its outer meaning holds.
  for (const std::string_view name : newly_stored) {
    const FrameState* outer = frame->OuterOwner(name);
    Define(frame, name, outer != nullptr ? Origin::kAlias : Origin::kContext, outer);
  }
}

SlotRef Resolver::Ref(std::string_view name, FrameState* frame) {
  const FrameState* owner = frame->Owner(name);
  if (owner == nullptr) {
    LoadName(frame, name);
    owner = frame;
  }
  return {static_cast<uint16_t>(frame->function->depth - owner->function->depth),
          static_cast<uint16_t>(owner->Find(name)->slot)};
}

void Resolver::BindExpr(Expr* expr, FrameState* frame) {
  if (expr == nullptr) return;
  if (expr->kind == ExprKind::kName) expr->slot = Ref(expr->text, frame);
  for (Expr* child : {expr->a, expr->b, expr->c, expr->d}) BindExpr(child, frame);
  for (Expr* item : expr->items) BindExpr(item, frame);
  for (const NamedExpr& argument : expr->named) BindExpr(argument.value, frame);
  for (const CompareStep& step : expr->steps) BindExpr(step.operand, frame);
}

void Resolver::BindTarget(Target* target, FrameState* frame) {
  if (target->kind == Target::Kind::kTuple) {
    for (Target* item : target->items) BindTarget(item, frame);
  } else {
    target->slot = Ref(target->name, frame);
  }
}

void Resolver::Bind(Body body, FrameState* frame) {
  for (Stmt* stmt : body) BindStmt(stmt, frame);
}

void Resolver::BindStmt(Stmt* stmt, FrameState* frame) {
  switch (stmt->kind) {
    case StmtKind::kText:
    case StmtKind::kBreak:
    case StmtKind::kContinue: return;
    case StmtKind::kPrint: return BindExpr(stmt->expr, frame);
    case StmtKind::kIf:
      for (const Branch& branch : stmt->branches) {
        BindExpr(branch.condition, frame);
        Bind(branch.body, frame);
      }
      return Bind(stmt->orelse, frame);
    case StmtKind::kFor: return BindFor(stmt, frame);
    case StmtKind::kSet: BindExpr(stmt->expr, frame); return BindTarget(stmt->target, frame);
    case StmtKind::kSetBlock:
    case StmtKind::kFilterBlock: {
      FrameState* inner = NewFrame(frame, frame->function);
      See(stmt->body, inner);
      if (stmt->filter != nullptr) SeeExpr(stmt->filter, inner);
      Bind(stmt->body, inner);
      BindExpr(stmt->filter, inner);
      if (stmt->target != nullptr) BindTarget(stmt->target, frame);
      return Finish(inner, &stmt->scope);
    }
    case StmtKind::kMacro: return BindMacro(stmt, frame);
    case StmtKind::kGeneration: {
      FunctionState* function = NewFunction(frame);
      FrameState* inner = NewFrame(frame, function);
      See(stmt->body, inner);
      Bind(stmt->body, inner);
      Finish(inner, &stmt->scope);
      stmt->function.slots = static_cast<uint16_t>(function->slots);
      return;
    }
  }
}

void Resolver::BindFor(Stmt* stmt, FrameState* frame) {
  ForNode& loop = *stmt->loop;
  Stmt* const self[] = {stmt};
  if (Stores(self, "loop")) return Fail(stmt->line, "cannot assign to the special name 'loop'");
  BindExpr(loop.iterable, frame);
  FunctionState* function = loop.recursive ? NewFunction(frame) : frame->function;
  FrameState* body = NewFrame(frame, function);
  loop.uses_loop = loop.recursive || LoadsFirst(loop.body, "loop");
  if (loop.uses_loop) loop.loop_slot = Declare(body, "loop");
  SeeTarget(loop.target, body, true);
  See(loop.body, body);
  FrameState* orelse = NewFrame(frame, function);
  See(loop.orelse, orelse);
  if (loop.test != nullptr) {
    FrameState* test = NewFrame(frame, function);
    SeeTarget(loop.test_target, test, true);
    SeeExpr(loop.test, test);
    BindTarget(loop.test_target, test);
    BindExpr(loop.test, test);
    Finish(test, &loop.test_scope);
  }
  BindTarget(loop.target, body);
  Bind(loop.body, body);
  Bind(loop.orelse, orelse);
  Finish(body, &loop.body_scope);
  Finish(orelse, &loop.else_scope);
  if (loop.recursive) loop.function.slots = static_cast<uint16_t>(function->slots);
}

void Resolver::BindMacro(Stmt* stmt, FrameState* frame) {
  MacroNode& macro = *stmt->macro;
  stmt->target->slot = Ref(macro.name, frame);
  FunctionState* function = NewFunction(frame);
  FrameState* inner = NewFrame(frame, function);
  bool named_varargs = false;
  bool named_kwargs = false;
  bool named_caller = false;
  for (const Target* parameter : macro.parameters) {
    SeeTarget(parameter, inner, true);
    named_varargs = named_varargs || parameter->name == "varargs";
    named_kwargs = named_kwargs || parameter->name == "kwargs";
    named_caller = named_caller || parameter->name == "caller";
  }
  for (const Expr* value : macro.defaults) SeeExpr(value, inner);
  See(macro.body, inner);
  macro.takes_caller = !named_caller && LoadsFirst(macro.body, "caller");
  if (macro.takes_caller) macro.caller_slot = Declare(inner, "caller");
  macro.takes_kwargs = !named_kwargs && LoadsFirst(macro.body, "kwargs");
  if (macro.takes_kwargs) macro.kwargs_slot = Declare(inner, "kwargs");
  macro.takes_varargs = !named_varargs && LoadsFirst(macro.body, "varargs");
  if (macro.takes_varargs) macro.varargs_slot = Declare(inner, "varargs");
  for (Target* parameter : macro.parameters) BindTarget(parameter, inner);
  for (Expr* value : macro.defaults) BindExpr(value, inner);
  Bind(macro.body, inner);
  Finish(inner, &macro.scope);
  macro.function.slots = static_cast<uint16_t>(function->slots);
}

void Resolver::Finish(FrameState* frame, Scope* scope) {
  std::vector<Load> loads;
  for (const auto& [name, variable] : frame->layers.front()) {
    if (variable.origin == Origin::kNone || variable.origin == Origin::kParameter) continue;
    Load load;
    load.slot = static_cast<uint16_t>(variable.slot);
    load.name = name;
    load.action = variable.origin == Origin::kContext ? LoadAction::kContext
                  : variable.origin == Origin::kAlias ? LoadAction::kAlias
                                                      : LoadAction::kMissing;
    if (variable.origin == Origin::kAlias) {
      const FrameState& outer = *variable.alias_frame;
      load.alias = {static_cast<uint16_t>(frame->function->depth - outer.function->depth),
                    static_cast<uint16_t>(outer.slots.at(name))};
    }
    loads.push_back(load);
  }
  const Load* kept = arena_.CopyArray(loads.data(), loads.size());
  if (kept == nullptr) return Fail(1, "template takes more memory than the limit");
  scope->loads = {kept, loads.size()};
}

}  // namespace

absl::Status ResolveScopes(TemplateNode* root, Arena& arena) { return Resolver(arena).Run(root); }

}  // namespace morphserve::jinja
