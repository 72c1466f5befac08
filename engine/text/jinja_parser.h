// Parser of the template language: tokens to the tree of jinja_ast.h, scopes resolved. It accepts
// what chat templates use and refuses every other construct by
// name. Pure function, any thread; the tree lives in the caller's arena.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/jinja_arena.h"
#include "engine/text/jinja_ast.h"
#include "engine/text/jinja_lexer.h"

namespace morphserve::jinja {

inline constexpr size_t kSourceBytesMax = 256 * 1024;
inline constexpr int kParseDepthMax = 128;       // Nested statements and brackets.
inline constexpr uint16_t kExprHeightMax = 256;  // Long chains such as a + b + c + ...

struct ParsedTemplate {
  const TemplateNode* root = nullptr;
  // Filters and tests that do not exist: reported at load, an error when reached.
  std::vector<std::string> unknown_names;
};

// INVALID_ARGUMENT with line, column and what was wrong there. `source` must be valid UTF-8.
absl::StatusOr<ParsedTemplate> ParseTemplate(std::string_view source, Arena& arena);

// The machinery of ParseTemplate. Every method returns null (or false) after an error.
class Parser {
 public:
  Parser(std::vector<Token> tokens, Arena& arena) : tokens_(std::move(tokens)), arena_(arena) {}

  absl::StatusOr<ParsedTemplate> Run();

 private:
  using Statements = std::vector<Stmt*>;
  class DepthGuard;

  // Statements (jinja_parser.cc).
  bool ParseBody(const std::vector<std::string_view>& ends, Statements* out);
  bool ParseBlockBody(const std::vector<std::string_view>& ends, std::span<Stmt* const>* out);
  Stmt* ParseStatement();
  Stmt* ParseFor(Stmt* stmt);
  Stmt* ParseIf(Stmt* stmt);
  Stmt* ParseSet(Stmt* stmt);
  Stmt* ParseMacro(Stmt* stmt);
  bool ParseParameters(MacroNode* macro);
  Stmt* ParseFilterBlock(Stmt* stmt);
  Stmt* ParseGeneration(Stmt* stmt);
  Stmt* ParseLoopControl(Stmt* stmt, StmtKind kind);
  Target* ParseTarget(bool allow_attribute, bool allow_tuple);
  Target* ParseTargetItem(bool allow_attribute);

  // Expressions (jinja_parser_expr.cc), loosest first.
  Expr* ParseTuple(bool with_conditional, bool parenthesised, std::string_view end_name);
  Expr* ParseExpression();
  Expr* ParseConditional();
  Expr* ParseOr();
  Expr* ParseAnd();
  Expr* ParseNot();
  Expr* ParseCompare();
  Expr* ParseSum();
  Expr* ParseConcat();
  Expr* ParseProduct();
  Expr* ParsePower();
  Expr* ParseUnary(bool with_filter);
  Expr* ParsePrimary();
  Expr* ParsePrimaryName();
  Expr* ParseStringConstant();
  Expr* ParseListLiteral();
  Expr* ParseDictLiteral();
  Expr* ParsePostfix(Expr* expr);
  Expr* ParseFilters(Expr* expr);
  Expr* ParseSubscript(Expr* object);
  Expr* ParseTupleKey(Expr* first);
  Expr* ParseSlice(Expr* object, Expr* start);
  bool ParseArguments(Expr* call);
  Expr* ParseFilter(Expr* input);  // At the name.
  Expr* ParseTest(Expr* input);    // At `is`.
  bool ParseDottedName(std::string_view* name);

  // Tokens.
  const Token& Now() const { return tokens_[at_]; }
  const Token& Ahead() const { return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_]; }
  void Step() {
    if (at_ + 1 < tokens_.size()) ++at_;
  }
  bool SkipName(std::string_view name);
  bool SkipOperator(std::string_view op);
  bool ExpectOperator(std::string_view op);
  bool ExpectName(std::string_view name);
  bool Expect(TokenKind kind, std::string_view what);
  // At what may end a tuple without brackets.
  bool AtTupleEnd(std::string_view end_name) const;

  // Nodes.
  Stmt* NewStmt(StmtKind kind);
  Expr* NewExpr(ExprKind kind, int line);
  // Sets the node's height from its children; null (failed) when it is too high.
  Expr* Close(Expr* expr);
  Expr* Binary(BinaryOp op, Expr* a, Expr* b, int line);
  Expr* Constant(const Value& value, int line);
  std::string_view Keep(std::string_view text);
  const Str* KeepStr(std::string_view text);
  template <typename T>
  bool KeepAll(const std::vector<T>& items, std::span<const T>* out);

  bool Fail(std::string_view message);
  bool FailAt(const Token& token, std::string_view message);
  bool FailUnexpected(std::string_view wanted);
  bool FailMemory();
  static std::string Describe(const Token& token);

  const std::vector<Token> tokens_;
  Arena& arena_;
  size_t at_ = 0;
  int depth_ = 0;
  int loop_depth_ = 0;  // Loops around the current statement, inside the current function.
  absl::Status error_;
  std::vector<std::string> unknown_names_;
};

class Parser::DepthGuard {
 public:
  explicit DepthGuard(Parser& parser) : parser_(parser) { ++parser_.depth_; }
  ~DepthGuard() { --parser_.depth_; }
  bool ok() const {
    return parser_.depth_ <= kParseDepthMax || parser_.Fail("nested too deeply; limit is 128");
  }

 private:
  Parser& parser_;
};

template <typename T>
bool Parser::KeepAll(const std::vector<T>& items, std::span<const T>* out) {
  const T* kept = arena_.CopyArray(items.data(), items.size());
  if (kept == nullptr) return FailMemory();
  *out = {kept, items.size()};
  return true;
}

}  // namespace morphserve::jinja
