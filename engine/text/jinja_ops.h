// Operators, lookups, comparison and iteration of values, as Python and the sandbox of the
// reference define them. Every function returns false after it failed the runtime. Thread rule:
// that of the Runtime.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/text/jinja_ast.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

// a.name: a method first, then the key. a[key]: the key first, then a method. A miss is undefined.
[[nodiscard]] bool GetAttribute(Runtime& rt, const Value& object, std::string_view name,
                                Value* out);
[[nodiscard]] bool GetItem(Runtime& rt, const Value& object, const Value& key, Value* out);

// a[start:stop:step]; null bounds are left out.
[[nodiscard]] bool GetSlice(Runtime& rt, const Value& object, const Value* start, const Value* stop,
                            const Value* step, Value* out);

[[nodiscard]] bool Operate(Runtime& rt, BinaryOp op, const Value& a, const Value& b, Value* out);
[[nodiscard]] bool Negate(Runtime& rt, const Value& value, bool negative, Value* out);

[[nodiscard]] bool Compare(Runtime& rt, CompareOp op, const Value& a, const Value& b, bool* out);
[[nodiscard]] bool Contains(Runtime& rt, const Value& container, const Value& item, bool* out);
[[nodiscard]] bool EqualValues(Runtime& rt, const Value& a, const Value& b, bool* out);

// len(); fails for what has none.
[[nodiscard]] bool Length(Runtime& rt, const Value& value, int64_t* out);

// iter(): a one-pass view of any iterable; fails for the rest.
[[nodiscard]] bool Iterate(Runtime& rt, const Value& value, Generator** out);
bool IsIterable(const Value& value);
[[nodiscard]] bool Collect(Runtime& rt, const Value& value, std::vector<Value>* out);

// The entry of a view at `index`, as iteration yields it.
[[nodiscard]] bool ViewItem(Runtime& rt, const View& view, size_t index, Value* out);

// HTML escaping, which mixing with a `safe` string brings about; the result is markup.
[[nodiscard]] bool EscapeHtml(Runtime& rt, const Str& text, Value* out);

// Index of Python's container[index]: negative counts from the end; false when outside.
bool NormalizeIndex(int64_t index, int64_t size, int64_t* out);

}  // namespace morphserve::jinja
