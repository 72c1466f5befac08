#include "engine/text/jinja_arena.h"

#include <algorithm>

namespace morphserve::jinja {

void* Arena::AllocateIn(Bump& bump, size_t bytes, size_t alignment) {
  if (bytes > kCountMax || static_cast<int64_t>(bytes) > bytes_left_) return nullptr;
  const size_t misaligned = reinterpret_cast<uintptr_t>(bump.cursor) & (alignment - 1);
  const size_t padding = misaligned == 0 ? 0 : alignment - misaligned;
  if (bump.begin == nullptr || bytes + padding > static_cast<size_t>(bump.end - bump.cursor)) {
    // Half as much again leaves room to extend a growing text in place.
    const size_t chunk = std::max(kChunkBytes, bytes + bytes / 2);
    // What a chunk leaves unused counts in part: the limit is about memory, not about use.
    bytes_left_ -= static_cast<int64_t>(bytes + kChunkBytes / 4);
    chunks_.push_back(std::make_unique_for_overwrite<char[]>(chunk));
    bump.begin = bump.cursor = chunks_.back().get();
    bump.end = bump.begin + chunk;
  } else {
    bytes_left_ -= static_cast<int64_t>(bytes + padding);
    bump.cursor += padding;
  }
  char* place = bump.cursor;
  bump.cursor += bytes;
  return place;
}

void* Arena::Allocate(size_t bytes, size_t alignment) {
  return AllocateIn(objects_, bytes, alignment);
}

char* Arena::AllocateText(size_t bytes) { return static_cast<char*>(AllocateIn(text_, bytes, 1)); }

bool Arena::ExtendText(const char* end, size_t extra) {
  if (end != text_.cursor || text_.cursor == text_.begin) return false;
  if (extra > static_cast<size_t>(text_.end - text_.cursor)) return false;
  if (static_cast<int64_t>(extra) > bytes_left_) return false;
  bytes_left_ -= static_cast<int64_t>(extra);
  text_.cursor += extra;
  return true;
}

}  // namespace morphserve::jinja
