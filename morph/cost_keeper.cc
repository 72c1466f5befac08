#include "morph/cost_keeper.h"

#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "morph/cost_cache.h"
#include "morph/cost_measure.h"

namespace morphserve {
namespace {

absl::StatusOr<CostKey> KeyOf(const Engine& engine, const std::string& version) {
  const EngineInfo& info = engine.info();
  MS_ASSIGN_OR_RETURN(const auto full, engine.MakePlan(std::vector<LayerKind>(
                                           static_cast<size_t>(info.layers), LayerKind::kFull)));
  return CostKey{
      .plan_id = full->id(),
      .device = info.device_name,
      .version = version,
      .shape = absl::StrFormat("context %d, arena %d, weights %s%s, cache %s", info.context_tokens,
                               info.memory.arena_bytes, info.weight_dtype,
                               info.memory.bf16_copies_bytes > 0 ? " and bf16" : "",
                               info.kv_dtype)};
}

}  // namespace

CostKeeper::CostKeeper(Engine* engine, std::string cache_path, std::string version)
    : engine_(engine), cache_path_(std::move(cache_path)), version_(std::move(version)) {
  if (cache_path_.empty()) return;
  const auto key = KeyOf(*engine_, version_);
  if (!key.ok()) return;
  auto loaded = LoadCosts(cache_path_, *key, engine_->info().layers);
  if (loaded.ok()) {
    known_ = std::make_shared<const CostModel>(*std::move(loaded));
  } else if (!absl::IsNotFound(loaded.status())) {
    MS_LOG(WARNING) << "costs will be measured anew: " << loaded.status().message();
  }
}

std::shared_ptr<const CostModel> CostKeeper::Known() const {
  MutexLock lock(&mutex_);
  return known_;
}

absl::StatusOr<std::shared_ptr<const CostModel>> CostKeeper::Get(bool refresh,
                                                                 const std::atomic<bool>* cancel) {
  MutexLock measuring(&measuring_);
  if (!refresh) {
    if (std::shared_ptr<const CostModel> known = Known(); known != nullptr) return known;
  }
  MS_ASSIGN_OR_RETURN(CostModel measured, MeasureCosts(engine_, cancel));
  auto model = std::make_shared<const CostModel>(std::move(measured));
  {
    MutexLock lock(&mutex_);
    known_ = model;
  }
  MS_LOG(INFO) << absl::StrFormat(
      "costs measured: error %.1f %% of decode steps, %.1f %% of prefill chunks",
      100 * model->decode_error(), 100 * model->prefill_error());
  if (cache_path_.empty()) return model;
  const auto key = KeyOf(*engine_, version_);
  const absl::Status saved = key.ok() ? SaveCosts(cache_path_, *key, *model) : key.status();
  if (!saved.ok()) {
    MS_LOG(WARNING) << saved.message();
  }
  return model;
}

}  // namespace morphserve
