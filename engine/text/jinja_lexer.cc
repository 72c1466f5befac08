#include "engine/text/jinja_lexer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/text/jinja_literal.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

class Lexer {
 public:
  explicit Lexer(std::string source) : owned_(std::move(source)), source_(owned_) {}

  absl::StatusOr<std::vector<Token>> Run();

 private:
  absl::Status LexText();
  absl::Status LexComment();
  absl::Status LexRaw();
  absl::Status LexTag(TokenKind begin, TokenKind end, std::string_view closing);
  // The end of the tag at pos_, when it is there.
  bool TakeTagEnd(TokenKind end, std::string_view closing);
  absl::Status LexExpressionToken();
  absl::Status LexString();
  absl::Status LexInteger();
  bool TakeFloat();
  bool TakeName();
  absl::Status LexOperator();

  std::string_view Rest() const { return source_.substr(pos_); }
  bool At(std::string_view text) const { return Rest().starts_with(text); }
  // Length of the white space at `at`.
  size_t SpaceAt(size_t at) const;
  // `{%- raw %}`: length of the whole tag, 0 when it is not one. `name` is raw or endraw.
  size_t RawTagAt(size_t at, std::string_view name, bool opening, char* sign) const;
  void Advance(size_t bytes);
  Token Start(TokenKind kind) const;
  absl::Status Fail(std::string_view message) const { return SyntaxError(line_, column_, message); }
  // Emits template data that ends before a tag with `sign` ('-', '+' or 0).
  void EmitText(std::string_view text, char sign, bool is_print_tag);

  const std::string owned_;
  const std::string_view source_;
  size_t pos_ = 0;
  int line_ = 1;
  int column_ = 1;
  bool line_starting_ = true;  // The token before ended a line.
  std::string open_;           // Closing brackets still due.
  std::vector<Token> tokens_;
};

size_t Lexer::SpaceAt(size_t at) const {
  const size_t begin = at;
  while (at < source_.size()) {
    size_t next = at;
    if (!IsSpace(NextCodePoint(source_, &next))) break;
    at = next;
  }
  return at - begin;
}

size_t Lexer::RawTagAt(size_t at, std::string_view name, bool opening, char* sign) const {
  const size_t begin = at;
  if (!source_.substr(at).starts_with("{%")) return 0;
  at += 2;
  *sign = 0;
  if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) *sign = source_[at++];
  at += SpaceAt(at);
  if (!source_.substr(at).starts_with(name)) return 0;
  at += name.size();
  at += SpaceAt(at);
  const std::string_view rest = source_.substr(at);
  if (rest.starts_with("-%}")) {
    at += 3;
    return at + SpaceAt(at) - begin;
  }
  if (!opening && rest.starts_with("+%}")) return at + 3 - begin;
  if (!rest.starts_with("%}")) return 0;
  at += 2;
  // Unlike every other tag, the opening of a raw block keeps the line break behind it.
  if (!opening && at < source_.size() && source_[at] == '\n') ++at;
  return at - begin;
}

void Lexer::Advance(size_t bytes) {
  for (const size_t end = pos_ + bytes; pos_ < end; ++pos_) {
    const char c = source_[pos_];
    if (c == '\n') {
      ++line_;
      column_ = 1;
    } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {
      ++column_;
    }
  }
  line_starting_ = pos_ > 0 && source_[pos_ - 1] == '\n';
}

Token Lexer::Start(TokenKind kind) const {
  Token token;
  token.kind = kind;
  token.line = line_;
  token.column = column_;
  return token;
}

void Lexer::EmitText(std::string_view text, char sign, bool is_print_tag) {
  if (sign == '-') {
    size_t end = text.size();
    while (end > 0) {
      size_t before = end;
      if (!IsSpace(PreviousCodePoint(text, &before))) break;
      end = before;
    }
    text = text.substr(0, end);
  } else if (sign != '+' && !is_print_tag) {
    const size_t newline = text.rfind('\n');
    const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
    if (line_begin > 0 || line_starting_) {
      const size_t text_begin = static_cast<size_t>(text.data() - source_.data());
      const size_t spaces = SpaceAt(text_begin + line_begin);
      if (line_begin + spaces >= text.size()) text = text.substr(0, line_begin);
    }
  }
  if (text.empty()) return;
  Token token = Start(TokenKind::kText);
  token.text = text;
  tokens_.push_back(std::move(token));
}

absl::StatusOr<std::vector<Token>> Lexer::Run() {
  while (pos_ < source_.size()) MS_RETURN_IF_ERROR(LexText());
  tokens_.push_back(Start(TokenKind::kEnd));
  return std::move(tokens_);
}

absl::Status Lexer::LexText() {
  size_t tag = pos_;
  while (true) {
    tag = source_.find('{', tag);
    if (tag == std::string_view::npos || tag + 1 >= source_.size()) {
      EmitText(source_.substr(pos_), '+', false);
      Advance(source_.size() - pos_);
      return absl::OkStatus();
    }
    const char kind = source_[tag + 1];
    if (kind == '%' || kind == '{' || kind == '#') break;
    ++tag;
  }
  const std::string_view text = source_.substr(pos_, tag - pos_);
  char sign = 0;
  if (const size_t raw = RawTagAt(tag, "raw", true, &sign); raw > 0) {
    EmitText(text, sign, false);
    Advance(text.size() + raw);
    return LexRaw();
  }
  const char kind = source_[tag + 1];
  size_t length = 2;
  if (tag + 2 < source_.size() && (source_[tag + 2] == '-' || source_[tag + 2] == '+')) {
    sign = source_[tag + 2];
    length = 3;
  } else {
    sign = 0;
  }
  EmitText(text, sign, kind == '{');
  Advance(text.size());
  if (kind == '#') {
    Advance(length);
    return LexComment();
  }
  const bool print = kind == '{';
  tokens_.push_back(Start(print ? TokenKind::kPrintBegin : TokenKind::kBlockBegin));
  Advance(length);
  return print ? LexTag(TokenKind::kPrintBegin, TokenKind::kPrintEnd, "}}")
               : LexTag(TokenKind::kBlockBegin, TokenKind::kBlockEnd, "%}");
}

absl::Status Lexer::LexComment() {
  if (pos_ == source_.size()) return absl::OkStatus();  // As the reference: nothing, no error.
  size_t end = source_.find("#}", pos_);
  if (end == std::string_view::npos) return Fail("missing end of comment");
  const bool strips = end > pos_ && source_[end - 1] == '-';
  const bool keeps = end > pos_ && source_[end - 1] == '+';
  end += 2;
  if (strips) {
    end += SpaceAt(end);
  } else if (!keeps && end < source_.size() && source_[end] == '\n') {
    ++end;
  }
  Advance(end - pos_);
  return absl::OkStatus();
}

absl::Status Lexer::LexRaw() {
  if (pos_ == source_.size()) return absl::OkStatus();
  for (size_t at = source_.find("{%", pos_); at != std::string_view::npos;
       at = source_.find("{%", at + 1)) {
    char sign = 0;
    const size_t length = RawTagAt(at, "endraw", false, &sign);
    if (length == 0) continue;
    const std::string_view text = source_.substr(pos_, at - pos_);
    EmitText(text, sign, false);
    Advance(text.size() + length);
    return absl::OkStatus();
  }
  return Fail("missing end of raw block");
}

bool Lexer::TakeTagEnd(TokenKind end, std::string_view closing) {
  if (!open_.empty()) return false;
  size_t length = 0;
  if (At("-" + std::string(closing))) {
    length = 1 + closing.size();
    length += SpaceAt(pos_ + length);
  } else if (end == TokenKind::kBlockEnd && At("+%}")) {
    length = 3;
  } else if (At(closing)) {
    length = closing.size();
    const size_t behind = pos_ + length;
    if (end == TokenKind::kBlockEnd && behind < source_.size() && source_[behind] == '\n') ++length;
  } else {
    return false;
  }
  tokens_.push_back(Start(end));
  Advance(length);
  return true;
}

absl::Status Lexer::LexTag(TokenKind begin, TokenKind end, std::string_view closing) {
  const int line = line_;
  const int column = column_;
  while (!TakeTagEnd(end, closing)) {
    if (pos_ >= source_.size()) {
      return SyntaxError(line, column,
                         begin == TokenKind::kPrintBegin ? "missing end of print tag"
                                                         : "missing end of block tag");
    }
    if (const size_t space = SpaceAt(pos_); space > 0) {
      Advance(space);
    } else {
      MS_RETURN_IF_ERROR(LexExpressionToken());
    }
  }
  return absl::OkStatus();
}

absl::Status Lexer::LexExpressionToken() {
  const char c = source_[pos_];
  if (IsDigit(c)) {
    if (TakeFloat()) return absl::OkStatus();
    return LexInteger();
  }
  if (c == '"' || c == '\'') return LexString();
  if (TakeName()) return absl::OkStatus();
  return LexOperator();
}

bool Lexer::TakeFloat() {
  if (pos_ > 0 && source_[pos_ - 1] == '.') return false;
  size_t at = SkipDigits(source_, pos_);
  bool is_float = false;
  if (at < source_.size() && source_[at] == '.') {
    if (const size_t end = SkipDigits(source_, at + 1); end > at + 1) {
      at = end;
      is_float = true;
    }
  }
  if (at < source_.size() && (source_[at] == 'e' || source_[at] == 'E')) {
    size_t digits = at + 1;
    if (digits < source_.size() && (source_[digits] == '+' || source_[digits] == '-')) ++digits;
    if (const size_t end = SkipDigits(source_, digits); end > digits) {
      at = end;
      is_float = true;
    }
  }
  if (!is_float) return false;
  std::string text(source_.substr(pos_, at - pos_));
  std::erase(text, '_');
  Token token = Start(TokenKind::kFloat);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), token.number);
  if (error != std::errc()) {
    // Out of range: towards 0 it is 0, and what has no finite value is left to LexInteger's error.
    if (text.find("e-") == std::string::npos && text.find("E-") == std::string::npos) return false;
    token.number = 0;
  }
  token.text = std::move(text);
  tokens_.push_back(std::move(token));
  Advance(at - pos_);
  return true;
}

absl::Status Lexer::LexInteger() {
  size_t at = pos_;
  int base = 10;
  if (source_[at] == '0' && at + 2 < source_.size()) {
    const char mark = source_[at + 1];
    const int prefixed = mark == 'b' || mark == 'B'   ? 2
                         : mark == 'o' || mark == 'O' ? 8
                         : mark == 'x' || mark == 'X' ? 16
                                                      : 10;
    size_t digit = at + 2;
    if (source_[digit] == '_' && digit + 1 < source_.size()) ++digit;
    if (prefixed != 10 && DigitValue(source_[digit]) < prefixed) {
      base = prefixed;
      at = digit;
    }
  }
  const bool zeros = base == 10 && source_[at] == '0';  // 0 may only be followed by zeros.
  const int digit_max = zeros ? 1 : base;
  Token token = Start(TokenKind::kInteger);
  const auto digit_at = [this, digit_max](size_t i) {
    return i < source_.size() && DigitValue(source_[i]) < digit_max;
  };
  while (digit_at(at) || (source_[std::min(at, source_.size() - 1)] == '_' && digit_at(at + 1))) {
    if (source_[at] != '_' &&
        (__builtin_mul_overflow(token.integer, int64_t{base}, &token.integer) ||
         __builtin_add_overflow(token.integer, int64_t{DigitValue(source_[at])}, &token.integer))) {
      return Fail("number does not fit in 64 bits");
    }
    ++at;
  }
  token.text = source_.substr(pos_, at - pos_);
  tokens_.push_back(std::move(token));
  Advance(at - pos_);
  return absl::OkStatus();
}

bool Lexer::TakeName() {
  size_t at = pos_;
  if (!IsIdentifierStart(NextCodePoint(source_, &at))) return false;
  while (at < source_.size()) {
    size_t next = at;
    if (!IsIdentifierPart(NextCodePoint(source_, &next))) break;
    at = next;
  }
  Token token = Start(TokenKind::kName);
  token.text = source_.substr(pos_, at - pos_);
  tokens_.push_back(std::move(token));
  Advance(at - pos_);
  return true;
}

absl::Status Lexer::LexString() {
  const char quote = source_[pos_];
  size_t at = pos_ + 1;
  while (at < source_.size() && source_[at] != quote) at += source_[at] == '\\' ? 2 : 1;
  if (at >= source_.size()) return Fail("missing end of string");
  std::optional<std::string> text = Unescape(source_.substr(pos_ + 1, at - pos_ - 1));
  if (!text) return Fail("escape sequence in string is not supported");
  Token token = Start(TokenKind::kString);
  token.text = *std::move(text);
  tokens_.push_back(std::move(token));
  Advance(at + 1 - pos_);
  return absl::OkStatus();
}

absl::Status Lexer::LexOperator() {
  static constexpr std::string_view kOperators[] = {
      "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
      "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
  for (const std::string_view op : kOperators) {
    if (!At(op)) continue;
    if (op == "(") open_ += ')';
    if (op == "[") open_ += ']';
    if (op == "{") open_ += '}';
    if (op == ")" || op == "]" || op == "}") {
      if (open_.empty()) return Fail(absl::StrFormat("unexpected '%s'", op));
      if (open_.back() != op[0]) {
        return Fail(absl::StrFormat("unexpected '%s', expected '%c'", op, open_.back()));
      }
      open_.pop_back();
    }
    Token token = Start(TokenKind::kOperator);
    token.text = op;
    tokens_.push_back(std::move(token));
    Advance(op.size());
    return absl::OkStatus();
  }
  size_t end = pos_;
  NextCodePoint(source_, &end);
  return Fail(absl::StrFormat("unexpected character '%s'", source_.substr(pos_, end - pos_)));
}

// CRLF and CR become LF, and one line break at the very end is dropped.
std::string NormalizeLines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

}  // namespace

absl::StatusOr<std::vector<Token>> Lex(std::string_view source) {
  return Lexer(NormalizeLines(source)).Run();
}

absl::Status SyntaxError(int line, int column, std::string_view message) {
  return absl::InvalidArgumentError(
      absl::StrFormat("line %d, column %d: %s", line, column, message));
}

}  // namespace morphserve::jinja
