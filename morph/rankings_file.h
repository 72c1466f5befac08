// The rankings file keeps what was selected for one base checkpoint and its branches outside of the
// branches file, in the words of that file's metadata (engine/model/README.md): JSON {format,
// base_id, branches_id, rankings, Q, quality}. It is written whole or not at all. Functions without
// state.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/sha256.h"
#include "engine/model/branches.h"

namespace morphserve {

// Whose layers the lists are about.
struct RankingsKey {
  Sha256Digest base_id{};
  Sha256Digest branches_id{};
};

// Entries say `here`.
struct RankingLists {
  std::vector<BranchesRanking> rankings;         // Oldest first.
  std::vector<std::vector<double>> interaction;  // Of the newest sweep, or empty.
  std::vector<BranchesQuality> quality;          // Oldest first.
};

// Adds what is newer: a ranking of the same name, a figure of the same set and another matrix
// replace the older ones; past `rankings_max` and `quality_max` the oldest go.
void MergeLists(RankingLists newer, size_t rankings_max, size_t quality_max, RankingLists* lists);

std::string PrintLists(const RankingLists& lists);  // {"rankings": ..., "Q": ..., "quality": ...}.

// INVALID_ARGUMENT names the field that is wrong; FAILED_PRECONDITION when the file is of another
// base or other branches, with both ids.
absl::StatusOr<RankingLists> ParseRankings(std::string_view text, const RankingsKey& key,
                                           int32_t layers);
std::string PrintRankings(const RankingsKey& key, const RankingLists& lists);

// NOT_FOUND when there is no file; else as ParseRankings.
absl::StatusOr<RankingLists> LoadRankings(const std::string& path, const RankingsKey& key,
                                          int32_t layers);
// UNAVAILABLE, with the file as it was, when it cannot be written.
absl::Status SaveRankings(const std::string& path, const RankingsKey& key,
                          const RankingLists& lists);

}  // namespace morphserve
