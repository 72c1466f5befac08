// The arithmetic of memory, from file headers and options alone: what the weights, the workspace
// and the cache arena take, and how many sequences fit. Pure functions.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/base/machine.h"
#include "engine/device_place.h"
#include "engine/engine.h"
#include "engine/engine_options.h"
#include "engine/loader/checkpoint.h"
#include "engine/model/hybrid_model.h"

namespace morphserve {

KvDType ResolveKvDType(const EngineOptions& options, const DevicePlace& place);
// The context limit that serves: the option, or the model's own. INVALID_ARGUMENT when the option
// is larger.
absl::StatusOr<int32_t> ResolveContext(const Checkpoint& checkpoint, const EngineOptions& options);
int32_t ResolveThreads(const EngineOptions& options, const Machine& machine);
ModelLimits MakeModelLimits(const EngineOptions& options, int32_t context, bool on_device);
// Bytes of one page, rounded up to the arena's unit.
int64_t PageUnitBytes(const ModelConfig& config, KvDType kv_dtype);
// Bytes of one slot; 0 without branches.
int64_t SlotUnitBytes(const ModelConfig& config, const BranchesHeader* branches, KvDType kv_dtype);

// Whether copies of bf16 that take so many bytes are made, where all else takes `others`.
bool KeepsBf16Copies(Bf16Copies choice, int64_t copies, int64_t others,
                     const kernels::cuda::DeviceInfo& device);

// `branches` is null for a dense model.
absl::StatusOr<MemoryVerdict> MakeMemoryVerdict(const Checkpoint& checkpoint,
                                                const BranchesHeader* branches,
                                                const EngineOptions& options,
                                                const Machine& machine, const DevicePlace& place);

// What one sequence takes with `full_layers` of the model's layers full, and how many sequences of
// `context` tokens fit the arena, by whole super-blocks of either unit.
PlanMemory MakePlanMemory(const MemoryVerdict& verdict, int32_t layers, int32_t full_layers,
                          int32_t context);
// Whether so many units fit an empty arena together.
bool FitArena(const MemoryVerdict& verdict, int64_t pages, int64_t slots);

}  // namespace morphserve
