#include "engine/text/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/hash/hash.h"

namespace morphserve::jinja {
namespace {

bool EqualItems(std::span<const Value> a, std::span<const Value> b, int64_t* steps, int depth) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!Equal(a[i], b[i], steps, depth + 1)) return false;
  }
  return true;
}

bool EqualDicts(const Dict& a, const Dict& b, int64_t* steps, int depth) {
  if (a.size() != b.size()) return false;
  for (const Dict::Entry& entry : a.entries()) {
    const Value* other = b.Find(entry.key);
    if (other == nullptr || !Equal(entry.value, *other, steps, depth + 1)) return false;
  }
  return true;
}

// Views of keys and items compare as sets, views of values only with themselves.
bool EqualViews(const View& a, const View& b, int64_t* steps, int depth) {
  if (a.kind != b.kind) return false;
  if (a.kind == ViewKind::kItems) return EqualDicts(*a.dict, *b.dict, steps, depth);
  const auto keys = a.dict->entries();
  return a.kind == ViewKind::kKeys && keys.size() == b.dict->size() &&
         std::all_of(keys.begin(), keys.end(),
                     [&b](const Dict::Entry& entry) { return b.dict->Find(entry.key) != nullptr; });
}

bool EqualNumbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
  if (a.is(Kind::kFloat) && b.is(Kind::kFloat)) return a.number() == b.number();
  // Exact: an int64 compares with a double only when the double is that very integer.
  const double d = a.is(Kind::kFloat) ? a.number() : b.number();
  const int64_t i = a.is(Kind::kFloat) ? b.integer() : a.integer();
  if (!(d >= -0x1p63 && d < 0x1p63) || d != std::floor(d)) return false;
  return static_cast<int64_t>(d) == i;
}

uint64_t HashNumber(const Value& value) {
  if (value.is_integral()) return absl::HashOf(value.integer());
  const double d = value.number();
  if (d >= -0x1p63 && d < 0x1p63 && d == std::floor(d)) {
    return absl::HashOf(static_cast<int64_t>(d));
  }
  return absl::HashOf(d);
}

}  // namespace

template <typename Match>
const Dict::Entry* Dict::Lookup(uint64_t hash, Match match) const {
  if (index_ == nullptr) {
    for (size_t i = 0; i < size_; ++i) {
      if (match(entries_[i].key)) return &entries_[i];
    }
    return nullptr;
  }
  for (size_t at = hash & index_mask_; index_[at] != 0; at = (at + 1) & index_mask_) {
    const Entry& entry = entries_[index_[at] - 1];
    if (match(entry.key)) return &entry;
  }
  return nullptr;
}

const Value* Dict::Find(const Value& key) const {
  const uint64_t hash = index_ == nullptr ? 0 : HashOf(key);
  const Entry* entry = Lookup(hash, [&key](const Value& k) { return Equal(k, key, nullptr); });
  return entry == nullptr ? nullptr : &entry->value;
}

const Value* Dict::FindText(std::string_view key) const {
  const uint64_t hash = index_ == nullptr ? 0 : absl::HashOf(key);
  const Entry* entry =
      Lookup(hash, [key](const Value& k) { return k.is_string() && k.text() == key; });
  return entry == nullptr ? nullptr : &entry->value;
}

bool Dict::Set(Arena& arena, const Value& key, const Value& value) {
  if (const Value* present = Find(key); present != nullptr) {
    *const_cast<Value*>(present) = value;
    return true;
  }
  if (size_ == capacity_ && !Grow(arena)) return false;
  entries_[size_++] = {key, value};
  if (index_ != nullptr) {
    size_t at = HashOf(key) & index_mask_;
    while (index_[at] != 0) at = (at + 1) & index_mask_;
    index_[at] = static_cast<uint32_t>(size_);
  }
  return true;
}

bool Dict::Grow(Arena& arena) {
  const size_t capacity = std::max<size_t>(4, capacity_ * 2);
  if (capacity >= std::numeric_limits<uint32_t>::max() / 4) return false;
  Entry* entries = arena.NewArray<Entry>(capacity);
  if (entries == nullptr) return false;
  std::copy_n(entries_, size_, entries);
  if (capacity > kIndexFrom) {
    const size_t buckets = capacity * 2;  // A power of two, at most half full.
    uint32_t* index = arena.NewArray<uint32_t>(buckets);
    if (index == nullptr) return false;
    for (size_t i = 0; i < size_; ++i) {
      size_t at = HashOf(entries[i].key) & (buckets - 1);
      while (index[at] != 0) at = (at + 1) & (buckets - 1);
      index[at] = static_cast<uint32_t>(i + 1);
    }
    index_ = index;
    index_mask_ = buckets - 1;
  }
  entries_ = entries;
  capacity_ = capacity;
  return true;
}

const char* TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return value.str().markup ? "Markup" : "str";
    case Kind::kList: return "list";
    case Kind::kTuple: return "tuple";
    case Kind::kDict: return "dict";
    case Kind::kRange: return "range";
    case Kind::kView:
      switch (value.view().kind) {
        case ViewKind::kKeys: return "dict_keys";
        case ViewKind::kValues: return "dict_values";
        case ViewKind::kItems: return "dict_items";
      }
      return "dict_view";
    case Kind::kGenerator: return "generator";
    case Kind::kNamespace: return "namespace";
    case Kind::kMacro: return "Macro";
    case Kind::kMethod: return "method";
    case Kind::kFunction: return "function";
    case Kind::kLoop: return "LoopContext";
  }
  return "object";
}

bool Truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool:
    case Kind::kInt: return value.integer() != 0;
    case Kind::kFloat: return value.number() != 0.0;
    case Kind::kString: return value.str().size != 0;
    case Kind::kList:
    case Kind::kTuple: return value.list().size != 0;
    case Kind::kDict: return value.dict().size() != 0;
    case Kind::kRange: return value.range().length != 0;
    case Kind::kView: return value.view().dict->size() != 0;
    case Kind::kGenerator:
    case Kind::kNamespace:
    case Kind::kMacro:
    case Kind::kMethod:
    case Kind::kFunction:
    case Kind::kLoop: return true;
  }
  return true;
}

bool Hashable(const Value& value) {
  switch (value.kind()) {
    case Kind::kList:
    case Kind::kDict:
    case Kind::kView: return false;
    case Kind::kTuple: {
      const auto items = value.list().span();
      return std::all_of(items.begin(), items.end(), [](const Value& item) {
        return !item.is(Kind::kTuple) && Hashable(item);
      });
    }
    default: return true;
  }
}

uint64_t HashOf(const Value& value) {
  switch (value.kind()) {
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat: return HashNumber(value);
    case Kind::kString: return absl::HashOf(value.text());
    case Kind::kTuple: {
      uint64_t hash = absl::HashOf(value.list().size);
      for (const Value& item : value.list().span()) {
        if (!item.is(Kind::kTuple)) hash = absl::HashOf(hash, HashOf(item));
      }
      return hash;
    }
    case Kind::kRange: return absl::HashOf(value.range().length);
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone: return static_cast<uint64_t>(value.kind());
    case Kind::kMethod: return absl::HashOf(value.method().name);
    case Kind::kFunction: return static_cast<uint64_t>(value.function());
    default: return absl::HashOf(value.identity());
  }
}

bool Equal(const Value& a, const Value& b, int64_t* steps, int depth) {
  if (depth > kValueDepthMax || (steps != nullptr && --*steps < 0)) return false;
  if (a.is_number() && b.is_number()) return EqualNumbers(a, b);
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kString: return a.text() == b.text();
    case Kind::kList:
    case Kind::kTuple:
      if (a.identity() == b.identity()) return true;
      return EqualItems(a.list().span(), b.list().span(), steps, depth);
    case Kind::kDict:
      if (a.identity() == b.identity()) return true;
      return EqualDicts(a.dict(), b.dict(), steps, depth);
    case Kind::kRange:
      return a.range().length == b.range().length &&
             (a.range().length == 0 || a.range().start == b.range().start) &&
             (a.range().length <= 1 || a.range().step == b.range().step);
    case Kind::kView:
      return a.identity() == b.identity() || EqualViews(a.view(), b.view(), steps, depth);
    case Kind::kMethod:
      return a.method().name == b.method().name &&
             a.method().self.identity() == b.method().self.identity();
    case Kind::kFunction: return a.function() == b.function();
    default: return a.identity() == b.identity();
  }
}

}  // namespace morphserve::jinja
