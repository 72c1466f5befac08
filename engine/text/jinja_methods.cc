#include "engine/text/jinja_methods.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_format.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_loop.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

using Names = std::span<const std::string_view>;

bool Has(Names names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// All public attributes of Python 3.11's types, so that lookups by dot find the same.
constexpr std::string_view kStringNames[] = {
    "capitalize",   "casefold",    "center",    "count",      "encode",       "endswith",
    "expandtabs",   "find",        "format",    "format_map", "index",        "isalnum",
    "isalpha",      "isascii",     "isdecimal", "isdigit",    "isidentifier", "islower",
    "isnumeric",    "isprintable", "isspace",   "istitle",    "isupper",      "join",
    "ljust",        "lower",       "lstrip",    "maketrans",  "partition",    "removeprefix",
    "removesuffix", "replace",     "rfind",     "rindex",     "rjust",        "rpartition",
    "rsplit",       "rstrip",      "split",     "splitlines", "startswith",   "strip",
    "swapcase",     "title",       "translate", "upper",      "zfill"};
constexpr std::string_view kDictNames[] = {"copy", "fromkeys", "get", "items", "keys", "values"};
constexpr std::string_view kDictHidden[] = {"clear", "pop", "popitem", "setdefault", "update"};
constexpr std::string_view kListNames[] = {"copy", "count", "index"};
constexpr std::string_view kListHidden[] = {"append", "clear",  "extend",  "insert",
                                            "pop",    "remove", "reverse", "sort"};
constexpr std::string_view kTupleNames[] = {"count", "index"};
constexpr std::string_view kIntNames[] = {
    "as_integer_ratio", "bit_count", "bit_length", "conjugate", "denominator",
    "from_bytes",       "imag",      "numerator",  "real",      "to_bytes"};
constexpr std::string_view kFloatNames[] = {
    "as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"};
constexpr std::string_view kViewNames[] = {"isdisjoint", "mapping"};
constexpr std::string_view kRangeNames[] = {"count", "index", "start", "step", "stop"};
constexpr std::string_view kLoopNames[] = {"changed", "cycle"};

// ---- Strings

using StringMethod = bool (*)(Runtime& rt, const Str& self, const Args& args, Value* out);

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

constexpr std::pair<std::string_view, StringMethod> kStringMethods[] = {
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

// ---- Dicts, lists, loops

bool DictMethod(Runtime& rt, const Value& self, std::string_view name, const Args& args, Value* out,
                bool* known) {
  *known = true;
  BoundArgs bound;
  Dict& dict = self.dict();
  if (name == "get") {
    if (!NoNamed(rt, "get", args) || !bound.Bind(rt, "get", args, {"key", "default"}, 1)) {
      return false;
    }
    if (!Hashable(*bound[0])) {
      return rt.Fail(absl::StrFormat("unhashable type: '%s'", TypeName(*bound[0])));
    }
    const Value* found = dict.Find(*bound[0]);
    *out = found != nullptr ? *found : bound[1] != nullptr ? *bound[1] : Value::None();
    return true;
  }
  if (name == "copy") {
    Dict* copy = nullptr;
    if (!bound.Bind(rt, "copy", args, {}) || !BuildDict(rt, "copy", {{&self, 1}, {}}, &copy)) {
      return false;
    }
    *out = Value::OfDict(copy);
    return true;
  }
  *known = name == "items" || name == "keys" || name == "values";
  if (!*known) return true;
  View* view = rt.arena().New<View>();
  if (view == nullptr) return rt.FailMemory();
  view->dict = &dict;
  view->kind = name == "items"  ? ViewKind::kItems
               : name == "keys" ? ViewKind::kKeys
                                : ViewKind::kValues;
  *out = Value::OfView(view);
  return bound.Bind(rt, name, args, {});
}

bool ListMethod(Runtime& rt, const Value& self, std::string_view name, const Args& args, Value* out,
                bool* known) {
  BoundArgs bound;
  const auto items = self.list().span();
  *known = true;
  if (name == "copy") return bound.Bind(rt, "copy", args, {}) && rt.MakeList(items, out);
  *known = name == "count" || name == "index";
  if (!*known) return true;
  if (!NoNamed(rt, name, args) || !bound.Bind(rt, name, args, {"value"}, 1)) return false;
  int64_t count = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    bool same = false;
    if (!EqualValues(rt, items[i], *bound[0], &same)) return false;
    if (!same) continue;
    ++count;
    if (name == "index") {
      *out = Value::Int(static_cast<int64_t>(i));
      return true;
    }
  }
  if (name == "index") return rt.Fail("value is not in the list");
  *out = Value::Int(count);
  return true;
}

bool LoopMethod(Runtime& rt, LoopState& loop, std::string_view name, const Args& args, Value* out) {
  if (!NoNamed(rt, name, args)) return false;
  if (name == "cycle") {
    if (args.positional.empty()) return rt.Fail("no items for cycling given");
    const size_t index = static_cast<size_t>(loop.index0) % args.positional.size();
    *out = args.positional[index];
    return true;
  }
  Value now;
  bool same = false;
  if (!rt.MakeTuple(args.positional, &now)) return false;
  if (!loop.changed.is(Kind::kMissing) && !EqualValues(rt, loop.changed, now, &same)) return false;
  loop.changed = now;
  *out = Value::Bool(!same);
  return true;
}

}  // namespace

MethodKind FindMethod(const Value& object, std::string_view name) {
  const auto kind = [name](Names safe, Names hidden = {}) {
    if (Has(safe, name)) return MethodKind::kSafe;
    return Has(hidden, name) ? MethodKind::kHidden : MethodKind::kNone;
  };
  switch (object.kind()) {
    case Kind::kString: return kind(kStringNames);
    case Kind::kDict: return kind(kDictNames, kDictHidden);
    case Kind::kList: return kind(kListNames, kListHidden);
    case Kind::kTuple: return kind(kTupleNames);
    case Kind::kBool:
    case Kind::kInt: return kind(kIntNames);
    case Kind::kFloat: return kind(kFloatNames);
    case Kind::kView: return kind(kViewNames);
    case Kind::kRange: return kind(kRangeNames);
    case Kind::kLoop: return kind(kLoopNames);
    default: return MethodKind::kNone;
  }
}

bool CallMethod(Runtime& rt, const Method& method, const Args& args, Value* out) {
  bool known = false;
  switch (method.self.kind()) {
    case Kind::kString:
      for (const auto& [name, call] : kStringMethods) {
        if (name == method.name) return call(rt, method.self.str(), args, out);
      }
      break;
    case Kind::kDict:
      if (!DictMethod(rt, method.self, method.name, args, out, &known)) return false;
      break;
    case Kind::kList:
    case Kind::kTuple:
      if (!ListMethod(rt, method.self, method.name, args, out, &known)) return false;
      break;
    case Kind::kLoop: return LoopMethod(rt, method.self.loop(), method.name, args, out);
    default: break;
  }
  return known || rt.Fail(absl::StrFormat("method '%s' of '%s' is not supported", method.name,
                                          TypeName(method.self)));
}

}  // namespace morphserve::jinja
