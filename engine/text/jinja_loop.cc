#include "engine/text/jinja_loop.h"

#include <vector>

#include "engine/text/jinja_ops.h"

namespace morphserve::jinja {
namespace {

// Pulls one item ahead unless that was done; exhausted afterwards when there is none.
bool Peek(Runtime& rt, LoopState& loop) {
  if (loop.has_after || loop.exhausted) return true;
  bool done = false;
  if (!loop.source->Next(rt, &loop.after, &done)) return false;
  loop.exhausted = done;
  loop.has_after = !done;
  return true;
}

}  // namespace

bool LoopNext(Runtime& rt, LoopState& loop, bool* done) {
  if (!Peek(rt, loop)) return false;
  *done = !loop.has_after;
  if (*done) return true;
  loop.has_after = false;
  ++loop.index0;
  loop.before = loop.current;
  loop.current = loop.after;
  return true;
}

bool LoopLength(Runtime& rt, LoopState& loop, int64_t* out) {
  if (loop.length < 0 && loop.has_size) {
    if (!Length(rt, loop.sized, &loop.length)) return false;
  } else if (loop.length < 0) {
    std::vector<Value> rest;
    Value list;
    if (!loop.exhausted && !Collect(rt, Value::OfGenerator(loop.source), &rest)) return false;
    if (!rt.MakeList(rest, &list) || !Iterate(rt, list, &loop.source)) return false;
    loop.length = static_cast<int64_t>(rest.size()) + loop.index0 + 1 + (loop.has_after ? 1 : 0);
  }
  *out = loop.length;
  return true;
}

bool LoopAttribute(Runtime& rt, LoopState& loop, std::string_view name, Value* out, bool* found) {
  int64_t length = 0;
  *found = true;
  if (name == "index") {
    *out = Value::Int(loop.index0 + 1);
  } else if (name == "index0") {
    *out = Value::Int(loop.index0);
  } else if (name == "first") {
    *out = Value::Bool(loop.index0 == 0);
  } else if (name == "last") {
    if (!Peek(rt, loop)) return false;
    *out = Value::Bool(!loop.has_after);
  } else if (name == "length" || name == "revindex" || name == "revindex0") {
    if (!LoopLength(rt, loop, &length)) return false;
    *out = Value::Int(name == "length"     ? length
                      : name == "revindex" ? length - loop.index0
                                           : length - loop.index0 - 1);
  } else if (name == "depth" || name == "depth0") {
    *out = Value::Int(loop.depth0 + (name == "depth" ? 1 : 0));
  } else if (name == "previtem") {
    if (loop.index0 == 0) return rt.MakeUndefined("there is no previous item", nullptr, out);
    *out = loop.before;
  } else if (name == "nextitem") {
    if (!Peek(rt, loop)) return false;
    if (!loop.has_after) return rt.MakeUndefined("there is no next item", nullptr, out);
    *out = loop.after;
  } else {
    *found = false;
  }
  return true;
}

}  // namespace morphserve::jinja
