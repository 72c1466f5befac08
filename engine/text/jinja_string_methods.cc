// The methods of strings.
#include <algorithm>
#include <string>

#include "engine/text/jinja_format.h"
#include "engine/text/jinja_methods.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

bool IsGiven(const Value* value) { return value != nullptr && !value->is(Kind::kNone); }

template <bool kLeft, bool kRight>
bool StripMethod(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  if (!NoNamed(rt, "strip", args) || !bound.Bind(rt, "strip", args, {"chars"})) return false;
  if (IsGiven(bound[0]) && !WantString(rt, "strip", *bound[0])) return false;
  return Strip(rt, self, IsGiven(bound[0]) ? &bound[0]->str() : nullptr, kLeft, kRight, out);
}

template <CaseForm kForm>
bool CaseMethod(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  return bound.Bind(rt, "case method", args, {}) && ChangeCase(rt, self, kForm, out);
}

// The parts between runs of white space, at most `cuts` cuts; from the right for rsplit.
bool SplitSpace(Runtime& rt, const Str& self, int64_t cuts, bool from_right,
                std::vector<Value>* out) {
  const std::string_view text = self.view();
  size_t begin = 0;
  size_t end = text.size();
  const auto push = [&](size_t from, size_t to) {
    Value part;
    if (!rt.Charge() || !Substr(rt, self, from, to, &part)) return false;
    out->push_back(part);
    return true;
  };
  const auto skip_left = [&](bool spaces) {
    while (begin < end) {
      size_t next = begin;
      if (IsSpace(NextCodePoint(text, &next)) != spaces) return;
      begin = next;
    }
  };
  const auto skip_right = [&](bool spaces) {
    while (end > begin) {
      size_t before = end;
      if (IsSpace(PreviousCodePoint(text, &before)) != spaces) return;
      end = before;
    }
  };
  while (true) {
    if (from_right) {
      skip_right(true);
    } else {
      skip_left(true);
    }
    if (begin == end) break;
    if (cuts == 0) {
      if (!push(begin, end)) return false;  // The rest, white space at its far end and all.
      break;
    }
    const size_t word_begin = begin;
    const size_t word_end = end;
    if (from_right) {
      skip_right(false);
      if (!push(end, word_end)) return false;
    } else {
      skip_left(false);
      if (!push(word_begin, begin)) return false;
    }
    if (cuts > 0) --cuts;
  }
  if (from_right) std::reverse(out->begin(), out->end());
  return true;
}

size_t FindFrom(const Str& text, size_t from, const Str& what) {
  const void* hit = memmem(text.data + from, text.size - from, what.data, what.size);
  return hit == nullptr ? std::string_view::npos
                        : static_cast<size_t>(static_cast<const char*>(hit) - text.data);
}

bool SplitBy(Runtime& rt, const Str& self, const Str& separator, int64_t cuts, bool from_right,
             std::vector<Value>* out) {
  std::vector<size_t> found;
  if (from_right) {
    // Backwards search in linear time: forwards over the reversed bytes.
    const std::string text(self.view().rbegin(), self.view().rend());
    const std::string what(separator.view().rbegin(), separator.view().rend());
    Str reversed;
    reversed.data = text.data();
    reversed.size = self.size;
    Str needle;
    needle.data = what.data();
    needle.size = separator.size;
    for (size_t at = FindFrom(reversed, 0, needle); at != std::string_view::npos && cuts != 0;
         at = FindFrom(reversed, at + needle.size, needle)) {
      found.push_back(self.size - at - separator.size);
      if (cuts > 0) --cuts;
    }
    std::reverse(found.begin(), found.end());
  } else {
    for (size_t at = FindFrom(self, 0, separator); at != std::string_view::npos && cuts != 0;
         at = FindFrom(self, at + separator.size, separator)) {
      found.push_back(at);
      if (cuts > 0) --cuts;
    }
  }
  if (!rt.Charge(static_cast<int64_t>(found.size()))) return false;
  size_t begin = 0;
  for (const size_t at : found) {
    Value part;
    if (!Substr(rt, self, begin, at, &part)) return false;
    out->push_back(part);
    begin = at + separator.size;
  }
  Value rest;
  if (!Substr(rt, self, begin, self.size, &rest)) return false;
  out->push_back(rest);
  return true;
}

template <bool kFromRight>
bool Split(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  int64_t cuts = -1;
  std::vector<Value> parts;
  if (!bound.Bind(rt, "split", args, {"sep", "maxsplit"}) || !rt.ChargeBytes(self.size)) {
    return false;
  }
  if (bound[1] != nullptr && !WantInt(rt, "split", *bound[1], &cuts)) return false;
  if (!IsGiven(bound[0])) {
    if (!SplitSpace(rt, self, cuts, kFromRight, &parts)) return false;
  } else {
    if (bound[0]->is_undefined()) return rt.FailUndefined(*bound[0]);
    if (!WantString(rt, "split", *bound[0])) return false;
    if (bound[0]->str().size == 0) return rt.Fail("empty separator");
    if (!SplitBy(rt, self, bound[0]->str(), cuts, kFromRight, &parts)) return false;
  }
  return rt.MakeList(parts, out);
}

template <bool kStart>
bool HasAffix(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  if (!NoNamed(rt, "startswith", args) || !bound.Bind(rt, "startswith", args, {"affix"}, 1)) {
    return false;
  }
  std::span<const Value> affixes(bound[0], 1);
  if (bound[0]->is(Kind::kTuple)) affixes = bound[0]->list().span();
  bool holds = false;
  for (const Value& affix : affixes) {
    if (affix.is_undefined()) return rt.FailUndefined(affix);
    if (!rt.Charge() || !WantString(rt, kStart ? "startswith" : "endswith", affix)) return false;
    holds = holds ||
            (kStart ? self.view().starts_with(affix.text()) : self.view().ends_with(affix.text()));
  }
  *out = Value::Bool(holds);
  return true;
}

bool ReplaceMethod(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  int64_t count = -1;
  if (!NoNamed(rt, "replace", args) ||
      !bound.Bind(rt, "replace", args, {"old", "new", "count"}, 2) ||
      !WantString(rt, "replace", *bound[0]) || !WantString(rt, "replace", *bound[1])) {
    return false;
  }
  if (bound[2] != nullptr && !WantInt(rt, "replace", *bound[2], &count)) return false;
  Value to = *bound[1];
  if (self.markup && !to.str().markup && !EscapeHtml(rt, to.str(), &to)) return false;
  return Replace(rt, self, bound[0]->str(), to.str(), count, self.markup, out);
}

bool Format(Runtime& rt, const Str& self, const Args& args, Value* out) {
  if (self.markup) return rt.Fail("format of a safe string is not supported");
  return FormatBraces(rt, self, args, out);
}

bool JoinMethod(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  std::vector<Value> items;
  if (!NoNamed(rt, "join", args) || !bound.Bind(rt, "join", args, {"iterable"}, 1) ||
      !Collect(rt, *bound[0], &items)) {
    return false;
  }
  for (Value& item : items) {
    if (item.is_undefined()) return rt.FailUndefined(item);
    if (!WantString(rt, "join", item)) return false;
    if (self.markup && !item.str().markup && !EscapeHtml(rt, item.str(), &item)) return false;
  }
  return Join(rt, self, items, self.markup, out);
}

bool SplitLinesMethod(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  std::vector<Value> lines;
  return bound.Bind(rt, "splitlines", args, {"keepends"}) &&
         SplitLines(rt, self, bound.Truth(0), &lines) && rt.MakeList(lines, out);
}

template <bool kPrefix>
bool RemoveAffix(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  if (!NoNamed(rt, "removeprefix", args) || !bound.Bind(rt, "removeprefix", args, {"affix"}, 1) ||
      !WantString(rt, "removeprefix", *bound[0])) {
    return false;
  }
  const std::string_view affix = bound[0]->text();
  const bool has = kPrefix ? self.view().starts_with(affix) : self.view().ends_with(affix);
  const size_t cut = has ? affix.size() : 0;
  return Substr(rt, self, kPrefix ? cut : 0, kPrefix ? self.size : self.size - cut, out);
}

// find, count: -1 and 0 when there is none.
template <bool kCount>
bool FindText(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  if (!NoNamed(rt, "find", args) || !bound.Bind(rt, "find", args, {"sub"}, 1) ||
      !WantString(rt, "find", *bound[0]) || !rt.ChargeBytes(self.size)) {
    return false;
  }
  const Str& what = bound[0]->str();
  if (!kCount) {
    const size_t at = FindFrom(self, 0, what);
    *out = Value::Int(at == std::string_view::npos
                          ? -1
                          : static_cast<int64_t>(CountCodePoints(self.view().substr(0, at))));
    return true;
  }
  int64_t count = 0;
  if (what.size == 0) {
    count = static_cast<int64_t>(CountCodePoints(self.view())) + 1;
  } else {
    for (size_t at = FindFrom(self, 0, what); at != std::string_view::npos;
         at = FindFrom(self, at + what.size, what)) {
      ++count;
    }
  }
  *out = Value::Int(count);
  return true;
}

template <bool (*kPredicate)(char32_t)>
bool AllAre(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "predicate", args, {}) || !rt.ChargeBytes(self.size)) return false;
  bool holds = self.size > 0;
  for (size_t at = 0; holds && at < self.size;) {
    holds = kPredicate(NextCodePoint(self.view(), &at));
  }
  *out = Value::Bool(holds);
  return true;
}

template <bool kUpper>
bool CasedMethod(Runtime& rt, const Str& self, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "predicate", args, {}) || !rt.ChargeBytes(self.size)) return false;
  bool holds = false;
  for (size_t at = 0; at < self.size;) {
    const char32_t code = NextCodePoint(self.view(), &at);
    if (!IsCased(code)) continue;
    holds = kUpper ? IsUpper(code) : IsLower(code);
    if (!holds) break;
  }
  *out = Value::Bool(holds);
  return true;
}

constexpr StringMethodEntry kEntries[] = {
    {"strip", StripMethod<true, true>},
    {"lstrip", StripMethod<true, false>},
    {"rstrip", StripMethod<false, true>},
    {"upper", CaseMethod<CaseForm::kUpper>},
    {"lower", CaseMethod<CaseForm::kLower>},
    {"title", CaseMethod<CaseForm::kTitle>},
    {"capitalize", CaseMethod<CaseForm::kCapitalize>},
    {"split", Split<false>},
    {"rsplit", Split<true>},
    {"splitlines", SplitLinesMethod},
    {"startswith", HasAffix<true>},
    {"endswith", HasAffix<false>},
    {"removeprefix", RemoveAffix<true>},
    {"removesuffix", RemoveAffix<false>},
    {"replace", ReplaceMethod},
    {"format", Format},
    {"join", JoinMethod},
    {"find", FindText<false>},
    {"count", FindText<true>},
    {"isspace", AllAre<IsSpace>},
    {"isupper", CasedMethod<true>},
    {"islower", CasedMethod<false>},
};

}  // namespace

const std::span<const StringMethodEntry> kStringMethods = kEntries;

}  // namespace morphserve::jinja
