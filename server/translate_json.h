// Checks JSON that a client sent as text, before anything reads it. Depth is bounded without
// recursion, and nothing is built.
// Thread rule: functions without state, any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace morphserve {

inline constexpr int kJsonDepthMax = 32;

// OK when `text` is one JSON object, at most kJsonDepthMax deep. Otherwise the message continues a
// field's path ("is not JSON: ... at byte 12"). `keys` (may be null) gets the names of its members.
absl::Status CheckJsonObject(std::string_view text, std::vector<std::string>* keys);

}  // namespace morphserve
