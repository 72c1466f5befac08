// LoopState is the `loop` variable of a for statement: it pulls the items one ahead at most, as the
// reference does, so that filters with side effects on namespaces see the same order of events.
// Thread rule: that of the Runtime. Lives in its arena.
#pragma once

#include <cstdint>
#include <string_view>

#include "engine/text/jinja_ast.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

struct LoopState {
  const ForNode* node = nullptr;
  Frame* frame = nullptr;       // Where a recursive loop was entered.
  Generator* source = nullptr;  // Filtered already.
  Value sized;                  // What is iterated, when its length is that of the loop.
  bool has_size = false;
  int64_t length = -1;  // Unknown until asked for.
  int64_t index0 = -1;
  int64_t depth0 = 0;
  bool has_after = false;  // `after` was pulled ahead.
  bool exhausted = false;
  Value after;
  Value current = Value::Missing();
  Value before = Value::Missing();
  Value changed = Value::Missing();  // Arguments of the latest loop.changed().
};

// Moves to the next item; `*done` at the end.
[[nodiscard]] bool LoopNext(Runtime& rt, LoopState& loop, bool* done);

[[nodiscard]] bool LoopLength(Runtime& rt, LoopState& loop, int64_t* out);

// loop.name; `*found` is false for what a loop does not have.
[[nodiscard]] bool LoopAttribute(Runtime& rt, LoopState& loop, std::string_view name, Value* out,
                                 bool* found);

}  // namespace morphserve::jinja
