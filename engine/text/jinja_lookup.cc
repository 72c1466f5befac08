// Lookups, slices, length and iteration of jinja_ops.h.
#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_loop.h"
#include "engine/text/jinja_methods.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::jinja {
namespace {

bool MakeMethod(Runtime& rt, const Value& object, std::string_view name, Value* out) {
  Method* method = rt.arena().New<Method>();
  if (method == nullptr) return rt.FailMemory();
  method->self = object;
  method->name = name;
  *out = Value::OfMethod(method);
  return true;
}

bool MakeUnsafe(Runtime& rt, const Value& object, std::string_view name, Value* out) {
  UndefinedInfo* info = rt.arena().New<UndefinedInfo>();
  if (info == nullptr) return rt.FailMemory();
  info->name = name;
  info->owner = TypeName(object);
  info->unsafe = true;
  *out = Value::Undefined(info);
  return true;
}

int64_t RangeItem(const Range& range, int64_t index) { return range.start + range.step * index; }

// What Python's getattr finds: a method, a property of a loop, an item of a namespace.
bool FindAttribute(Runtime& rt, const Value& object, std::string_view name, Value* out,
                   bool* found) {
  *found = true;
  if (name.starts_with("__")) return MakeUnsafe(rt, object, name, out);
  switch (FindMethod(object, name)) {
    case MethodKind::kSafe: return MakeMethod(rt, object, name, out);
    case MethodKind::kHidden: return MakeUnsafe(rt, object, name, out);
    case MethodKind::kNone: break;
  }
  if (object.is(Kind::kLoop)) return LoopAttribute(rt, object.loop(), name, out, found);
  if (object.is(Kind::kNamespace)) {
    if (const Value* value = object.dict().FindText(name)) {
      *out = *value;
      return true;
    }
  }
  *found = false;
  return true;
}

// What Python's object[key] finds. `*found` is false for a miss and for a type error alike: the
// reference treats both as "try the attribute".
bool FindItem(Runtime& rt, const Value& object, const Value& key, Value* out, bool* found) {
  *found = false;
  if (object.is(Kind::kDict)) {
    const Value* value = Hashable(key) ? object.dict().Find(key) : nullptr;
    if (value == nullptr) return true;
    *out = *value;
    *found = true;
    return true;
  }
  if (!key.is_integral()) return true;
  int64_t index = 0;
  if (object.is_sequence()) {
    const auto items = object.list().span();
    if (!NormalizeIndex(key.integer(), static_cast<int64_t>(items.size()), &index)) return true;
    *out = items[static_cast<size_t>(index)];
    *found = true;
  } else if (object.is(Kind::kRange)) {
    const Range& range = object.range();
    if (!NormalizeIndex(key.integer(), range.length, &index)) return true;
    *out = Value::Int(RangeItem(range, index));
    *found = true;
  } else if (object.is_string()) {
    const std::string_view text = object.text();
    if (!rt.ChargeBytes(text.size())) return false;
    const int64_t count = static_cast<int64_t>(CountCodePoints(text));
    if (!NormalizeIndex(key.integer(), count, &index)) return true;
    const size_t begin = OffsetOfCodePoint(text, static_cast<size_t>(index));
    size_t end = begin;
    NextCodePoint(text, &end);
    *found = true;
    return Substr(rt, object.str(), begin, end, out);
  }
  return true;
}

}  // namespace

bool NormalizeIndex(int64_t index, int64_t size, int64_t* out) {
  *out = index < 0 ? index + size : index;
  return *out >= 0 && *out < size;
}

bool GetAttribute(Runtime& rt, const Value& object, std::string_view name, Value* out) {
  if (object.is_undefined()) return rt.FailUndefined(object);
  bool found = false;
  if (!FindAttribute(rt, object, name, out, &found)) return false;
  if (found) return true;
  if (object.is(Kind::kDict)) {
    if (const Value* value = object.dict().FindText(name)) {
      *out = *value;
      return true;
    }
  }
  return rt.MakeUndefined(name, TypeName(object), out);
}

bool GetItem(Runtime& rt, const Value& object, const Value& key, Value* out) {
  if (object.is_undefined()) return rt.FailUndefined(object);
  bool found = false;
  if (!FindItem(rt, object, key, out, &found)) return false;
  if (found) return true;
  if (key.is_string()) {
    if (!FindAttribute(rt, object, key.text(), out, &found)) return false;
    if (found) return true;
    return rt.MakeUndefined(key.text(), TypeName(object), out);
  }
  return rt.MakeUndefined("element", TypeName(object), out);
}

namespace {

struct SliceBounds {
  int64_t start = 0;
  int64_t stop = 0;
  int64_t step = 1;
  int64_t length = 0;
};

// Python's slice.indices().
bool ResolveSlice(Runtime& rt, int64_t size, const Value* start, const Value* stop,
                  const Value* step, SliceBounds* out) {
  for (const Value* bound : {start, stop, step}) {
    if (bound == nullptr || bound->is(Kind::kNone) || bound->is_integral()) continue;
    if (bound->is_undefined()) return rt.FailUndefined(*bound);
    return rt.Fail("slice indices must be integers or none");
  }
  const auto given = [](const Value* v) { return v != nullptr && v->is_integral(); };
  out->step = given(step) ? step->integer() : 1;
  if (out->step == 0) return rt.Fail("slice step cannot be zero");
  // No slice is longer than this, and it keeps -step from overflowing.
  out->step = std::clamp<int64_t>(out->step, -(int64_t{1} << 40), int64_t{1} << 40);
  const int64_t low = out->step > 0 ? 0 : -1;
  const int64_t high = out->step > 0 ? size : size - 1;
  const auto clamp = [size, low, high](int64_t index) {
    if (index < 0) index = index < -size ? -1 - size : index;
    return std::clamp(index < 0 ? index + size : index, low, high);
  };
  out->start = given(start) ? clamp(start->integer()) : (out->step > 0 ? low : high);
  out->stop = given(stop) ? clamp(stop->integer()) : (out->step > 0 ? high : low);
  const int64_t span = out->step > 0 ? out->stop - out->start : out->start - out->stop;
  const int64_t stride = out->step > 0 ? out->step : -out->step;
  out->length = span <= 0 ? 0 : (span + stride - 1) / stride;
  return true;
}

bool SliceText(Runtime& rt, const Str& text, const Value* start, const Value* stop,
               const Value* step, Value* out) {
  const std::string_view view = text.view();
  if (!rt.ChargeBytes(view.size() * 2)) return false;
  const size_t count = CountCodePoints(view);
  SliceBounds bounds;
  if (!ResolveSlice(rt, static_cast<int64_t>(count), start, stop, step, &bounds)) return false;
  if (bounds.step == 1) {
    const size_t begin = OffsetOfCodePoint(view, static_cast<size_t>(bounds.start));
    const size_t length = OffsetOfCodePoint(view.substr(begin), static_cast<size_t>(bounds.length));
    return Substr(rt, text, begin, begin + length, out);
  }
  if (!rt.Charge(bounds.length)) return false;
  TextBuilder builder(rt);
  const bool ascii = count == view.size();
  std::vector<uint32_t> offsets;
  if (!ascii) {
    if (!rt.Charge(static_cast<int64_t>(count) / 8)) return false;
    offsets.reserve(count + 1);
    for (size_t at = 0; at < view.size();) {
      offsets.push_back(static_cast<uint32_t>(at));
      NextCodePoint(view, &at);
    }
    offsets.push_back(text.size);
  }
  for (int64_t i = 0; i < bounds.length && !rt.failed(); ++i) {
    const size_t index = static_cast<size_t>(bounds.start + i * bounds.step);
    const uint32_t begin = ascii ? static_cast<uint32_t>(index) : offsets[index];
    const uint32_t end = ascii ? begin + 1 : offsets[index + 1];
    builder.AppendSlice(text, begin, end);
  }
  return builder.Finish(out, text.markup);
}

}  // namespace

bool GetSlice(Runtime& rt, const Value& object, const Value* start, const Value* stop,
              const Value* step, Value* out) {
  if (object.is_undefined()) return rt.FailUndefined(object);
  if (object.is_string()) return SliceText(rt, object.str(), start, stop, step, out);
  SliceBounds bounds;
  if (object.is(Kind::kRange)) {
    const Range& range = object.range();
    if (!ResolveSlice(rt, range.length, start, stop, step, &bounds)) return false;
    Range* part = rt.arena().New<Range>();
    if (part == nullptr) return rt.FailMemory();
    // Elements that exist fit in 64 bits; only ends that are never reached may wrap.
    const auto at = [&range](int64_t index) {
      return static_cast<int64_t>(static_cast<uint64_t>(range.start) +
                                  static_cast<uint64_t>(index) * static_cast<uint64_t>(range.step));
    };
    part->start = at(bounds.start);
    part->step = static_cast<int64_t>(static_cast<uint64_t>(range.step) *
                                      static_cast<uint64_t>(bounds.step));
    part->length = bounds.length;
    part->stop = at(bounds.stop);
    *out = Value::OfRange(part);
    return true;
  }
  if (!object.is_sequence()) {
    return rt.Fail(absl::StrFormat("'%s' object cannot be sliced", TypeName(object)));
  }
  const auto items = object.list().span();
  if (!ResolveSlice(rt, static_cast<int64_t>(items.size()), start, stop, step, &bounds) ||
      !rt.Charge(bounds.length)) {
    return false;
  }
  std::vector<Value> part;
  part.reserve(static_cast<size_t>(bounds.length));
  for (int64_t i = 0; i < bounds.length; ++i) {
    part.push_back(items[static_cast<size_t>(bounds.start + i * bounds.step)]);
  }
  return object.is(Kind::kTuple) ? rt.MakeTuple(part, out) : rt.MakeList(part, out);
}

bool Length(Runtime& rt, const Value& value, int64_t* out) {
  switch (value.kind()) {
    case Kind::kUndefined: *out = 0; return true;
    case Kind::kString:
      if (!rt.ChargeBytes(value.str().size)) return false;
      *out = static_cast<int64_t>(CountCodePoints(value.text()));
      return true;
    case Kind::kList:
    case Kind::kTuple: *out = static_cast<int64_t>(value.list().size); return true;
    case Kind::kDict: *out = static_cast<int64_t>(value.dict().size()); return true;
    case Kind::kRange: *out = value.range().length; return true;
    case Kind::kView: *out = static_cast<int64_t>(value.view().dict->size()); return true;
    case Kind::kLoop: return LoopLength(rt, value.loop(), out);
    default: return rt.Fail(absl::StrFormat("object of type '%s' has no length", TypeName(value)));
  }
}

namespace {

class EmptyIterator final : public Generator {
 public:
  bool Next(Runtime&, Value*, bool* done) override {
    *done = true;
    return true;
  }
};

class ListIterator final : public Generator {
 public:
  explicit ListIterator(std::span<const Value> items) : items_(items) {}
  bool Next(Runtime& rt, Value* out, bool* done) override {
    *done = at_ >= items_.size();
    if (!*done) *out = items_[at_++];
    return rt.Charge();
  }

 private:
  std::span<const Value> items_;
  size_t at_ = 0;
};

class TextIterator final : public Generator {
 public:
  explicit TextIterator(const Str& text) : text_(text) {}
  bool Next(Runtime& rt, Value* out, bool* done) override {
    *done = at_ >= text_.size;
    if (*done) return true;
    const size_t begin = at_;
    NextCodePoint(text_.view(), &at_);
    return rt.Charge() && Substr(rt, text_, begin, at_, out);
  }

 private:
  const Str& text_;
  size_t at_ = 0;
};

class RangeIterator final : public Generator {
 public:
  explicit RangeIterator(const Range& range) : range_(range) {}
  bool Next(Runtime& rt, Value* out, bool* done) override {
    *done = at_ >= range_.length;
    if (!*done) *out = Value::Int(RangeItem(range_, at_++));
    return rt.Charge();
  }

 private:
  const Range& range_;
  int64_t at_ = 0;
};

class ViewIterator final : public Generator {
 public:
  explicit ViewIterator(View view) : view_(view) {}
  bool Next(Runtime& rt, Value* out, bool* done) override {
    *done = at_ >= view_.dict->size();
    return rt.Charge() && (*done || ViewItem(rt, view_, at_++, out));
  }

 private:
  View view_;
  size_t at_ = 0;
};

template <typename T, typename... Args>
bool Place(Runtime& rt, Generator** out, Args&&... args) {
  *out = rt.arena().New<T>(std::forward<Args>(args)...);
  return *out != nullptr || rt.FailMemory();
}

}  // namespace

bool ViewItem(Runtime& rt, const View& view, size_t index, Value* out) {
  const Dict::Entry& entry = view.dict->entries()[index];
  if (view.kind == ViewKind::kItems) {
    const Value pair[] = {entry.key, entry.value};
    return rt.MakeTuple(pair, out);
  }
  *out = view.kind == ViewKind::kKeys ? entry.key : entry.value;
  return true;
}

bool IsIterable(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kRange:
    case Kind::kView:
    case Kind::kGenerator:
    case Kind::kLoop: return true;
    default: return false;
  }
}

bool Iterate(Runtime& rt, const Value& value, Generator** out) {
  switch (value.kind()) {
    case Kind::kUndefined: return Place<EmptyIterator>(rt, out);
    case Kind::kString: return Place<TextIterator>(rt, out, value.str());
    case Kind::kList:
    case Kind::kTuple: return Place<ListIterator>(rt, out, value.list().span());
    case Kind::kDict: return Place<ViewIterator>(rt, out, View{&value.dict(), ViewKind::kKeys});
    case Kind::kRange: return Place<RangeIterator>(rt, out, value.range());
    case Kind::kView: return Place<ViewIterator>(rt, out, value.view());
    case Kind::kGenerator: *out = &value.generator(); return true;
    case Kind::kLoop: return rt.Fail("a loop cannot be iterated from inside");
    default: return rt.Fail(absl::StrFormat("'%s' object is not iterable", TypeName(value)));
  }
}

bool Collect(Runtime& rt, const Value& value, std::vector<Value>* out) {
  Generator* items = nullptr;
  if (!Iterate(rt, value, &items)) return false;
  while (true) {
    Value item;
    bool done = false;
    if (!items->Next(rt, &item, &done)) return false;
    if (done) return true;
    out->push_back(item);
  }
}

bool EscapeHtml(Runtime& rt, const Str& text, Value* out) {
  TextBuilder builder(rt);
  uint32_t plain = 0;
  for (uint32_t i = 0; i < text.size; ++i) {
    const char c = text.data[i];
    const std::string_view entity = c == '&'    ? "&amp;"
                                    : c == '<'  ? "&lt;"
                                    : c == '>'  ? "&gt;"
                                    : c == '\'' ? "&#39;"
                                    : c == '"'  ? "&#34;"
                                                : "";
    if (entity.empty()) continue;
    builder.AppendSlice(text, plain, i);
    builder.AppendFor(entity, text, i);
    plain = i + 1;
  }
  builder.AppendSlice(text, plain, text.size);
  return builder.Finish(out, true);
}

}  // namespace morphserve::jinja
