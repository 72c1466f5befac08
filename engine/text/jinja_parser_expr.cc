// Expressions of the parser, by falling precedence as the reference has it.
#include <algorithm>
#include <iterator>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_parser.h"

namespace morphserve::jinja {

bool Parser::AtTupleEnd(std::string_view end_name) const {
  const Token& token = Now();
  return token.kind == TokenKind::kPrintEnd || token.kind == TokenKind::kBlockEnd ||
         token.IsOperator(")") || (!end_name.empty() && token.IsName(end_name));
}

Expr* Parser::ParseTuple(bool with_conditional, bool parenthesised, std::string_view end_name) {
  int line = Now().line;
  std::vector<Expr*> items;
  bool is_tuple = false;
  while (true) {
    if (!items.empty() && !ExpectOperator(",")) return nullptr;
    if (AtTupleEnd(end_name)) break;
    DepthGuard guard(*this);
    if (!guard.ok()) return nullptr;
    Expr* item = with_conditional ? ParseConditional() : ParseOr();
    if (item == nullptr) return nullptr;
    items.push_back(item);
    if (!Now().IsOperator(",")) break;
    is_tuple = true;
    line = Now().line;
  }
  if (!is_tuple) {
    if (!items.empty()) return items[0];
    if (!parenthesised) return FailUnexpected("an expression"), nullptr;
  }
  Expr* tuple = NewExpr(ExprKind::kTuple, line);
  if (tuple == nullptr || !KeepAll(items, &tuple->items)) return nullptr;
  return Close(tuple);
}

Expr* Parser::ParseExpression() {
  DepthGuard guard(*this);
  return guard.ok() ? ParseConditional() : nullptr;
}

Expr* Parser::ParseConditional() {
  int line = Now().line;
  Expr* expr = ParseOr();
  while (expr != nullptr && SkipName("if")) {
    Expr* node = NewExpr(ExprKind::kConditional, line);
    if (node == nullptr) return nullptr;
    node->a = expr;
    node->b = ParseOr();
    if (node->b == nullptr) return nullptr;
    if (SkipName("else")) {
      node->c = ParseExpression();
      if (node->c == nullptr) return nullptr;
    }
    expr = Close(node);
    line = Now().line;
  }
  return expr;
}

Expr* Parser::ParseOr() {
  int line = Now().line;
  Expr* left = ParseAnd();
  while (left != nullptr && SkipName("or")) {
    Expr* node = NewExpr(ExprKind::kOr, line);
    if (node == nullptr) return nullptr;
    node->a = left;
    node->b = ParseAnd();
    if (node->b == nullptr) return nullptr;
    left = Close(node);
    line = Now().line;
  }
  return left;
}

Expr* Parser::ParseAnd() {
  int line = Now().line;
  Expr* left = ParseNot();
  while (left != nullptr && SkipName("and")) {
    Expr* node = NewExpr(ExprKind::kAnd, line);
    if (node == nullptr) return nullptr;
    node->a = left;
    node->b = ParseNot();
    if (node->b == nullptr) return nullptr;
    left = Close(node);
    line = Now().line;
  }
  return left;
}

Expr* Parser::ParseNot() {
  if (!Now().IsName("not")) return ParseCompare();
  DepthGuard guard(*this);
  if (!guard.ok()) return nullptr;
  Expr* node = NewExpr(ExprKind::kNot, Now().line);
  Step();
  if (node == nullptr) return nullptr;
  node->a = ParseNot();
  return node->a == nullptr ? nullptr : Close(node);
}

namespace {

bool ToCompareOp(const Token& token, CompareOp* op) {
  static constexpr std::pair<std::string_view, CompareOp> kOps[] = {
      {"==", CompareOp::kEq}, {"!=", CompareOp::kNe}, {"<", CompareOp::kLt},
      {"<=", CompareOp::kLe}, {">", CompareOp::kGt},  {">=", CompareOp::kGe}};
  for (const auto& [text, value] : kOps) {
    if (!token.IsOperator(text)) continue;
    *op = value;
    return true;
  }
  return false;
}

}  // namespace

Expr* Parser::ParseCompare() {
  const int line = Now().line;
  Expr* expr = ParseSum();
  if (expr == nullptr) return nullptr;
  std::vector<CompareStep> steps;
  while (true) {
    CompareStep step;
    if (ToCompareOp(Now(), &step.op)) {
      Step();
    } else if (SkipName("in")) {
      step.op = CompareOp::kIn;
    } else if (Now().IsName("not") && Ahead().IsName("in")) {
      Step();
      Step();
      step.op = CompareOp::kNotIn;
    } else {
      break;
    }
    step.operand = ParseSum();
    if (step.operand == nullptr) return nullptr;
    steps.push_back(step);
  }
  if (steps.empty()) return expr;
  Expr* node = NewExpr(ExprKind::kCompare, line);
  if (node == nullptr) return nullptr;
  node->a = expr;
  if (!KeepAll(steps, &node->steps)) return nullptr;
  return Close(node);
}

Expr* Parser::Binary(BinaryOp op, Expr* a, Expr* b, int line) {
  Expr* node = a == nullptr || b == nullptr ? nullptr : NewExpr(ExprKind::kBinary, line);
  if (node == nullptr) return nullptr;
  node->op = op;
  node->a = a;
  node->b = b;
  return Close(node);
}

Expr* Parser::ParseSum() {
  int line = Now().line;
  Expr* left = ParseConcat();
  while (left != nullptr && (Now().IsOperator("+") || Now().IsOperator("-"))) {
    const BinaryOp op = Now().IsOperator("+") ? BinaryOp::kAdd : BinaryOp::kSub;
    Step();
    left = Binary(op, left, ParseConcat(), line);
    line = Now().line;
  }
  return left;
}

Expr* Parser::ParseConcat() {
  const int line = Now().line;
  Expr* first = ParseProduct();
  if (first == nullptr || !Now().IsOperator("~")) return first;
  std::vector<Expr*> items = {first};
  while (SkipOperator("~")) {
    Expr* item = ParseProduct();
    if (item == nullptr) return nullptr;
    items.push_back(item);
  }
  Expr* node = NewExpr(ExprKind::kConcat, line);
  if (node == nullptr || !KeepAll(items, &node->items)) return nullptr;
  return Close(node);
}

Expr* Parser::ParseProduct() {
  static constexpr std::pair<std::string_view, BinaryOp> kOps[] = {{"*", BinaryOp::kMul},
                                                                   {"/", BinaryOp::kDiv},
                                                                   {"//", BinaryOp::kFloorDiv},
                                                                   {"%", BinaryOp::kMod}};
  int line = Now().line;
  Expr* left = ParsePower();
  while (left != nullptr) {
    const auto* found = std::find_if(std::begin(kOps), std::end(kOps),
                                     [this](const auto& op) { return Now().IsOperator(op.first); });
    if (found == std::end(kOps)) break;
    Step();
    left = Binary(found->second, left, ParsePower(), line);
    line = Now().line;
  }
  return left;
}

Expr* Parser::ParsePower() {
  int line = Now().line;
  Expr* left = ParseUnary(true);
  while (left != nullptr && SkipOperator("**")) {
    left = Binary(BinaryOp::kPow, left, ParseUnary(true), line);
    line = Now().line;
  }
  return left;
}

Expr* Parser::ParseUnary(bool with_filter) {
  Expr* node = nullptr;
  if (Now().IsOperator("-") || Now().IsOperator("+")) {
    DepthGuard guard(*this);
    if (!guard.ok()) return nullptr;
    node = NewExpr(Now().IsOperator("-") ? ExprKind::kNegate : ExprKind::kPlus, Now().line);
    Step();
    if (node == nullptr) return nullptr;
    node->a = ParseUnary(false);
    if (node->a == nullptr) return nullptr;
    node = Close(node);
  } else {
    node = ParsePrimary();
  }
  if (node != nullptr) node = ParsePostfix(node);
  if (node != nullptr && with_filter) node = ParseFilters(node);
  return node;
}

Expr* Parser::ParsePrimary() {
  const Token& token = Now();
  switch (token.kind) {
    case TokenKind::kName: return ParsePrimaryName();
    case TokenKind::kString: return ParseStringConstant();
    case TokenKind::kInteger: Step(); return Constant(Value::Int(token.integer), token.line);
    case TokenKind::kFloat: Step(); return Constant(Value::Float(token.number), token.line);
    default: break;
  }
  if (token.IsOperator("(")) {
    Step();
    Expr* inner = ParseTuple(true, true, "");
    return inner != nullptr && ExpectOperator(")") ? inner : nullptr;
  }
  if (token.IsOperator("[")) return ParseListLiteral();
  if (token.IsOperator("{")) return ParseDictLiteral();
  return FailUnexpected("an expression"), nullptr;
}

Expr* Parser::ParsePrimaryName() {
  const Token& token = Now();
  Step();
  const std::string& name = token.text;
  if (name == "true" || name == "True") return Constant(Value::Bool(true), token.line);
  if (name == "false" || name == "False") return Constant(Value::Bool(false), token.line);
  if (name == "none" || name == "None") return Constant(Value::None(), token.line);
  Expr* node = NewExpr(ExprKind::kName, token.line);
  if (node == nullptr) return nullptr;
  node->text = Keep(name);
  return Close(node);
}

Expr* Parser::ParseStringConstant() {
  const int line = Now().line;
  std::string text;
  while (Now().kind == TokenKind::kString) {
    text += Now().text;
    Step();
  }
  const Str* str = KeepStr(text);
  return str == nullptr ? nullptr : Constant(Value::String(str), line);
}

Expr* Parser::ParseListLiteral() {
  Expr* node = NewExpr(ExprKind::kList, Now().line);
  Step();
  std::vector<Expr*> items;
  while (!Now().IsOperator("]")) {
    if (!items.empty() && !ExpectOperator(",")) return nullptr;
    if (Now().IsOperator("]")) break;
    Expr* item = ParseExpression();
    if (item == nullptr) return nullptr;
    items.push_back(item);
  }
  Step();
  if (node == nullptr || !KeepAll(items, &node->items)) return nullptr;
  return Close(node);
}

Expr* Parser::ParseDictLiteral() {
  Expr* node = NewExpr(ExprKind::kDict, Now().line);
  Step();
  std::vector<Expr*> items;
  while (!Now().IsOperator("}")) {
    if (!items.empty() && !ExpectOperator(",")) return nullptr;
    if (Now().IsOperator("}")) break;
    Expr* key = ParseExpression();
    if (key == nullptr || !ExpectOperator(":")) return nullptr;
    Expr* value = ParseExpression();
    if (value == nullptr) return nullptr;
    items.push_back(key);
    items.push_back(value);
  }
  Step();
  if (node == nullptr || !KeepAll(items, &node->items)) return nullptr;
  return Close(node);
}

Expr* Parser::NewExpr(ExprKind kind, int line) {
  Expr* expr = arena_.New<Expr>();
  if (expr == nullptr) return FailMemory(), nullptr;
  expr->kind = kind;
  expr->line = line;
  return expr;
}

Expr* Parser::Constant(const Value& value, int line) {
  Expr* expr = NewExpr(ExprKind::kConstant, line);
  if (expr != nullptr) expr->constant = value;
  return expr;
}

Expr* Parser::Close(Expr* expr) {
  int below = 0;
  const auto see = [&below](const Expr* child) {
    if (child != nullptr) below = std::max<int>(below, child->height);
  };
  for (const Expr* child : {expr->a, expr->b, expr->c, expr->d}) see(child);
  for (const Expr* child : expr->items) see(child);
  for (const NamedExpr& argument : expr->named) see(argument.value);
  for (const CompareStep& step : expr->steps) see(step.operand);
  if (below + 1 > kExprHeightMax)
    return Fail("expression is too long; limit is 256 levels"), nullptr;
  expr->height = static_cast<uint16_t>(below + 1);
  return error_.ok() ? expr : nullptr;
}

}  // namespace morphserve::jinja
