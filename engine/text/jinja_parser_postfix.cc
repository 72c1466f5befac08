// What follows a primary expression: subscripts, slices, calls, filters, tests.
#include "absl/strings/str_format.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_parser.h"

namespace morphserve::jinja {

Expr* Parser::ParsePostfix(Expr* expr) {
  while (expr != nullptr) {
    if (Now().IsOperator(".") || Now().IsOperator("[")) {
      expr = ParseSubscript(expr);
    } else if (Now().IsOperator("(")) {
      Expr* call = NewExpr(ExprKind::kCall, Now().line);
      if (call == nullptr) return nullptr;
      call->a = expr;
      expr = ParseArguments(call) ? Close(call) : nullptr;
    } else {
      break;
    }
  }
  return expr;
}

Expr* Parser::ParseFilters(Expr* expr) {
  while (expr != nullptr) {
    if (SkipOperator("|")) {
      expr = ParseFilter(expr);
    } else if (Now().IsName("is")) {
      expr = ParseTest(expr);
    } else if (Now().IsOperator("(")) {
      Expr* call = NewExpr(ExprKind::kCall, Now().line);
      if (call == nullptr) return nullptr;
      call->a = expr;
      expr = ParseArguments(call) ? Close(call) : nullptr;
    } else {
      break;
    }
  }
  return expr;
}

Expr* Parser::ParseSubscript(Expr* object) {
  const int line = Now().line;
  if (SkipOperator(".")) {
    const Token& token = Now();
    if (token.kind == TokenKind::kInteger) {
      Expr* node = NewExpr(ExprKind::kSubscript, line);
      if (node == nullptr) return nullptr;
      Step();
      node->a = object;
      node->b = Constant(Value::Int(token.integer), line);
      return node->b == nullptr ? nullptr : Close(node);
    }
    if (token.kind != TokenKind::kName) return FailUnexpected("a name or number"), nullptr;
    Expr* node = NewExpr(ExprKind::kAttribute, line);
    if (node == nullptr) return nullptr;
    node->a = object;
    node->text = Keep(token.text);
    Step();
    return Close(node);
  }
  Step();  // [
  Expr* start = nullptr;
  if (!Now().IsOperator(":")) {
    start = ParseExpression();
    if (start == nullptr) return nullptr;
  }
  if (Now().IsOperator(":")) return ParseSlice(object, start);
  if (Now().IsOperator(",")) start = ParseTupleKey(start);
  if (start == nullptr || !ExpectOperator("]")) return nullptr;
  Expr* node = NewExpr(ExprKind::kSubscript, line);
  if (node == nullptr) return nullptr;
  node->a = object;
  node->b = start;
  return Close(node);
}

// a[b, c]: the key is a tuple.
Expr* Parser::ParseTupleKey(Expr* first) {
  Expr* tuple = NewExpr(ExprKind::kTuple, Now().line);
  std::vector<Expr*> items = {first};
  while (SkipOperator(",")) {
    Expr* item = ParseExpression();
    if (item == nullptr) return nullptr;
    items.push_back(item);
  }
  return tuple != nullptr && KeepAll(items, &tuple->items) ? Close(tuple) : nullptr;
}

Expr* Parser::ParseSlice(Expr* object, Expr* start) {
  Expr* node = NewExpr(ExprKind::kSlice, Now().line);
  if (node == nullptr) return nullptr;
  node->a = object;
  node->b = start;
  Step();  // :
  if (!Now().IsOperator(":") && !Now().IsOperator("]")) {
    node->c = ParseExpression();
    if (node->c == nullptr) return nullptr;
  }
  if (SkipOperator(":") && !Now().IsOperator("]")) {
    node->d = ParseExpression();
    if (node->d == nullptr) return nullptr;
  }
  return ExpectOperator("]") ? Close(node) : nullptr;
}

bool Parser::ParseArguments(Expr* call) {
  Step();  // (
  std::vector<Expr*> items;
  std::vector<NamedExpr> named;
  bool first = true;
  while (!Now().IsOperator(")")) {
    if (!first && !ExpectOperator(",")) return false;
    if (!first && Now().IsOperator(")")) break;
    first = false;
    if (Now().IsOperator("*") || Now().IsOperator("**")) {
      return Fail("unpacking of arguments is not supported");
    }
    if (Now().kind == TokenKind::kName && Ahead().IsOperator("=")) {
      NamedExpr argument;
      argument.name = Keep(Now().text);
      for (const NamedExpr& other : named) {
        if (other.name == argument.name) return Fail("argument given twice");
      }
      Step();
      Step();
      argument.value = ParseExpression();
      if (argument.value == nullptr) return false;
      named.push_back(argument);
    } else {
      if (!named.empty()) return Fail("positional argument behind a named one");
      Expr* item = ParseExpression();
      if (item == nullptr) return false;
      items.push_back(item);
    }
  }
  Step();
  return KeepAll(items, &call->items) && KeepAll(named, &call->named);
}

bool Parser::ParseDottedName(std::string_view* name) {
  std::string dotted;
  do {
    if (Now().kind != TokenKind::kName) return FailUnexpected("a name");
    if (!dotted.empty()) dotted += '.';
    dotted += Now().text;
    Step();
  } while (SkipOperator("."));
  *name = Keep(dotted);
  return error_.ok();
}

Expr* Parser::ParseFilter(Expr* input) {
  Expr* node = NewExpr(ExprKind::kFilter, Now().line);
  if (node == nullptr || !ParseDottedName(&node->text)) return nullptr;
  node->a = input;
  node->filter = FindFilter(node->text);
  if (node->filter == nullptr) {
    unknown_names_.push_back(absl::StrFormat("filter '%s' (line %d)", node->text, node->line));
  }
  if (Now().IsOperator("(") && !ParseArguments(node)) return nullptr;
  return Close(node);
}

Expr* Parser::ParseTest(Expr* input) {
  const int line = Now().line;
  Step();  // is
  const bool negated = SkipName("not");
  Expr* node = NewExpr(ExprKind::kTest, line);
  if (node == nullptr || !ParseDottedName(&node->text)) return nullptr;
  node->a = input;
  node->test = FindTest(node->text);
  if (node->test == nullptr) {
    unknown_names_.push_back(absl::StrFormat("test '%s' (line %d)", node->text, node->line));
  }
  const Token& next = Now();
  const bool is_operand = next.kind == TokenKind::kString || next.kind == TokenKind::kInteger ||
                          next.kind == TokenKind::kFloat || next.IsOperator("[") ||
                          next.IsOperator("{") ||
                          (next.kind == TokenKind::kName && !next.IsName("else") &&
                           !next.IsName("or") && !next.IsName("and"));
  if (next.IsOperator("(")) {
    if (!ParseArguments(node)) return nullptr;
  } else if (is_operand) {
    if (next.IsName("is")) return Fail("tests cannot be chained with 'is'"), nullptr;
    DepthGuard guard(*this);
    Expr* operand = guard.ok() ? ParsePrimary() : nullptr;
    if (operand != nullptr) operand = ParsePostfix(operand);
    if (operand == nullptr || !KeepAll(std::vector<Expr*>{operand}, &node->items)) return nullptr;
  }
  node = Close(node);
  if (!negated || node == nullptr) return node;
  Expr* inverse = NewExpr(ExprKind::kNot, line);
  if (inverse == nullptr) return nullptr;
  inverse->a = node;
  return Close(inverse);
}

}  // namespace morphserve::jinja
