// CostKeeper holds the cost model of this machine: from the cache file when that fits, else
// measured at the first need. Thread rule: any thread; Get may take seconds and may not be called
// on the engine's.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "morph/cost_model.h"

namespace morphserve {

class CostSource {
 public:
  virtual ~CostSource() = default;
  // What is known now; null before the first measurement.
  virtual std::shared_ptr<const CostModel> Known() const = 0;
  // Measures when nothing is known, or anew with `refresh`. Errors of MeasureCosts; what was known
  // stays.
  virtual absl::StatusOr<std::shared_ptr<const CostModel>> Get(bool refresh,
                                                               const std::atomic<bool>* cancel) = 0;
};

class CostKeeper final : public CostSource {
 public:
  // `cache_path` may be empty: nothing is kept. Reads the file; a file that does not fit or is
  // damaged is logged and measured again when costs are needed.
  CostKeeper(Engine* engine, std::string cache_path, std::string version);

  std::shared_ptr<const CostModel> Known() const override;
  absl::StatusOr<std::shared_ptr<const CostModel>> Get(bool refresh,
                                                       const std::atomic<bool>* cancel) override;

 private:
  Engine* const engine_;
  const std::string cache_path_;
  const std::string version_;
  Mutex measuring_;  // Held while measuring: one at a time.
  mutable Mutex mutex_;
  std::shared_ptr<const CostModel> known_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
