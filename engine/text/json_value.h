// Parses JSON of a request into template values: order of keys kept, the last of equal keys wins,
// depth bounded, integers beyond 64 bits refused. All strings are untrusted. Thread rule: that of
// the Runtime.
#pragma once

#include <string_view>

#include "absl/status/status.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

inline constexpr int kJsonDepthMax = 32;

// INVALID_ARGUMENT starting with `what` (such as "tools[2].parameters"): a syntax error with its
// byte, the depth limit, a number that does not fit.
absl::Status ParseJson(Runtime& rt, std::string_view what, std::string_view json, Value* out);

}  // namespace morphserve::jinja
