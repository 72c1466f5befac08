#include "engine/text/jinja_library.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/text/jinja_ops.h"
#include "engine/text/jinja_print.h"

namespace morphserve::jinja {
namespace {

constexpr int64_t kRangeItemsMax = 100'000;
constexpr size_t kTimeFormatBytesMax = 1024;

bool CallRange(Runtime& rt, const Args& args, Value* out) {
  int64_t bounds[3] = {0, 0, 1};
  const size_t count = args.positional.size();
  if (!NoNamed(rt, "range", args)) return false;
  if (count < 1 || count > 3) return rt.Fail("range wants one to three integers");
  for (size_t i = 0; i < count; ++i) {
    if (args.positional[i].is_undefined()) return rt.FailUndefined(args.positional[i]);
    const size_t to = count == 1 ? 1 : i;
    if (!WantInt(rt, "range", args.positional[i], &bounds[to])) return false;
  }
  if (bounds[2] == 0) return rt.Fail("range step cannot be zero");
  Range* range = rt.arena().New<Range>();
  if (range == nullptr) return rt.FailMemory();
  range->start = bounds[0];
  range->stop = bounds[1];
  range->step = bounds[2];
  const bool up = range->step > 0;
  if (up ? range->start < range->stop : range->start > range->stop) {
    // Distances and strides of int64 fit in uint64.
    const uint64_t from = static_cast<uint64_t>(range->start);
    const uint64_t to = static_cast<uint64_t>(range->stop);
    const uint64_t step = static_cast<uint64_t>(range->step);
    const uint64_t distance = up ? to - from : from - to;
    const uint64_t length = (distance - 1) / (up ? step : 0 - step) + 1;
    if (length > kRangeItemsMax) {
      return rt.Fail(absl::StrFormat("range of %d items; limit is %d", length, kRangeItemsMax));
    }
    range->length = static_cast<int64_t>(length);
  }
  *out = Value::OfRange(range);
  return true;
}

// Python's datetime handles these itself, for a time without a zone; the rest is strftime's.
std::string PrepareTimeFormat(std::string_view format, int64_t microseconds) {
  std::string prepared;
  for (size_t i = 0; i < format.size(); ++i) {
    const char next = i + 1 < format.size() ? format[i + 1] : '\0';
    if (format[i] != '%' || next == '\0') {
      prepared += format[i];
    } else if (next == 'f') {
      prepared += absl::StrFormat("%06d", microseconds);
      ++i;
    } else if (next == 'z' || next == 'Z') {
      ++i;
    } else {
      prepared += format[i];
      prepared += next;
      ++i;
    }
  }
  return prepared;
}

bool CallStrftimeNow(Runtime& rt, const Args& args, Value* out) {
  BoundArgs bound;
  if (!bound.Bind(rt, "strftime_now", args, {"format"}, 1)) return false;
  if (!WantString(rt, "strftime_now", *bound[0])) return false;
  const Str& format = bound[0]->str();
  if (format.size > kTimeFormatBytesMax) return rt.FailLimit(format.size);
  const absl::CivilSecond civil = absl::ToCivilSecond(rt.now(), absl::UTCTimeZone());
  const absl::Time second = absl::FromCivil(civil, absl::UTCTimeZone());
  const std::tm parts = absl::ToTM(second, absl::UTCTimeZone());
  // A character more, since strftime returns 0 for an empty result and for a full buffer alike.
  const std::string prepared =
      PrepareTimeFormat(format.view(), absl::ToInt64Microseconds(rt.now() - second)) + "!";
  std::array<char, 8 * kTimeFormatBytesMax> buffer;
  const size_t size = std::strftime(buffer.data(), buffer.size(), prepared.c_str(), &parts);
  if (size == 0) return rt.Fail("strftime_now: the result is too long");
  return rt.MakeText(std::string_view(buffer.data(), size - 1), format.trusted, out);
}

bool CallRaise(Runtime& rt, const Args& args) {
  BoundArgs bound;
  Value text;
  if (!bound.Bind(rt, "raise_exception", args, {"message"}, 1)) return false;
  return ToText(rt, *bound[0], &text) && rt.Raise(text.text());
}

}  // namespace

bool BuildDict(Runtime& rt, std::string_view callee, const Args& args, Dict** out) {
  Dict* dict = rt.MakeDict();
  if (dict == nullptr) return false;
  if (args.positional.size() > 1) {
    return rt.Fail(absl::StrFormat("%s takes at most one positional argument", callee));
  }
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (source.is(Kind::kDict)) {
      for (const Dict::Entry& entry : source.dict().entries()) {
        if (!rt.Charge() || !rt.SetItem(dict, entry.key, entry.value)) return false;
      }
    } else {
      std::vector<Value> pairs;
      if (!Collect(rt, source, &pairs)) return false;
      for (const Value& pair : pairs) {
        std::vector<Value> parts;
        if (!Collect(rt, pair, &parts)) return false;
        if (parts.size() != 2) return rt.Fail("dict wants pairs of key and value");
        if (!rt.SetItem(dict, parts[0], parts[1])) return false;
      }
    }
  }
  for (const NamedValue& argument : args.named) {
    Value key;
    if (!rt.MakeText(argument.name, true, &key) || !rt.SetItem(dict, key, argument.value)) {
      return false;
    }
  }
  *out = dict;
  return true;
}

bool CallFunction(Runtime& rt, FunctionId id, const Args& args, Value* out) {
  Dict* dict = nullptr;
  switch (id) {
    case FunctionId::kRange: return CallRange(rt, args, out);
    case FunctionId::kStrftimeNow: return CallStrftimeNow(rt, args, out);
    case FunctionId::kRaiseException: return CallRaise(rt, args);
    case FunctionId::kDict:
      if (!BuildDict(rt, "dict", args, &dict)) return false;
      *out = Value::OfDict(dict);
      return true;
    case FunctionId::kNamespace:
      if (!BuildDict(rt, "namespace", args, &dict)) return false;
      for (const Dict::Entry& entry : dict->entries()) {
        if (entry.key.is_string() && entry.key.text().starts_with('_')) {
          return rt.Fail("names in a namespace cannot start with '_'");
        }
      }
      *out = Value::Namespace(dict);
      return true;
  }
  return false;
}

bool FindGlobal(std::string_view name, Value* out) {
  static constexpr std::pair<std::string_view, FunctionId> kGlobals[] = {
      {"range", FunctionId::kRange},
      {"dict", FunctionId::kDict},
      {"namespace", FunctionId::kNamespace},
      {"raise_exception", FunctionId::kRaiseException},
      {"strftime_now", FunctionId::kStrftimeNow}};
  for (const auto& [global, id] : kGlobals) {
    if (global != name) continue;
    *out = Value::Function(id);
    return true;
  }
  return false;
}

const FilterEntry* FindFilter(std::string_view name) {
  for (const auto& filters : {kTextFilters, kSequenceFilters, kSelectFilters}) {
    for (const FilterEntry& entry : filters) {
      if (entry.name == name) return &entry;
    }
  }
  return nullptr;
}

}  // namespace morphserve::jinja
