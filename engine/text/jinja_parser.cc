#include "engine/text/jinja_parser.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/base/text_view.h"
#include "engine/text/jinja_scope.h"

namespace morphserve::jinja {

absl::StatusOr<ParsedTemplate> ParseTemplate(std::string_view source, Arena& arena) {
  if (source.size() > kSourceBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("template has %d bytes; limit is %d", source.size(), kSourceBytesMax));
  }
  MS_ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens), arena).Run();
}

absl::StatusOr<ParsedTemplate> Parser::Run() {
  TemplateNode* root = arena_.New<TemplateNode>();
  Statements body;
  if (root == nullptr) FailMemory();
  if (!error_.ok() || !ParseBody({}, &body) || !KeepAll(body, &root->body)) return error_;
  MS_RETURN_IF_ERROR(ResolveScopes(root, arena_));
  ParsedTemplate parsed;
  parsed.root = root;
  parsed.unknown_names = std::move(unknown_names_);
  return parsed;
}

// Reads until the end of the template, or to a block that starts with one of `ends`, whose name is
// then the current token.
bool Parser::ParseBody(const std::vector<std::string_view>& ends, Statements* out) {
  while (true) {
    const Token& token = Now();
    if (token.kind == TokenKind::kEnd) {
      if (ends.empty()) return true;
      return Fail(absl::StrFormat("unexpected end of template, expected '%s'", ends.back()));
    }
    if (token.kind == TokenKind::kText) {
      Stmt* stmt = NewStmt(StmtKind::kText);
      if (stmt == nullptr) return false;
      stmt->text = KeepStr(token.text);
      if (stmt->text == nullptr) return false;
      out->push_back(stmt);
      Step();
    } else if (token.kind == TokenKind::kPrintBegin) {
      Stmt* stmt = NewStmt(StmtKind::kPrint);
      if (stmt == nullptr) return false;
      Step();
      stmt->expr = ParseTuple(true, false, "");
      if (stmt->expr == nullptr || !Expect(TokenKind::kPrintEnd, "end of print tag")) return false;
      out->push_back(stmt);
    } else {
      if (!Expect(TokenKind::kBlockBegin, "statement")) return false;
      if (Now().kind == TokenKind::kName &&
          std::find(ends.begin(), ends.end(), std::string_view(Now().text)) != ends.end()) {
        return true;
      }
      Stmt* stmt = ParseStatement();
      if (stmt == nullptr || !Expect(TokenKind::kBlockEnd, "end of block tag")) return false;
      out->push_back(stmt);
    }
  }
}

// The body between `%}` and a block that starts with one of `ends`.
bool Parser::ParseBlockBody(const std::vector<std::string_view>& ends,
                            std::span<Stmt* const>* out) {
  DepthGuard guard(*this);
  if (!guard.ok()) return false;
  SkipOperator(":");  // Allowed by the reference, for those who think in Python.
  if (!Expect(TokenKind::kBlockEnd, "end of block tag")) return false;
  Statements body;
  return ParseBody(ends, &body) && KeepAll(body, out);
}

Stmt* Parser::ParseStatement() {
  const Token& token = Now();
  if (token.kind != TokenKind::kName) {
    FailUnexpected("a tag name");
    return nullptr;
  }
  const std::string& name = token.text;
  Stmt* stmt = NewStmt(StmtKind::kText);
  if (stmt == nullptr) return nullptr;
  Step();
  if (name == "for") return ParseFor(stmt);
  if (name == "if") return ParseIf(stmt);
  if (name == "set") return ParseSet(stmt);
  if (name == "macro") return ParseMacro(stmt);
  if (name == "filter") return ParseFilterBlock(stmt);
  if (name == "generation") return ParseGeneration(stmt);
  if (name == "break") return ParseLoopControl(stmt, StmtKind::kBreak);
  if (name == "continue") return ParseLoopControl(stmt, StmtKind::kContinue);
  static constexpr std::string_view kLeftOut[] = {"block", "extends", "print", "include",
                                                  "from",  "import",  "with",  "autoescape",
                                                  "call",  "do",      "trans", "debug"};
  const bool left_out =
      std::find(std::begin(kLeftOut), std::end(kLeftOut), name) != std::end(kLeftOut);
  FailAt(token,
         absl::StrFormat(left_out ? "statement '%s' is not supported" : "unknown tag '%s'", name));
  return nullptr;
}

Stmt* Parser::ParseFor(Stmt* stmt) {
  ForNode* loop = arena_.New<ForNode>();
  if (loop == nullptr) return FailMemory(), nullptr;
  stmt->kind = StmtKind::kFor;
  stmt->loop = loop;
  const size_t target_at = at_;
  loop->target = ParseTarget(false, true);
  if (loop->target == nullptr || !ExpectName("in")) return nullptr;
  loop->iterable = ParseTuple(false, false, "recursive");
  if (loop->iterable == nullptr) return nullptr;
  if (SkipName("if")) {
    loop->test = ParseExpression();
    if (loop->test == nullptr) return nullptr;
    // The filter binds the target in a scope of its own: read the same tokens once more.
    const size_t behind = std::exchange(at_, target_at);
    loop->test_target = ParseTarget(false, true);
    at_ = behind;
    if (loop->test_target == nullptr) return nullptr;
  }
  loop->recursive = SkipName("recursive");
  ++loop_depth_;
  const bool body_ok = ParseBlockBody({"endfor", "else"}, &loop->body);
  --loop_depth_;
  if (!body_ok) return nullptr;
  const bool has_else = Now().IsName("else");
  Step();
  if (has_else) {
    if (!ParseBlockBody({"endfor"}, &loop->orelse)) return nullptr;
    Step();
  }
  return stmt;
}

Stmt* Parser::ParseIf(Stmt* stmt) {
  stmt->kind = StmtKind::kIf;
  std::vector<Branch> branches;
  while (true) {
    Branch branch;
    branch.condition = ParseTuple(false, false, "");
    if (branch.condition == nullptr) return nullptr;
    if (!ParseBlockBody({"elif", "else", "endif"}, &branch.body)) return nullptr;
    branches.push_back(branch);
    const bool more = Now().IsName("elif");
    const bool has_else = Now().IsName("else");
    Step();
    if (more) continue;
    if (has_else) {
      if (!ParseBlockBody({"endif"}, &stmt->orelse)) return nullptr;
      Step();
    }
    return KeepAll(branches, &stmt->branches) ? stmt : nullptr;
  }
}

Stmt* Parser::ParseSet(Stmt* stmt) {
  stmt->target = ParseTarget(true, true);
  if (stmt->target == nullptr) return nullptr;
  if (SkipOperator("=")) {
    stmt->kind = StmtKind::kSet;
    stmt->expr = ParseTuple(true, false, "");
    return stmt->expr == nullptr ? nullptr : stmt;
  }
  stmt->kind = StmtKind::kSetBlock;
  while (SkipOperator("|")) {
    stmt->filter = ParseFilter(stmt->filter);
    if (stmt->filter == nullptr) return nullptr;
  }
  // A captured body is code of the same function: the loop around it may be left from inside.
  if (!ParseBlockBody({"endset"}, &stmt->body)) return nullptr;
  Step();
  return stmt;
}

Stmt* Parser::ParseMacro(Stmt* stmt) {
  stmt->kind = StmtKind::kMacro;
  MacroNode* macro = arena_.New<MacroNode>();
  Target* name = ParseTargetItem(false);
  if (name == nullptr || macro == nullptr) return FailMemory(), nullptr;
  stmt->macro = macro;
  stmt->target = name;
  macro->name = name->name;
  if (!ParseParameters(macro)) return nullptr;
  const int loops = std::exchange(loop_depth_, 0);
  const bool body_ok = ParseBlockBody({"endmacro"}, &macro->body);
  loop_depth_ = loops;
  if (!body_ok) return nullptr;
  Step();
  return stmt;
}

bool Parser::ParseParameters(MacroNode* macro) {
  if (!ExpectOperator("(")) return false;
  std::vector<Target*> parameters;
  std::vector<Expr*> defaults;
  while (!Now().IsOperator(")")) {
    if (!parameters.empty() && !ExpectOperator(",")) return false;
    Target* parameter = ParseTargetItem(false);
    if (parameter == nullptr) return false;
    for (const Target* other : parameters) {
      if (other->name == parameter->name) {
        return Fail(absl::StrFormat("duplicate parameter '%s'", parameter->name));
      }
    }
    parameters.push_back(parameter);
    if (SkipOperator("=")) {
      Expr* value = ParseExpression();
      if (value == nullptr) return false;
      defaults.push_back(value);
    } else if (!defaults.empty()) {
      return Fail("parameter without a default behind one that has it");
    }
  }
  Step();
  std::span<Target* const> kept_parameters;
  std::span<Expr* const> kept_defaults;
  if (!KeepAll(parameters, &kept_parameters) || !KeepAll(defaults, &kept_defaults)) return false;
  macro->parameters = kept_parameters;
  macro->defaults = kept_defaults;
  return true;
}

Stmt* Parser::ParseFilterBlock(Stmt* stmt) {
  stmt->kind = StmtKind::kFilterBlock;
  do {
    stmt->filter = ParseFilter(stmt->filter);
    if (stmt->filter == nullptr) return nullptr;
  } while (SkipOperator("|"));
  if (!ParseBlockBody({"endfilter"}, &stmt->body)) return nullptr;
  Step();
  return stmt;
}

Stmt* Parser::ParseGeneration(Stmt* stmt) {
  stmt->kind = StmtKind::kGeneration;
  const int loops = std::exchange(loop_depth_, 0);
  const bool body_ok = ParseBlockBody({"endgeneration"}, &stmt->body);
  loop_depth_ = loops;
  if (!body_ok) return nullptr;
  Step();
  return stmt;
}

Stmt* Parser::ParseLoopControl(Stmt* stmt, StmtKind kind) {
  stmt->kind = kind;
  if (loop_depth_ > 0) return stmt;
  Fail(kind == StmtKind::kBreak ? "'break' outside a loop" : "'continue' outside a loop");
  return nullptr;
}

Target* Parser::ParseTargetItem(bool allow_attribute) {
  const Token& token = Now();
  if (token.kind != TokenKind::kName) {
    FailUnexpected("a name to assign to");
    return nullptr;
  }
  static constexpr std::string_view kConstants[] = {"true", "false", "none",
                                                    "True", "False", "None"};
  if (std::find(std::begin(kConstants), std::end(kConstants), token.text) != std::end(kConstants)) {
    Fail(absl::StrFormat("cannot assign to '%s'", token.text));
    return nullptr;
  }
  Target* target = arena_.New<Target>();
  if (target == nullptr) return FailMemory(), nullptr;
  target->line = token.line;
  target->name = Keep(token.text);
  Step();
  if (allow_attribute && SkipOperator(".")) {
    if (Now().kind != TokenKind::kName) {
      FailUnexpected("an attribute name");
      return nullptr;
    }
    target->kind = Target::Kind::kAttribute;
    target->attribute = Keep(Now().text);
    Step();
  }
  return error_.ok() ? target : nullptr;
}

Target* Parser::ParseTarget(bool allow_attribute, bool allow_tuple) {
  DepthGuard guard(*this);
  if (!guard.ok()) return nullptr;
  const Token& first = Now();
  std::vector<Target*> items;
  bool is_tuple = false;
  while (true) {
    if (is_tuple && (Now().kind == TokenKind::kBlockEnd || Now().IsOperator(")") ||
                     Now().IsOperator("=") || Now().IsName("in"))) {
      break;
    }
    Target* item = nullptr;
    if (allow_tuple && SkipOperator("(")) {
      item = ParseTarget(allow_attribute, true);
      if (item == nullptr || !ExpectOperator(")")) return nullptr;
    } else {
      item = ParseTargetItem(allow_attribute);
    }
    if (item == nullptr) return nullptr;
    items.push_back(item);
    if (!allow_tuple || !SkipOperator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) return items[0];
  Target* target = arena_.New<Target>();
  if (target == nullptr) return FailMemory(), nullptr;
  target->kind = Target::Kind::kTuple;
  target->line = first.line;
  return KeepAll(items, &target->items) ? target : nullptr;
}

bool Parser::SkipName(std::string_view name) {
  if (!Now().IsName(name)) return false;
  Step();
  return true;
}

bool Parser::SkipOperator(std::string_view op) {
  if (!Now().IsOperator(op)) return false;
  Step();
  return true;
}

bool Parser::ExpectOperator(std::string_view op) {
  return SkipOperator(op) || FailUnexpected(absl::StrFormat("'%s'", op));
}

bool Parser::ExpectName(std::string_view name) {
  return SkipName(name) || FailUnexpected(absl::StrFormat("'%s'", name));
}

bool Parser::Expect(TokenKind kind, std::string_view what) {
  if (Now().kind != kind) return FailUnexpected(what);
  Step();
  return true;
}

Stmt* Parser::NewStmt(StmtKind kind) {
  Stmt* stmt = arena_.New<Stmt>();
  if (stmt == nullptr) return FailMemory(), nullptr;
  stmt->kind = kind;
  stmt->line = Now().line;
  return stmt;
}

std::string_view Parser::Keep(std::string_view text) {
  char* kept = arena_.AllocateText(text.size());
  if (kept == nullptr) {
    FailMemory();
    return {};
  }
  std::copy(text.begin(), text.end(), kept);
  return {kept, text.size()};
}

const Str* Parser::KeepStr(std::string_view text) {
  Str* str = arena_.New<Str>();
  if (str == nullptr) return FailMemory(), nullptr;
  const std::string_view kept = Keep(text);
  str->data = kept.data();
  str->size = static_cast<uint32_t>(kept.size());
  str->trusted = true;
  return error_.ok() ? str : nullptr;
}

bool Parser::Fail(std::string_view message) { return FailAt(Now(), message); }

bool Parser::FailAt(const Token& token, std::string_view message) {
  if (error_.ok()) error_ = SyntaxError(token.line, token.column, message);
  return false;
}

bool Parser::FailUnexpected(std::string_view wanted) {
  return Fail(absl::StrFormat("unexpected %s, expected %s", Describe(Now()), wanted));
}

bool Parser::FailMemory() { return Fail("template takes more memory than the limit"); }

std::string Parser::Describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText: return "text";
    case TokenKind::kPrintBegin: return "'{{'";
    case TokenKind::kPrintEnd: return "'}}'";
    case TokenKind::kBlockBegin: return "'{%'";
    case TokenKind::kBlockEnd: return "'%}'";
    case TokenKind::kString: return "string";
    case TokenKind::kEnd: return "end of template";
    case TokenKind::kName:
    case TokenKind::kInteger:
    case TokenKind::kFloat:
    case TokenKind::kOperator: return absl::StrFormat("'%s'", token.text.substr(0, 64));
  }
  return "token";
}

}  // namespace morphserve::jinja
