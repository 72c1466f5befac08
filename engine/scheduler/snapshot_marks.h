// Where in a prompt a snapshot of the linear layers' memory is worth taking: its stable end, the
// point where it leaves what the prefix index knows, where the client asked, and a sparse ladder.
// Pure functions.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/cache/cache_manager.h"
#include "engine/request.h"

namespace morphserve {

struct SnapshotMark {
  int32_t position = 0;  // The memory after so many tokens.
  SnapshotPoint point = SnapshotPoint::kPromptEnd;
};

// Rising positions in (hit.tokens, prompt length], each once, under its most telling name. The
// ladder stands at 1024, 2048, 4096, ...
std::vector<SnapshotMark> MakeSnapshotMarks(const Request& request, const CacheHit& hit);

}  // namespace morphserve
