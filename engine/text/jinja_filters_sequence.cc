// Filters on sequences and mappings.
#include <algorithm>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_attribute.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_methods.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_print.h"

namespace morphserve::jinja {
namespace {

bool LengthFilter(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  int64_t length = 0;
  if (!bound.Bind(rt, "length", args, {}) || !Length(rt, input, &length)) return false;
  *out = Value::Int(length);
  return true;
}

bool ListFilter(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  std::vector<Value> items;
  return bound.Bind(rt, "list", args, {}) && Collect(rt, input, &items) && rt.MakeList(items, out);
}

bool First(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Generator* items = nullptr;
  bool done = false;
  if (!bound.Bind(rt, "first", args, {}) || !Iterate(rt, input, &items) ||
      !items->Next(rt, out, &done)) {
    return false;
  }
  return !done || rt.MakeUndefined("first item of an empty sequence", nullptr, out);
}

// Lazily backwards, over what can be indexed from its end.
class Backwards final : public Generator {
 public:
  Backwards(const Value& sequence, int64_t length) : sequence_(sequence), left_(length) {}
  bool Next(Runtime& rt, Value* out, bool* done) override {
    *done = left_ == 0;
    if (*done || !rt.Charge()) return !rt.failed();
    --left_;
    if (sequence_.is(Kind::kDict)) {
      *out = sequence_.dict().entries()[static_cast<size_t>(left_)].key;
      return true;
    }
    if (sequence_.is(Kind::kView)) {
      return ViewItem(rt, sequence_.view(), static_cast<size_t>(left_), out);
    }
    return GetItem(rt, sequence_, Value::Int(left_), out);
  }

 private:
  Value sequence_;
  int64_t left_;
};

// reversed(): false in `*possible` for what cannot be walked backwards.
bool Reversed(Runtime& rt, const Value& input, Generator** out, bool* possible) {
  int64_t length = 0;
  *possible = input.is_undefined() || input.is_string() || input.is_sequence() ||
              input.is(Kind::kDict) || input.is(Kind::kView) || input.is(Kind::kRange);
  if (!*possible) return true;
  if (input.is_string()) {
    std::vector<Value> characters;
    Value list;
    if (!Collect(rt, input, &characters) || !rt.MakeList(characters, &list)) return false;
    *out = rt.arena().New<Backwards>(list, static_cast<int64_t>(characters.size()));
  } else {
    if (!Length(rt, input, &length)) return false;
    *out = rt.arena().New<Backwards>(input, length);
  }
  return *out != nullptr || rt.FailMemory();
}

bool Last(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Generator* items = nullptr;
  bool possible = false;
  bool done = false;
  if (!bound.Bind(rt, "last", args, {}) || !Reversed(rt, input, &items, &possible)) return false;
  if (!possible) {
    return rt.Fail(absl::StrFormat("'%s' object is not reversible", TypeName(input)));
  }
  if (!items->Next(rt, out, &done)) return false;
  return !done || rt.MakeUndefined("last item of an empty sequence", nullptr, out);
}

bool Reverse(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "reverse", args, {})) return false;
  if (input.is_string()) {
    const Value backwards = Value::Int(-1);
    return GetSlice(rt, input, nullptr, nullptr, &backwards, out);
  }
  Generator* items = nullptr;
  bool possible = false;
  if (!Reversed(rt, input, &items, &possible)) return false;
  if (possible) {
    *out = Value::OfGenerator(items);
    return true;
  }
  std::vector<Value> list;
  if (!Collect(rt, input, &list)) return false;
  std::reverse(list.begin(), list.end());
  return rt.MakeList(list, out);
}

bool JoinFilter(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  Value separator;
  if (!bound.Bind(rt, "join", args, {"d", "attribute"})) return false;
  if (bound[0] == nullptr ? !rt.MakeText("", true, &separator)
                          : !ToText(rt, *bound[0], &separator)) {
    return false;
  }
  AttributePath path;
  const bool has_path = bound[1] != nullptr && !bound[1]->is(Kind::kNone);
  if (has_path && !path.Parse(rt, *bound[1])) return false;
  std::vector<Value> items;
  if (!Collect(rt, input, &items)) return false;
  for (Value& item : items) {
    if (has_path && !path.Get(rt, item, nullptr, &item)) return false;
    if (!ToText(rt, item, &item)) return false;
  }
  return Join(rt, separator.str(), items, false, out);
}

class ItemsOf final : public Generator {
 public:
  explicit ItemsOf(const Value& mapping) : mapping_(mapping) {}
  bool Next(Runtime& rt, Value* out, bool* done) override {
    *done = true;
    if (mapping_.is_undefined()) return true;
    if (!mapping_.is(Kind::kDict)) return rt.Fail("items wants a mapping");
    *done = at_ >= mapping_.dict().size();
    return *done || ViewItem(rt, {&mapping_.dict(), ViewKind::kItems}, at_++, out);
  }

 private:
  Value mapping_;
  size_t at_ = 0;
};

bool Items(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "items", args, {})) return false;
  ItemsOf* items = rt.arena().New<ItemsOf>(input);
  if (items == nullptr) return rt.FailMemory();
  *out = Value::OfGenerator(items);
  return true;
}

bool DictSort(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "dictsort", args, {"case_sensitive", "by", "reverse"})) return false;
  const std::string_view by =
      bound[1] == nullptr ? "key" : (bound[1]->is_string() ? bound[1]->text() : "");
  if (by != "key" && by != "value") return rt.Fail("dictsort sorts by key or by value");
  if (input.is_undefined()) return rt.FailUndefined(input);
  if (!input.is(Kind::kDict)) return rt.Fail("dictsort wants a mapping");
  std::vector<Value> keys;
  std::vector<Value> items;
  for (const Dict::Entry& entry : input.dict().entries()) {
    const Value pair[] = {entry.key, entry.value};
    Value item;
    Value key = by == "key" ? entry.key : entry.value;
    if (!rt.Charge() || !rt.MakeTuple(pair, &item)) return false;
    if (!bound.Truth(0) && !IgnoreCase(rt, &key)) return false;
    items.push_back(item);
    keys.push_back(key);
  }
  return SortByKeys(rt, keys, bound.Truth(2), &items) && rt.MakeList(items, out);
}

bool Sort(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "sort", args, {"reverse", "case_sensitive", "attribute"})) return false;
  std::vector<AttributePath> paths;
  if (!AttributePath::ParseMany(rt, bound[2], &paths)) return false;
  std::vector<Value> items;
  std::vector<Value> keys;
  if (!Collect(rt, input, &items)) return false;
  for (const Value& item : items) {
    std::vector<Value> parts;
    for (const AttributePath& path : paths) {
      Value part;
      if (!path.Get(rt, item, nullptr, &part)) return false;
      if (!bound.Truth(1) && !IgnoreCase(rt, &part)) return false;
      parts.push_back(part);
    }
    Value key;
    if (!rt.MakeList(parts, &key)) return false;
    keys.push_back(key);
  }
  return SortByKeys(rt, keys, bound.Truth(0), &items) && rt.MakeList(items, out);
}

template <bool kMax>
bool Extreme(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  AttributePath path;
  std::vector<Value> items;
  if (!bound.Bind(rt, kMax ? "max" : "min", args, {"case_sensitive", "attribute"})) return false;
  if (bound[1] != nullptr && !path.Parse(rt, *bound[1])) return false;
  if (!Collect(rt, input, &items)) return false;
  if (items.empty()) return rt.MakeUndefined("extreme of an empty sequence", nullptr, out);
  Value best_key;
  for (size_t i = 0; i < items.size(); ++i) {
    Value key;
    bool better = i == 0;
    if (!path.Get(rt, items[i], nullptr, &key)) return false;
    if (!bound.Truth(0) && !IgnoreCase(rt, &key)) return false;
    if (i > 0 && !Compare(rt, kMax ? CompareOp::kGt : CompareOp::kLt, key, best_key, &better)) {
      return false;
    }
    if (!better) continue;
    best_key = key;
    *out = items[i];
  }
  return true;
}

bool Sum(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  AttributePath path;
  std::vector<Value> items;
  if (!bound.Bind(rt, "sum", args, {"attribute", "start"})) return false;
  if (bound[0] != nullptr && !path.Parse(rt, *bound[0])) return false;
  if (!Collect(rt, input, &items)) return false;
  Value total = bound[1] == nullptr ? Value::Int(0) : *bound[1];
  if (total.is_string()) return rt.Fail("sum cannot add strings");
  for (const Value& item : items) {
    Value part;
    if (!path.Get(rt, item, nullptr, &part) || !Operate(rt, BinaryOp::kAdd, total, part, &total)) {
      return false;
    }
  }
  *out = total;
  return true;
}

// Keys of what was seen live in a dict of the arena.
class UniqueItems final : public Generator {
 public:
  UniqueItems(const Value& input, Dict* seen, const AttributePath& path, bool case_sensitive)
      : input_(input), seen_(seen), path_(path), case_sensitive_(case_sensitive) {}
  bool Next(Runtime& rt, Value* out, bool* done) override {
    if (source_ == nullptr && !Iterate(rt, input_, &source_)) return false;
    while (true) {
      if (!source_->Next(rt, out, done)) return false;
      if (*done) return true;
      Value key;
      if (!path_.Get(rt, *out, nullptr, &key)) return false;
      if (!case_sensitive_ && !IgnoreCase(rt, &key)) return false;
      const size_t before = seen_->size();
      if (!rt.SetItem(seen_, key, Value::None())) return false;
      if (seen_->size() > before) return true;
    }
  }

 private:
  Value input_;
  Dict* seen_;
  AttributePath path_;
  bool case_sensitive_;
  Generator* source_ = nullptr;
};

bool Unique(Runtime& rt, const Value& input, const Args& args, Value* out) {
  BoundArgs bound;
  AttributePath path;
  if (!bound.Bind(rt, "unique", args, {"case_sensitive", "attribute"})) return false;
  if (bound[1] != nullptr && !path.Parse(rt, *bound[1])) return false;
  Dict* seen = rt.MakeDict();
  if (seen == nullptr) return false;
  UniqueItems* items = rt.arena().New<UniqueItems>(input, seen, path, bound.Truth(0));
  if (items == nullptr) return rt.FailMemory();
  *out = Value::OfGenerator(items);
  return true;
}

constexpr FilterEntry kEntries[] = {
    {"length", LengthFilter},
    {"count", LengthFilter},
    {"list", ListFilter},
    {"first", First},
    {"last", Last},
    {"reverse", Reverse},
    {"join", JoinFilter},
    {"items", Items},
    {"dictsort", DictSort},
    {"sort", Sort},
    {"min", Extreme<false>},
    {"max", Extreme<true>},
    {"sum", Sum},
    {"unique", Unique},
};

}  // namespace

const std::span<const FilterEntry> kSequenceFilters = kEntries;

bool SortByKeys(Runtime& rt, std::span<const Value> keys, bool reverse, std::vector<Value>* items) {
  // A merge sort of our own: the comparison can fail, and is only ever asked "less than".
  const size_t count = items->size();
  std::vector<size_t> order(count);
  std::vector<size_t> merged(count);
  for (size_t i = 0; i < count; ++i) order[i] = reverse ? count - 1 - i : i;
  for (size_t width = 1; width < count; width *= 2) {
    for (size_t begin = 0; begin < count; begin += 2 * width) {
      const size_t middle = std::min(begin + width, count);
      const size_t end = std::min(begin + 2 * width, count);
      size_t left = begin;
      size_t right = middle;
      for (size_t to = begin; to < end; ++to) {
        bool take_right = left == middle;
        if (left < middle && right < end &&
            !Compare(rt, CompareOp::kLt, keys[order[right]], keys[order[left]], &take_right)) {
          return false;
        }
        merged[to] = take_right ? order[right++] : order[left++];
      }
    }
    order.swap(merged);
  }
  std::vector<Value> sorted(count);
  for (size_t i = 0; i < count; ++i) {
    sorted[i] = (*items)[order[reverse ? count - 1 - i : i]];
  }
  items->swap(sorted);
  return true;
}

}  // namespace morphserve::jinja
