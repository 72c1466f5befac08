// Paths such as "function.name" or "0.type", by which filters look into the items of a sequence.
// Trivially copyable; parts live in the arena. Thread rule: that of the Runtime.
#pragma once

#include <span>
#include <vector>

#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

class AttributePath {
 public:
  // A string is cut at its dots, parts of digits become numbers; none is the item itself.
  [[nodiscard]] bool Parse(Runtime& rt, const Value& attribute);
  // Paths separated by commas; null gives the one empty path.
  [[nodiscard]] static bool ParseMany(Runtime& rt, const Value* attribute,
                                      std::vector<AttributePath>* out);
  // What the path leads to. A miss is `otherwise`, when given and not none.
  [[nodiscard]] bool Get(Runtime& rt, const Value& item, const Value* otherwise, Value* out) const;

 private:
  std::span<const Value> parts_;
};

// Lower case of a string, anything else as it is: how filters compare unless told otherwise.
[[nodiscard]] bool IgnoreCase(Runtime& rt, Value* value);

}  // namespace morphserve::jinja
