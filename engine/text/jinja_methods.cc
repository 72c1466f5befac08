#include "engine/text/jinja_methods.h"

#include <algorithm>
#include <iterator>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_loop.h"
#include "engine/text/jinja_ops.h"

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

bool StringMethod(Runtime& rt, const Value& self, std::string_view name, const Args& args,
                  Value* out, bool* known) {
  for (const StringMethodEntry& entry : kStringMethods) {
    if (entry.name != name) continue;
    *known = true;
    return entry.call(rt, self.str(), args, out);
  }
  *known = false;
  return true;
}

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
      if (!StringMethod(rt, method.self, method.name, args, out, &known)) return false;
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
