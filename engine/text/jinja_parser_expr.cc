// Expressions of the parser, by falling precedence as the reference has it.
#include <algorithm>
#include <iterator>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_library.h"
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
