// The parsed form of a template. Nodes live in the arena of their template and are immutable once
// the scopes are resolved (jinja_scope.h), so that any thread may evaluate them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

// A variable's place: `hops` function activations up, then a slot.
struct SlotRef {
  uint16_t hops = 0;
  uint16_t slot = 0;
};

enum class LoadAction : uint8_t { kMissing, kContext, kAlias };

// What a scope does to one of its variables when it is entered.
struct Load {
  uint16_t slot = 0;
  LoadAction action = LoadAction::kMissing;
  SlotRef alias;          // kAlias: copied from here.
  std::string_view name;  // kContext: looked up in the input of the rendering.
};

struct Scope {
  std::span<const Load> loads;
};

// A body with an activation of its own: the template, a macro, a recursive loop, a generation
// block.
struct FunctionInfo {
  uint16_t slots = 0;
};

enum class ExprKind : uint8_t {
  kConstant,
  kName,
  kTuple,
  kList,
  kDict,       // items: key, value, key, value, ...
  kAttribute,  // a.text
  kSubscript,  // a[b]
  kSlice,      // a[b:c:d], each of b, c, d may be null
  kCall,       // a(items, named)
  kFilter,     // a | text(items, named); a is null in a filter block
  kTest,       // a is text(items, named)
  kNot,
  kNegate,
  kPlus,
  kBinary,  // a op b
  kAnd,
  kOr,
  kConcat,       // items joined by ~
  kCompare,      // a, then op and operand pairs
  kConditional,  // a if b else c; c may be null
};

enum class BinaryOp : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
enum class CompareOp : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

struct Expr;

struct NamedExpr {
  std::string_view name;
  Expr* value = nullptr;
};

struct CompareStep {
  CompareOp op = CompareOp::kEq;
  Expr* operand = nullptr;
};

struct FilterEntry;  // jinja_library.h
struct TestEntry;

struct Expr {
  ExprKind kind = ExprKind::kConstant;
  BinaryOp op = BinaryOp::kAdd;
  uint16_t height = 1;  // Of the tree below; bounded by the parser.
  int line = 0;
  Expr* a = nullptr;
  Expr* b = nullptr;
  Expr* c = nullptr;
  Expr* d = nullptr;
  std::span<Expr* const> items;
  std::span<const NamedExpr> named;
  std::span<const CompareStep> steps;
  std::string_view text;
  Value constant;
  SlotRef slot;
  const FilterEntry* filter = nullptr;  // Null: unknown, raises when reached.
  const TestEntry* test = nullptr;
};

enum class StmtKind : uint8_t {
  kText,   // constant template data
  kPrint,  // expr
  kIf,     // branches, orelse
  kFor,
  kSet,       // target = expr
  kSetBlock,  // target, filter (may be null), body
  kMacro,
  kFilterBlock,  // filter, body
  kGeneration,   // body
  kBreak,
  kContinue,
};

struct Stmt;

// Where an assignment goes.
struct Target {
  enum class Kind : uint8_t { kName, kAttribute, kTuple };
  Kind kind = Kind::kName;
  int line = 0;
  std::string_view name;  // Variable, or the namespace of an attribute.
  std::string_view attribute;
  std::span<Target* const> items;
  SlotRef slot;
};

struct Branch {
  Expr* condition = nullptr;
  std::span<Stmt* const> body;
};

struct MacroNode {
  std::string_view name;
  std::span<Target* const> parameters;
  std::span<Expr* const> defaults;  // Of the last parameters.
  std::span<Stmt* const> body;
  Scope scope;
  FunctionInfo function;
  bool takes_varargs = false;
  bool takes_kwargs = false;
  bool takes_caller = false;
  SlotRef varargs_slot;
  SlotRef kwargs_slot;
  SlotRef caller_slot;
};

struct ForNode {
  Target* target = nullptr;
  Target* test_target = nullptr;  // The same target, bound in the filter's scope.
  Expr* iterable = nullptr;
  Expr* test = nullptr;  // Null: no inline if.
  std::span<Stmt* const> body;
  std::span<Stmt* const> orelse;
  bool recursive = false;
  bool uses_loop = false;
  Scope body_scope;
  Scope test_scope;
  Scope else_scope;
  SlotRef loop_slot;
  FunctionInfo function;  // When recursive.
};

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  const Str* text = nullptr;
  Expr* expr = nullptr;
  Expr* filter = nullptr;
  Target* target = nullptr;
  std::span<const Branch> branches;
  std::span<Stmt* const> body;
  std::span<Stmt* const> orelse;
  MacroNode* macro = nullptr;
  ForNode* loop = nullptr;
  Scope scope;            // kSetBlock, kFilterBlock, kGeneration
  FunctionInfo function;  // kGeneration
};

struct TemplateNode {
  std::span<Stmt* const> body;
  Scope scope;
  FunctionInfo function;
};

}  // namespace morphserve::jinja
