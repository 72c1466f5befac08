#include "morph/ranking_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/model/branches_lists.h"
#include "engine/model/stored_plans.h"
#include "engine/reasons.h"

namespace morphserve {
namespace {

bool HasName(const BranchesHeader& header, const std::string& name) {
  return std::any_of(
      header.rankings.begin(), header.rankings.end(),
      [&name](const BranchesRanking& ranking) { return RankingName(ranking) == name; });
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankingStore>> RankingStore::Open(Engine* engine,
                                                                 const RankingsKey& key,
                                                                 std::string path) {
  std::shared_ptr<const BranchesHeader> stored = engine->branches();
  if (stored == nullptr) {
    return WithReason(absl::FailedPreconditionError("the model has no linear branches to rank"),
                      reason::kNotMorphable);
  }
  std::unique_ptr<RankingStore> store(new RankingStore(engine, key, path, std::move(stored)));
  if (path.empty()) return store;
  auto lists = LoadRankings(path, key, engine->info().layers);
  if (absl::IsNotFound(lists.status())) return store;
  if (!lists.ok()) {
    return absl::Status(
        lists.status().code(),
        absl::StrFormat("morph.rankings_file %s: %s", path, std::string(lists.status().message())));
  }
  MutexLock lock(&store->mutex_);
  store->lists_ = *std::move(lists);
  store->Publish();
  MS_LOG(INFO) << "rankings file: rankings=" << store->lists_.rankings.size()
               << " measured_sets=" << store->lists_.quality.size();
  return store;
}

void RankingStore::Publish() {
  auto known = std::make_shared<BranchesHeader>(*stored_);
  for (const BranchesRanking& ranking : lists_.rankings) {
    if (HasName(*stored_, RankingName(ranking))) {
      MS_LOG(WARNING) << "ranking " << RankingName(ranking)
                      << " of morph.rankings_file is left out: the branches file has that name";
      continue;
    }
    known->rankings.push_back(ranking);
  }
  if (!lists_.interaction.empty()) {
    known->interaction = lists_.interaction;
    known->interaction_here = true;
  }
  known->quality.insert(known->quality.end(), lists_.quality.begin(), lists_.quality.end());
  engine_->SetRankings(std::move(known));
}

absl::Status RankingStore::Add(RankingLists lists) {
  MutexLock lock(&mutex_);
  MergeLists(std::move(lists), kRankingsMax, kQualityMax, &lists_);
  Publish();
  return path_.empty() ? absl::OkStatus() : SaveRankings(path_, key_, lists_);
}

int64_t RankingStore::FreeSeed(int32_t context, int64_t seed) const {
  const auto taken = [&](const BranchesRanking& ranking) {
    return ranking.context == context && ranking.seed == seed;
  };
  while (std::any_of(stored_->rankings.begin(), stored_->rankings.end(), taken)) ++seed;
  return seed;
}

}  // namespace morphserve
