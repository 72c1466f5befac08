// The filters, tests and global functions of templates. Tables are constant; any thread.
#pragma once

#include <string_view>

#include "engine/text/jinja_args.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

struct FilterEntry {
  std::string_view name;
  bool (*apply)(Runtime& rt, const Value& input, const Args& args, Value* out);
};

struct TestEntry {
  std::string_view name;
  bool (*apply)(Runtime& rt, const Value& input, const Args& args, bool* out);
};

// Null when there is none of that name.
const FilterEntry* FindFilter(std::string_view name);
const TestEntry* FindTest(std::string_view name);

// range, dict, namespace, raise_exception, strftime_now.
[[nodiscard]] bool CallFunction(Runtime& rt, FunctionId id, const Args& args, Value* out);

// The global of that name; false when there is none.
bool FindGlobal(std::string_view name, Value* out);

// A dict from dict()'s or namespace()'s arguments: a mapping or pairs, then named values.
[[nodiscard]] bool BuildDict(Runtime& rt, std::string_view callee, const Args& args, Dict** out);

// Sorts as Python's sorted(): stable, by `keys`, which run parallel to `items`.
[[nodiscard]] bool SortByKeys(Runtime& rt, std::span<const Value> keys, bool reverse,
                              std::vector<Value>* items);

// Filters by theme (jinja_filters*.cc).
extern const std::span<const FilterEntry> kTextFilters;
extern const std::span<const FilterEntry> kSequenceFilters;
extern const std::span<const FilterEntry> kSelectFilters;

}  // namespace morphserve::jinja
