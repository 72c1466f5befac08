// The arithmetic of memory, from file headers and options alone: what the weights, the workspace
// and the cache arena take, and how many sequences fit. Pure functions.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "engine/base/machine.h"
#include "engine/engine.h"
#include "engine/engine_options.h"
#include "engine/loader/checkpoint.h"
#include "engine/model/hybrid_model.h"

namespace morphserve {

KvDType ResolveKvDType(const EngineOptions& options);
// The context limit that serves: the option, or the model's own. INVALID_ARGUMENT when the option
// is larger.
absl::StatusOr<int32_t> ResolveContext(const Checkpoint& checkpoint, const EngineOptions& options);
int32_t ResolveThreads(const EngineOptions& options, const Machine& machine);
ModelLimits MakeModelLimits(const EngineOptions& options, int32_t context);
// Bytes of one page, rounded up to the arena's unit.
int64_t PageUnitBytes(const ModelConfig& config, KvDType kv_dtype);

absl::StatusOr<MemoryVerdict> MakeMemoryVerdict(const Checkpoint& checkpoint,
                                                const EngineOptions& options,
                                                const Machine& machine);

}  // namespace morphserve
