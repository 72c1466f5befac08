// Which names a part of the tree loads and stores, in the order the reference looks at them.
// Pure functions, any thread.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>

#include "engine/text/jinja_ast.h"

namespace morphserve::jinja {

// Walks a body in the order of the reference and tells of each use of a name whether it loads or
// stores, until the visitor returns false.
class NameWalk {
 public:
  template <typename Visit>
  static bool Over(std::span<Stmt* const> body, Visit& visit) {
    return std::all_of(body.begin(), body.end(),
                       [&visit](const Stmt* stmt) { return OverStmt(*stmt, visit); });
  }

  template <typename Visit>
  static bool OverExpr(const Expr* expr, Visit& visit) {
    if (expr == nullptr) return true;
    if (expr->kind == ExprKind::kName && !visit(expr->text, false)) return false;
    for (const Expr* child : {expr->a, expr->b, expr->c, expr->d}) {
      if (!OverExpr(child, visit)) return false;
    }
    for (const Expr* item : expr->items) {
      if (!OverExpr(item, visit)) return false;
    }
    for (const NamedExpr& argument : expr->named) {
      if (!OverExpr(argument.value, visit)) return false;
    }
    for (const CompareStep& step : expr->steps) {
      if (!OverExpr(step.operand, visit)) return false;
    }
    return true;
  }

  template <typename Visit>
  static bool OverTarget(const Target* target, Visit& visit) {
    if (target == nullptr || target->kind == Target::Kind::kAttribute) return true;
    if (target->kind == Target::Kind::kName) return visit(target->name, true);
    return std::all_of(target->items.begin(), target->items.end(),
                       [&visit](const Target* item) { return OverTarget(item, visit); });
  }

 private:
  template <typename Visit>
  static bool OverStmt(const Stmt& stmt, Visit& visit) {
    switch (stmt.kind) {
      case StmtKind::kText:
      case StmtKind::kBreak:
      case StmtKind::kContinue: return true;
      case StmtKind::kPrint: return OverExpr(stmt.expr, visit);
      case StmtKind::kIf:
        for (const Branch& branch : stmt.branches) {
          if (!OverExpr(branch.condition, visit) || !Over(branch.body, visit)) return false;
        }
        return Over(stmt.orelse, visit);
      case StmtKind::kFor:
        return OverTarget(stmt.loop->target, visit) && OverExpr(stmt.loop->iterable, visit) &&
               Over(stmt.loop->body, visit) && Over(stmt.loop->orelse, visit) &&
               OverExpr(stmt.loop->test, visit);
      case StmtKind::kSet: return OverTarget(stmt.target, visit) && OverExpr(stmt.expr, visit);
      case StmtKind::kSetBlock:
        return OverTarget(stmt.target, visit) && OverExpr(stmt.filter, visit) &&
               Over(stmt.body, visit);
      case StmtKind::kMacro:
        for (const Target* parameter : stmt.macro->parameters) {
          if (!OverTarget(parameter, visit)) return false;
        }
        for (const Expr* value : stmt.macro->defaults) {
          if (!OverExpr(value, visit)) return false;
        }
        return Over(stmt.macro->body, visit);
      case StmtKind::kFilterBlock: return Over(stmt.body, visit) && OverExpr(stmt.filter, visit);
      case StmtKind::kGeneration: return Over(stmt.body, visit);
    }
    return true;
  }
};

// Whether `name` is loaded in `body` before anything there stores it.
inline bool LoadsFirst(std::span<Stmt* const> body, std::string_view name) {
  bool loads = false;
  auto visit = [&loads, name](std::string_view used, bool stores) {
    if (used != name) return true;
    loads = !stores;
    return false;
  };
  NameWalk::Over(body, visit);
  return loads;
}

inline bool Stores(std::span<Stmt* const> body, std::string_view name) {
  bool found = false;
  auto visit = [&found, name](std::string_view used, bool stores) {
    found = found || (stores && used == name);
    return !found;
  };
  NameWalk::Over(body, visit);
  return found;
}

}  // namespace morphserve::jinja
