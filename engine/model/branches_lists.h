// The lists of a branches file's header: rankings, interaction matrix, quality table. Pure
// functions.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "absl/status/status.h"
#include "engine/loader/json_text.h"
#include "engine/model/branches.h"

namespace morphserve {

inline constexpr size_t kRankingsMax = 256;
inline constexpr size_t kQualityMax = 4096;

// Fills rankings, interaction and quality from the members of those names (Q for the second), all
// optional. INVALID_ARGUMENT names the entry: "branches.rankings[2].order".
absl::Status ReadSelectionLists(const JsonObject& object, int32_t layers, BranchesHeader* header);
// The same, and one of the rankings, if there are any, must be the default.
absl::Status ReadBranchesLists(const JsonObject& object, int32_t layers, BranchesHeader* header);

// INVALID_ARGUMENT names a member that is not in `known`.
absl::Status CheckKeys(const JsonObject& object, std::initializer_list<std::string_view> known);

}  // namespace morphserve
