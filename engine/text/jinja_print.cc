#include "engine/text/jinja_print.h"

#include <string>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_number.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

std::string EscapeForRepr(char32_t code) {
  if (code == '\n') return "\\n";
  if (code == '\r') return "\\r";
  if (code == '\t') return "\\t";
  const uint32_t value = code;
  if (value <= 0xFF) return absl::StrFormat("\\x%02x", value);
  if (value <= 0xFFFF) return absl::StrFormat("\\u%04x", value);
  return absl::StrFormat("\\U%08x", value);
}

void AppendStringRepr(const Str& text, TextBuilder* out) {
  const std::string_view view = text.view();
  const bool use_double =
      view.find('\'') != std::string_view::npos && view.find('"') == std::string_view::npos;
  const char quote = use_double ? '"' : '\'';
  const std::string_view quote_text(&quote, 1);
  out->Append(quote_text, true);
  size_t plain = 0;  // Begin of what goes out unchanged.
  for (size_t at = 0; at < view.size();) {
    const size_t begin = at;
    const char32_t code = NextCodePoint(view, &at);
    const bool escape_quote = code == static_cast<char32_t>(quote) || code == '\\';
    if (!escape_quote && IsPrintable(code)) continue;
    out->AppendSlice(text, static_cast<uint32_t>(plain), static_cast<uint32_t>(begin));
    const std::string escaped =
        escape_quote ? std::string("\\") + static_cast<char>(code) : EscapeForRepr(code);
    out->AppendFor(escaped, text, static_cast<uint32_t>(begin));
    plain = at;
  }
  out->AppendSlice(text, static_cast<uint32_t>(plain), text.size);
  out->Append(quote_text, true);
}

void AppendItems(Runtime& rt, std::span<const Value> items, TextBuilder* out, int depth) {
  for (size_t i = 0; i < items.size() && !rt.failed(); ++i) {
    if (i > 0) out->Append(", ", true);
    AppendRepr(rt, items[i], out, depth + 1);
  }
}

void AppendEntries(Runtime& rt, const Dict& dict, TextBuilder* out, int depth) {
  out->Append("{", true);
  bool first = true;
  for (const Dict::Entry& entry : dict.entries()) {
    if (rt.failed()) return;
    if (!first) out->Append(", ", true);
    first = false;
    AppendRepr(rt, entry.key, out, depth + 1);
    out->Append(": ", true);
    AppendRepr(rt, entry.value, out, depth + 1);
  }
  out->Append("}", true);
}

void AppendView(Runtime& rt, const View& view, TextBuilder* out, int depth) {
  out->Append(TypeName(Value::OfView(&view)), true);
  out->Append("([", true);
  bool first = true;
  for (const Dict::Entry& entry : view.dict->entries()) {
    if (rt.failed()) return;
    if (!first) out->Append(", ", true);
    first = false;
    if (view.kind == ViewKind::kItems) {
      out->Append("(", true);
      AppendRepr(rt, entry.key, out, depth + 1);
      out->Append(", ", true);
      AppendRepr(rt, entry.value, out, depth + 1);
      out->Append(")", true);
    } else {
      AppendRepr(rt, view.kind == ViewKind::kKeys ? entry.key : entry.value, out, depth + 1);
    }
  }
  out->Append("])", true);
}

void AppendRange(const Range& range, TextBuilder* out) {
  out->Append(absl::StrFormat("range(%d, %d", range.start, range.stop), true);
  if (range.step != 1) out->Append(absl::StrFormat(", %d", range.step), true);
  out->Append(")", true);
}

}  // namespace

void AppendRepr(Runtime& rt, const Value& value, TextBuilder* out, int depth) {
  if (!rt.Charge()) return;
  if (depth > kValueDepthMax) {
    rt.Fail("value is nested too deeply to print");
    return;
  }
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined: return out->Append("Undefined", true);
    case Kind::kNone: return out->Append("None", true);
    case Kind::kBool: return out->Append(value.boolean() ? "True" : "False", true);
    case Kind::kInt: return out->Append(std::to_string(value.integer()), true);
    case Kind::kFloat: return out->Append(FormatFloat(value.number()), true);
    case Kind::kString:
      if (value.str().markup) out->Append("Markup(", true);
      AppendStringRepr(value.str(), out);
      if (value.str().markup) out->Append(")", true);
      return;
    case Kind::kList:
      out->Append("[", true);
      AppendItems(rt, value.list().span(), out, depth);
      return out->Append("]", true);
    case Kind::kTuple:
      out->Append("(", true);
      AppendItems(rt, value.list().span(), out, depth);
      return out->Append(value.list().size == 1 ? ",)" : ")", true);
    case Kind::kDict: return AppendEntries(rt, value.dict(), out, depth);
    case Kind::kNamespace:
      out->Append("<Namespace ", true);
      AppendEntries(rt, value.dict(), out, depth);
      return out->Append(">", true);
    case Kind::kRange: return AppendRange(value.range(), out);
    case Kind::kView: return AppendView(rt, value.view(), out, depth);
    case Kind::kGenerator:
    case Kind::kMacro:
    case Kind::kMethod:
    case Kind::kFunction:
    case Kind::kLoop: return out->Append(absl::StrFormat("<%s>", TypeName(value)), true);
  }
}

void AppendText(Runtime& rt, const Value& value, TextBuilder* out) {
  switch (value.kind()) {
    case Kind::kString: return out->Append(value.str());
    case Kind::kMissing:
    case Kind::kUndefined: return;
    default: return AppendRepr(rt, value, out);
  }
}

bool ToText(Runtime& rt, const Value& value, Value* out) {
  if (value.is_string()) {
    *out = value;
    return true;
  }
  TextBuilder builder(rt);
  AppendText(rt, value, &builder);
  return builder.Finish(out);
}

}  // namespace morphserve::jinja
