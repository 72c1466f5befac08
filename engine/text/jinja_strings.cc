// String operations shared by methods and filters (jinja_methods.h).
#include <algorithm>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_methods.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

constexpr char32_t kCapitalSigma = 0x3A3;

bool InSet(char32_t code, const Str* chars) {
  if (chars == nullptr) return IsSpace(code);
  for (size_t at = 0; at < chars->size;) {
    if (NextCodePoint(chars->view(), &at) == code) return true;
  }
  return false;
}

std::string LowerOf(const Str& text, size_t offset, char32_t code) {
  return code == kCapitalSigma ? LowerSigma(text.view(), offset) : ToLower(code);
}

}  // namespace

bool Strip(Runtime& rt, const Str& text, const Str* chars, bool left, bool right, Value* out) {
  const int64_t per_code = 1 + (chars == nullptr ? 0 : static_cast<int64_t>(chars->size) / 8);
  size_t begin = 0;
  size_t end = text.size;
  while (left && begin < end) {
    size_t next = begin;
    if (!InSet(NextCodePoint(text.view(), &next), chars)) break;
    begin = next;
    if (begin % 64 == 0 && !rt.Charge(per_code)) return false;
  }
  while (right && end > begin) {
    size_t before = end;
    if (!InSet(PreviousCodePoint(text.view(), &before), chars)) break;
    end = before;
    if (end % 64 == 0 && !rt.Charge(per_code)) return false;
  }
  return Substr(rt, text, begin, end, out);
}

bool Replace(Runtime& rt, const Str& text, const Str& from, const Str& to, int64_t count,
             bool markup, Value* out) {
  if (!rt.ChargeBytes(text.size)) return false;
  TextBuilder builder(rt);
  size_t at = 0;  // Begin of what is not yet copied.
  size_t search = 0;
  while (count != 0 && search <= text.size && !rt.failed()) {
    size_t found = search;
    if (from.size > 0) {
      found = text.size;
      const void* hit = memmem(text.data + search, text.size - search, from.data, from.size);
      if (hit == nullptr) break;
      found = static_cast<size_t>(static_cast<const char*>(hit) - text.data);
    }
    if (!rt.Charge()) return false;
    builder.AppendSlice(text, static_cast<uint32_t>(at), static_cast<uint32_t>(found));
    builder.Append(to);
    at = found + from.size;
    search = at;
    if (from.size == 0) {
      // The empty string is found before every character and at the end.
      if (search == text.size) break;
      NextCodePoint(text.view(), &search);
    }
    if (count > 0) --count;
  }
  builder.AppendSlice(text, static_cast<uint32_t>(at), text.size);
  return builder.Finish(out, markup);
}

bool ChangeCase(Runtime& rt, const Str& text, CaseForm form, Value* out) {
  if (!rt.Charge(static_cast<int64_t>(text.size) / 16)) return false;
  TextBuilder builder(rt);
  bool word_begins = true;
  for (size_t at = 0; at < text.size && !rt.failed();) {
    const size_t begin = at;
    const char32_t code = NextCodePoint(text.view(), &at);
    const bool raise = form == CaseForm::kUpper || (form != CaseForm::kLower && word_begins);
    const std::string mapped = !raise                     ? LowerOf(text, begin, code)
                               : form == CaseForm::kUpper ? ToUpper(code)
                                                          : ToTitle(code);
    builder.AppendFor(mapped, text, static_cast<uint32_t>(begin));
    word_begins = form == CaseForm::kTitle && !IsCased(code);
  }
  return builder.Finish(out, text.markup);
}

bool Join(Runtime& rt, const Str& separator, std::span<const Value> items, bool markup,
          Value* out) {
  TextBuilder builder(rt);
  for (size_t i = 0; i < items.size() && !rt.failed(); ++i) {
    if (!rt.Charge()) return false;
    if (i > 0) builder.Append(separator);
    builder.Append(items[i].str());
  }
  return builder.Finish(out, markup);
}

bool SplitLines(Runtime& rt, const Str& text, bool keep_ends, std::vector<Value>* out) {
  if (!rt.ChargeBytes(text.size)) return false;
  size_t line = 0;
  for (size_t at = 0; at < text.size;) {
    const size_t begin = at;
    const char32_t code = NextCodePoint(text.view(), &at);
    if (!IsLineBreak(code)) continue;
    if (code == '\r' && at < text.size && text.data[at] == '\n') ++at;
    Value part;
    if (!rt.Charge() || !Substr(rt, text, line, keep_ends ? at : begin, &part)) return false;
    out->push_back(part);
    line = at;
  }
  if (line == text.size) return true;
  Value rest;
  if (!Substr(rt, text, line, text.size, &rest)) return false;
  out->push_back(rest);
  return true;
}

}  // namespace morphserve::jinja
