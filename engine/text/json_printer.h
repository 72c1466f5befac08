// Prints template values as Python's json.dumps does. Strings keep their provenance; punctuation,
// numbers and names count as written by the template. Thread rule: that of the Runtime.
#pragma once

#include <optional>
#include <string>

#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  std::optional<std::string> indent;  // One level of it; none: a single line.
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};

// Leaves the runtime failed for what json.dumps refuses, and past its depth and byte limits.
void AppendJson(Runtime& rt, const Value& value, const JsonStyle& style, TextBuilder* out);

}  // namespace morphserve::jinja
