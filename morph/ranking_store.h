// RankingStore joins what was selected on this server, or beside it, with the rankings of the
// branches file, for everybody who asks the engine what is known of its layers; and keeps it in a
// file. The branches file's entries come first and stay as they are: its default serves by
// default, and a name it has is never taken. Thread rule: Add from one thread at a time, the rest
// from any. Ownership: borrows the engine.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "morph/rankings_file.h"

namespace morphserve {

class RankingStore {
 public:
  // Reads `path` when it exists; an empty path keeps nothing over restarts. Errors of LoadRankings
  // but NOT_FOUND: a file that is broken or of other layers is never written over.
  // FAILED_PRECONDITION / NOT_MORPHABLE on a dense model.
  static absl::StatusOr<std::unique_ptr<RankingStore>> Open(Engine* engine, const RankingsKey& key,
                                                            std::string path);

  // From now on the engine knows these lists too. UNAVAILABLE when they could not be kept in the
  // file; they are known all the same.
  absl::Status Add(RankingLists lists);

  // The least seed from `seed` on with which the branches file has no ranking of that context.
  int64_t FreeSeed(int32_t context, int64_t seed) const;

 private:
  RankingStore(Engine* engine, const RankingsKey& key, std::string path,
               std::shared_ptr<const BranchesHeader> stored)
      : engine_(engine), key_(key), path_(std::move(path)), stored_(std::move(stored)) {}
  void Publish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Engine* const engine_;
  const RankingsKey key_;
  const std::string path_;
  const std::shared_ptr<const BranchesHeader> stored_;  // The branches file's.
  Mutex mutex_;
  RankingLists lists_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
