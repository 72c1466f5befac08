// Puts a model's parts where they run: one function a part, so that the engine, tests and
// benchmarks build the same thing on either place. Thread rule: at start-up.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/cache/unit_memory.h"
#include "engine/device_place.h"
#include "engine/model/hybrid_model.h"
#include "engine/runner/model_runner.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {

// Moves weights and branches (may be null) to the place and makes the model. The pool outlives it.
absl::StatusOr<std::unique_ptr<HybridModel>> PlaceModel(const ModelConfig& config,
                                                        std::unique_ptr<ModelWeights> weights,
                                                        std::unique_ptr<Branches> branches,
                                                        KvDType kv_dtype, const ModelLimits& limits,
                                                        DevicePlace* place,
                                                        kernels::cpu::ThreadPool* pool);

// `arena` is memory of the place.
std::unique_ptr<UnitMemory> MakeUnitMemory(const DevicePlace& place, std::byte* arena,
                                           const kernels::SlotShape& slot);

// `pieces` is the number of ids that have a token.
absl::StatusOr<std::unique_ptr<ModelRunner>> MakeRunner(const DevicePlace& place,
                                                        std::unique_ptr<HybridModel> model,
                                                        std::byte* arena,
                                                        kernels::cpu::ThreadPool* pool,
                                                        int32_t pieces);

}  // namespace morphserve
