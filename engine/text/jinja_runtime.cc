#include "engine/text/jinja_runtime.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_format.h"

namespace morphserve::jinja {
namespace {

// Text of a client or a model inside an error message stays short.
constexpr size_t kRaisedBytesMax = 512;

// Intermediate values may take this many times the limit of one string.
constexpr int64_t kArenaFactor = 24;
constexpr int64_t kArenaBytesMin = 16 << 20;

// Cuts at a code point boundary.
std::string_view Shorten(std::string_view text) {
  if (text.size() <= kRaisedBytesMax) return text;
  size_t end = kRaisedBytesMax;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

// First run that ends after `offset`.
std::span<const TrustRun>::iterator RunAfter(const Str& text, size_t offset) {
  return std::partition_point(text.runs.begin(), text.runs.end(),
                              [offset](const TrustRun& run) { return run.end <= offset; });
}

}  // namespace

Runtime::Runtime(const Options& options)
    : arena_(std::max(options.text_bytes_max * kArenaFactor, kArenaBytesMin)),
      steps_max_(options.steps_max),
      text_bytes_max_(options.text_bytes_max),
      now_(options.now),
      steps_left_(options.steps_max) {}

bool Runtime::Fail(std::string message) {
  if (!error_) {
    error_ = line_ > 0 ? absl::StrFormat("line %d: %s", line_, Shorten(message))
                       : std::string(Shorten(message));
  }
  return false;
}

bool Runtime::FailSteps() {
  return Fail(absl::StrFormat("evaluation takes more than %d steps", steps_max_));
}

bool Runtime::FailLimit(size_t bytes) {
  return Fail(absl::StrFormat("text of %d bytes; limit is %d", bytes, text_bytes_max_));
}

bool Runtime::Raise(std::string_view text) {
  if (!error_) error_ = std::string(Shorten(text));
  return false;
}

absl::Status Runtime::status() const {
  if (!error_) return absl::OkStatus();
  return absl::InvalidArgumentError(*error_);
}

bool Runtime::MakeText(std::string_view text, bool trusted, Value* out) {
  if (static_cast<int64_t>(text.size()) > text_bytes_max_) return FailLimit(text.size());
  char* bytes = arena_.AllocateText(text.size());
  if (bytes == nullptr || !ChargeBytes(text.size())) return FailMemory();
  std::copy(text.begin(), text.end(), bytes);
  Str str;
  str.data = bytes;
  str.size = static_cast<uint32_t>(text.size());
  str.trusted = trusted;
  return MakeStr(str, out);
}

bool Runtime::MakeStr(const Str& str, Value* out) {
  const Str* placed = arena_.New<Str>(str);
  if (placed == nullptr) return FailMemory();
  *out = Value::String(placed);
  return true;
}

bool Runtime::MakeList(std::span<const Value> items, Value* out) {
  if (!Charge(static_cast<int64_t>(items.size()) / 8)) return false;
  const Value* copied = arena_.CopyArray(items.data(), items.size());
  List* list = arena_.New<List>();
  if (copied == nullptr || list == nullptr) return FailMemory();
  list->items = copied;
  list->size = items.size();
  *out = Value::OfList(list);
  return true;
}

bool Runtime::MakeTuple(std::span<const Value> items, Value* out) {
  if (!MakeList(items, out)) return false;
  *out = Value::Tuple(&out->list());
  return true;
}

bool Runtime::MakeUndefined(std::string_view name, const char* owner, Value* out) {
  UndefinedInfo* info = arena_.New<UndefinedInfo>();
  if (info == nullptr) return FailMemory();
  info->name = name;
  info->owner = owner;
  *out = Value::Undefined(info);
  return true;
}

Dict* Runtime::MakeDict() {
  Dict* dict = arena_.New<Dict>();
  if (dict == nullptr) FailMemory();
  return dict;
}

bool Runtime::SetItem(Dict* dict, const Value& key, const Value& value) {
  if (!Hashable(key)) {
    return Fail(absl::StrFormat("unhashable dict key of type '%s'", TypeName(key)));
  }
  return dict->Set(arena_, key, value) || FailMemory();
}

bool Runtime::FailUndefined(const Value& value) {
  const UndefinedInfo* info = value.undefined_info();
  if (info == nullptr) return Fail("value is undefined");
  if (info->unsafe) {
    return Fail(absl::StrFormat("access to attribute '%s' of '%s' object is unsafe", info->name,
                                info->owner == nullptr ? "" : info->owner));
  }
  if (info->owner == nullptr) return Fail(absl::StrFormat("'%s' is undefined", info->name));
  return Fail(absl::StrFormat("'%s object' has no attribute '%s'", info->owner, info->name));
}

void TextBuilder::Mark(size_t begin, size_t end) {
  if (begin == end) return;
  if (!runs_.empty() && runs_.back().end == begin) {
    runs_.back().end = static_cast<uint32_t>(end);
  } else {
    runs_.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
  }
}

void TextBuilder::Append(std::string_view text, bool trusted) {
  if (rt_.failed()) return;
  const size_t end = bytes_.size() + text.size();
  if (static_cast<int64_t>(end) > rt_.text_bytes_max()) {
    rt_.FailLimit(end);
    return;
  }
  if (!rt_.ChargeBytes(text.size())) return;
  if (trusted) Mark(bytes_.size(), end);
  bytes_.append(text);
}

void TextBuilder::AppendSlice(const Str& text, uint32_t begin, uint32_t end) {
  if (!text.mixed()) {
    Append(text.view().substr(begin, end - begin), text.trusted);
    return;
  }
  const size_t base = bytes_.size();
  Append(text.view().substr(begin, end - begin), false);
  if (rt_.failed()) return;
  for (auto run = RunAfter(text, begin); run != text.runs.end() && run->begin < end; ++run) {
    Mark(base + std::max(run->begin, begin) - begin, base + std::min(run->end, end) - begin);
  }
}

void TextBuilder::AppendFor(std::string_view text, const Str& source, uint32_t offset) {
  Append(text, TrustedAt(source, offset));
}

void TextBuilder::Clear() {
  bytes_.clear();
  runs_.clear();
}

bool TextBuilder::Finish(Value* out, bool markup) {
  if (rt_.failed()) return false;
  char* bytes = rt_.arena().AllocateText(bytes_.size());
  if (bytes == nullptr) return rt_.FailMemory();
  std::copy(bytes_.begin(), bytes_.end(), bytes);
  Str str;
  str.data = bytes;
  str.size = static_cast<uint32_t>(bytes_.size());
  str.markup = markup;
  if (bytes_.empty() || (runs_.size() == 1 && runs_[0].begin == 0 && runs_[0].end == str.size)) {
    str.trusted = true;
  } else if (!runs_.empty()) {
    const TrustRun* runs = rt_.arena().CopyArray(runs_.data(), runs_.size());
    if (runs == nullptr) return rt_.FailMemory();
    str.runs = {runs, runs_.size()};
  }
  return rt_.MakeStr(str, out);
}

std::string TextBuilder::Release(std::vector<ByteRange>* trusted) {
  trusted->clear();
  trusted->reserve(runs_.size());
  for (const TrustRun& run : runs_) trusted->push_back({run.begin, run.end});
  runs_.clear();
  return std::move(bytes_);
}

bool Substr(Runtime& rt, const Str& text, size_t begin, size_t end, Value* out) {
  if (begin == 0 && end == text.size) return rt.MakeStr(text, out);
  Str part;
  part.data = text.data + begin;
  part.size = static_cast<uint32_t>(end - begin);
  part.markup = text.markup;
  part.trusted = text.trusted || begin == end;
  if (text.mixed() && begin < end) {
    const auto first = RunAfter(text, begin);
    auto last = first;
    while (last != text.runs.end() && last->begin < end) ++last;
    if (last - first == 1 && first->begin <= begin && first->end >= end) {
      part.trusted = true;
    } else if (first != last) {
      const size_t count = static_cast<size_t>(last - first);
      TrustRun* runs = rt.arena().NewArray<TrustRun>(count);
      if (runs == nullptr || !rt.Charge(static_cast<int64_t>(count) / 8)) return rt.FailMemory();
      for (size_t i = 0; i < count; ++i) {
        const TrustRun& run = *(first + static_cast<std::ptrdiff_t>(i));
        runs[i] = {static_cast<uint32_t>(std::max<size_t>(run.begin, begin) - begin),
                   static_cast<uint32_t>(std::min<size_t>(run.end, end) - begin)};
      }
      part.runs = {runs, count};
    }
  }
  return rt.MakeStr(part, out);
}

bool TrustedAt(const Str& text, uint32_t offset) {
  if (!text.mixed()) return text.trusted;
  const auto run = RunAfter(text, offset);
  return run != text.runs.end() && run->begin <= offset;
}

namespace {

// Runs of a followed by b; merged where they touch.
bool JoinRuns(Runtime& rt, const Str& a, const Str& b, Str* joined) {
  const TrustRun all_a{0, a.size};
  const TrustRun all_b{0, b.size};
  std::span<const TrustRun> left = a.runs;
  std::span<const TrustRun> right = b.runs;
  if (a.trusted && a.size > 0) left = {&all_a, 1};
  if (b.trusted && b.size > 0) right = {&all_b, 1};
  const size_t count = left.size() + right.size();
  if (count == 0) return true;
  TrustRun* runs = rt.arena().NewArray<TrustRun>(count);
  if (runs == nullptr || !rt.Charge(static_cast<int64_t>(count) / 8)) return rt.FailMemory();
  size_t n = 0;
  for (const TrustRun& run : left) runs[n++] = run;
  for (const TrustRun& run : right) {
    const TrustRun moved{run.begin + a.size, run.end + a.size};
    if (n > 0 && runs[n - 1].end == moved.begin) {
      runs[n - 1].end = moved.end;
    } else {
      runs[n++] = moved;
    }
  }
  joined->runs = {runs, n};
  return true;
}

}  // namespace

bool Concat(Runtime& rt, const Str& a, const Str& b, bool markup, Value* out) {
  const size_t size = size_t{a.size} + b.size;
  if (static_cast<int64_t>(size) > rt.text_bytes_max()) return rt.FailLimit(size);
  Str joined;
  joined.size = static_cast<uint32_t>(size);
  joined.markup = markup;
  if (rt.arena().ExtendText(a.data + a.size, b.size)) {
    if (!rt.ChargeBytes(b.size)) return false;
    std::copy_n(b.data, b.size, const_cast<char*>(a.data) + a.size);
    joined.data = a.data;
  } else {
    if (!rt.ChargeBytes(size)) return false;
    char* bytes = rt.arena().AllocateText(size);
    if (bytes == nullptr) return rt.FailMemory();
    std::copy_n(a.data, a.size, bytes);
    std::copy_n(b.data, b.size, bytes + a.size);
    joined.data = bytes;
  }
  joined.trusted = (a.trusted || a.size == 0) && (b.trusted || b.size == 0);
  if (!joined.trusted && !JoinRuns(rt, a, b, &joined)) return false;
  return rt.MakeStr(joined, out);
}

}  // namespace morphserve::jinja
