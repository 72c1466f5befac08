#include "engine/text/json_printer.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_number.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

std::string JsonNumber(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return FormatFloat(value);
}

std::string Escape(char32_t code) {
  switch (code) {
    case '"': return "\\\"";
    case '\\': return "\\\\";
    case '\n': return "\\n";
    case '\r': return "\\r";
    case '\t': return "\\t";
    case '\b': return "\\b";
    case '\f': return "\\f";
    default: break;
  }
  const uint32_t value = code;
  if (value <= 0xFFFF) return absl::StrFormat("\\u%04x", value);
  return absl::StrFormat("\\u%04x\\u%04x", 0xD800 + ((value - 0x10000) >> 10),
                         0xDC00 + ((value - 0x10000) & 0x3FF));
}

class Printer {
 public:
  Printer(Runtime& rt, const JsonStyle& style, TextBuilder* out)
      : rt_(rt), style_(style), out_(out) {}

  void Print(const Value& value, int depth);

 private:
  void PrintString(const Str& text);
  void PrintList(std::span<const Value> items, int depth);
  void PrintDict(const Dict& dict, int depth);
  void PrintKey(const Value& key);
  void NewLine(int depth);

  Runtime& rt_;
  const JsonStyle& style_;
  TextBuilder* const out_;
};

void Printer::PrintString(const Str& text) {
  const std::string_view view = text.view();
  out_->Append("\"", true);
  size_t plain = 0;
  for (size_t at = 0; at < view.size();) {
    const size_t begin = at;
    const char32_t code = NextCodePoint(view, &at);
    const bool ascii_escape = style_.ensure_ascii && code > '~';
    if (code >= 0x20 && code != '"' && code != '\\' && !ascii_escape) continue;
    out_->AppendSlice(text, static_cast<uint32_t>(plain), static_cast<uint32_t>(begin));
    out_->AppendFor(Escape(code), text, static_cast<uint32_t>(begin));
    plain = at;
  }
  out_->AppendSlice(text, static_cast<uint32_t>(plain), text.size);
  out_->Append("\"", true);
}

void Printer::NewLine(int depth) {
  if (!style_.indent) return;
  out_->Append("\n", true);
  for (int i = 0; i < depth && !rt_.failed(); ++i) out_->Append(*style_.indent, true);
}

void Printer::PrintList(std::span<const Value> items, int depth) {
  if (items.empty()) return out_->Append("[]", true);
  out_->Append("[", true);
  for (size_t i = 0; i < items.size() && !rt_.failed(); ++i) {
    if (i > 0) out_->Append(style_.item_separator, true);
    NewLine(depth + 1);
    Print(items[i], depth + 1);
  }
  NewLine(depth);
  out_->Append("]", true);
}

void Printer::PrintKey(const Value& key) {
  switch (key.kind()) {
    case Kind::kString: return PrintString(key.str());
    case Kind::kBool: return out_->Append(key.boolean() ? "\"true\"" : "\"false\"", true);
    case Kind::kNone: return out_->Append("\"null\"", true);
    case Kind::kInt: return out_->Append(absl::StrFormat("\"%d\"", key.integer()), true);
    case Kind::kFloat:
      return out_->Append(absl::StrFormat("\"%s\"", JsonNumber(key.number())), true);
    default: rt_.Fail(absl::StrFormat("json keys cannot be of type '%s'", TypeName(key)));
  }
}

void Printer::PrintDict(const Dict& dict, int depth) {
  if (dict.size() == 0) return out_->Append("{}", true);
  std::vector<Value> order;  // Numbers of the entries.
  for (size_t i = 0; i < dict.size(); ++i) order.push_back(Value::Int(static_cast<int64_t>(i)));
  if (style_.sort_keys) {
    std::vector<Value> keys;
    for (const Dict::Entry& entry : dict.entries()) keys.push_back(entry.key);
    if (!SortByKeys(rt_, keys, false, &order)) return;
  }
  out_->Append("{", true);
  bool first = true;
  for (const Value& number : order) {
    if (rt_.failed()) return;
    const Dict::Entry& entry = dict.entries()[static_cast<size_t>(number.integer())];
    if (!first) out_->Append(style_.item_separator, true);
    first = false;
    NewLine(depth + 1);
    PrintKey(entry.key);
    out_->Append(style_.key_separator, true);
    Print(entry.value, depth + 1);
  }
  NewLine(depth);
  out_->Append("}", true);
}

void Printer::Print(const Value& value, int depth) {
  if (!rt_.Charge()) return;
  if (depth > kValueDepthMax) {
    rt_.Fail("value is nested too deeply for json");
    return;
  }
  switch (value.kind()) {
    case Kind::kNone: return out_->Append("null", true);
    case Kind::kBool: return out_->Append(value.boolean() ? "true" : "false", true);
    case Kind::kInt: return out_->Append(absl::StrFormat("%d", value.integer()), true);
    case Kind::kFloat: return out_->Append(JsonNumber(value.number()), true);
    case Kind::kString: return PrintString(value.str());
    case Kind::kList:
    case Kind::kTuple: return PrintList(value.list().span(), depth);
    case Kind::kDict: return PrintDict(value.dict(), depth);
    default:
      rt_.Fail(absl::StrFormat("object of type '%s' cannot be written as json", TypeName(value)));
  }
}

}  // namespace

void AppendJson(Runtime& rt, const Value& value, const JsonStyle& style, TextBuilder* out) {
  Printer(rt, style, out).Print(value, 0);
}

}  // namespace morphserve::jinja
