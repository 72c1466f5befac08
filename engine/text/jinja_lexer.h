// Lexer of the template language: text, tags and expressions to tokens with exact positions, with
// trim_blocks and lstrip_blocks on and one trailing newline dropped, as the reference has them.
// Pure function, any thread. The source is untrusted.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace morphserve::jinja {

enum class TokenKind : uint8_t {
  kText,        // Template data.
  kPrintBegin,  // {{
  kPrintEnd,    // }}
  kBlockBegin,  // {%
  kBlockEnd,    // %}
  kName,
  kString,  // Unescaped.
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;    // From 1.
  int column = 1;  // In code points, from 1.
  std::string text;
  int64_t integer = 0;
  double number = 0;

  bool IsOperator(std::string_view op) const { return kind == TokenKind::kOperator && text == op; }
  bool IsName(std::string_view name) const { return kind == TokenKind::kName && text == name; }
};

// INVALID_ARGUMENT with line and column. `source` must be valid UTF-8.
absl::StatusOr<std::vector<Token>> Lex(std::string_view source);

// "line 3, column 14: message", as every syntax error reads.
absl::Status SyntaxError(int line, int column, std::string_view message);

}  // namespace morphserve::jinja
