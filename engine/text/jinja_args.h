// Arguments of a call and their binding to parameter names, with Python's errors. Any thread.
#pragma once

#include <initializer_list>
#include <span>
#include <string_view>

#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

struct NamedValue {
  std::string_view name;
  Value value;
};

struct Args {
  std::span<const Value> positional;
  std::span<const NamedValue> named;

  size_t size() const { return positional.size() + named.size(); }
};

// A bound parameter list: slot i holds the argument of the i-th name, or null.
class BoundArgs {
 public:
  static constexpr size_t kMax = 6;

  // Fails for too many, unknown, doubled or missing arguments (the first `required` must be given).
  [[nodiscard]] bool Bind(Runtime& rt, std::string_view callee, const Args& args,
                          std::initializer_list<std::string_view> names, size_t required = 0);
  const Value* operator[](size_t i) const { return values_[i]; }
  bool Truth(size_t i, bool otherwise = false) const {
    return values_[i] == nullptr ? otherwise : Truthy(*values_[i]);
  }

 private:
  const Value* values_[kMax] = {};
};

// Fails when any argument is given by name.
[[nodiscard]] bool NoNamed(Runtime& rt, std::string_view callee, const Args& args);

// The integer value of an argument that Python wants to be one.
[[nodiscard]] bool WantInt(Runtime& rt, std::string_view callee, const Value& value, int64_t* out);
[[nodiscard]] bool WantString(Runtime& rt, std::string_view callee, const Value& value);

}  // namespace morphserve::jinja
