#include "engine/model_place.h"

#include <utility>

#include "engine/base/status_macros.h"
#include "engine/model/device_stage.h"
#include "engine/model/device_weights.h"
#include "engine/model/host_stage.h"
#include "engine/runner/cpu_runner.h"
#include "engine/runner/cpu_unit_memory.h"
#include "engine/runner/cuda_runner.h"
#include "engine/runner/cuda_unit_memory.h"

namespace morphserve {

absl::StatusOr<std::unique_ptr<HybridModel>> PlaceModel(const ModelConfig& config,
                                                        std::unique_ptr<ModelWeights> weights,
                                                        std::unique_ptr<Branches> branches,
                                                        KvDType kv_dtype, const ModelLimits& limits,
                                                        DevicePlace* place,
                                                        kernels::cpu::ThreadPool* pool) {
  std::unique_ptr<StepStage> stage;
  if (place->on_device()) {
    MS_ASSIGN_OR_RETURN(place->weights, PlaceOnDevice(weights.get(), branches.get(),
                                                      place->bf16_copies, place->stream(nullptr)));
    MS_ASSIGN_OR_RETURN(stage, DeviceStage::Create(config.layers, limits, place->stream(nullptr)));
  } else {
    stage = std::make_unique<HostStage>();
  }
  return HybridModel::Create(config, std::move(weights), std::move(branches), kv_dtype, limits,
                             &place->backend(), place->stream(pool), std::move(stage));
}

std::unique_ptr<UnitMemory> MakeUnitMemory(const DevicePlace& place, std::byte* arena,
                                           const kernels::SlotShape& slot) {
  if (!place.on_device()) return std::make_unique<CpuUnitMemory>(arena, slot);
  return std::make_unique<CudaUnitMemory>(arena, slot, place.stream(nullptr));
}

absl::StatusOr<std::unique_ptr<ModelRunner>> MakeRunner(const DevicePlace& place,
                                                        std::unique_ptr<HybridModel> model,
                                                        std::byte* arena,
                                                        kernels::cpu::ThreadPool* pool,
                                                        int32_t pieces) {
  if (place.on_device()) {
    return CudaRunner::Create(std::move(model), arena, place.stream(pool), pieces);
  }
  const int32_t logit_rows = model->limits().logit_rows;
  return std::make_unique<CpuRunner>(std::move(model), arena, pool, pieces, logit_rows);
}

}  // namespace morphserve
