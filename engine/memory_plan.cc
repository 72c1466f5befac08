#include "engine/memory_plan.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/cache/arena.h"
#include "engine/model/device_weights.h"
#include "engine/model/stored_plans.h"
#include "kernels/qk_rope_append.h"
#include "kernels/slot_layout.h"

namespace morphserve {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kAutoArenaMax = int64_t{4} << 30;
constexpr int32_t kLogitRows = 32;
constexpr int32_t kDeviceLogitRows = 256;
// What a device keeps for its context, the libraries and the lists of steps.
constexpr int64_t kDeviceReserve = int64_t{768} << 20;

double ToMiB(int64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(kMiB); }

std::string DescribeParts(const MemoryVerdict& verdict) {
  std::string text = absl::StrFormat("weights %.1f MiB, ", ToMiB(verdict.weight_bytes));
  if (verdict.bf16_copies_bytes > 0) {
    absl::StrAppendFormat(&text, "of them %.1f MiB copies as bf16, ",
                          ToMiB(verdict.bf16_copies_bytes));
  }
  if (verdict.slot_bytes > 0) {
    absl::StrAppendFormat(&text, "branches %.1f MiB, ", ToMiB(verdict.branches_bytes));
  }
  absl::StrAppendFormat(&text, "workspace %.1f MiB, cache arena %.1f MiB",
                        ToMiB(verdict.workspace_bytes), ToMiB(verdict.arena_bytes));
  if (verdict.lab_bytes > 0) {
    absl::StrAppendFormat(&text, ", up to %.1f MiB more while layers are selected",
                          ToMiB(verdict.lab_bytes));
  }
  return text;
}

// What is asked for and only a device has.
absl::Status CheckPlace(const EngineOptions& options, KvDType kv_dtype, const DevicePlace& place) {
  if (place.on_device()) return absl::OkStatus();
  if (kv_dtype == KvDType::kE4m3) {
    return absl::InvalidArgumentError(
        "cache.kv_dtype is fp8, which needs a CUDA device; auto, f32, f16 and bf16 run on the CPU");
  }
  if (options.bf16_copies == Bf16Copies::kOn) {
    return absl::InvalidArgumentError(
        "device.bf16_copies is on, which needs a CUDA device; auto and off run on the CPU");
  }
  return absl::OkStatus();
}

int64_t FixedBytes(const MemoryVerdict& verdict) {
  return verdict.weight_bytes + verdict.branches_bytes + verdict.workspace_bytes;
}

// Of a verdict that has all but the arena, and what copies would take.
void DecideBf16Copies(const EngineOptions& options, const DevicePlace& place,
                      MemoryVerdict* verdict) {
  const int64_t others = FixedBytes(*verdict) + verdict->lab_bytes + options.arena_bytes;
  if (!KeepsBf16Copies(options.bf16_copies, verdict->bf16_copies_bytes, others, place.info())) {
    verdict->bf16_copies_bytes = 0;
  }
  verdict->weight_bytes += verdict->bf16_copies_bytes;
}

}  // namespace

bool KeepsBf16Copies(Bf16Copies choice, int64_t copies, int64_t others,
                     const kernels::cuda::DeviceInfo& device) {
  constexpr int64_t kShare = 10;  // Of the device's memory, at most.
  if (choice != Bf16Copies::kAuto) return choice == Bf16Copies::kOn;
  return copies <= device.memory_bytes / kShare &&
         copies + others <= device.free_bytes - kDeviceReserve;
}

KvDType ResolveKvDType(const EngineOptions& options, const DevicePlace& place) {
  switch (options.kv_dtype) {
    case KvCacheDType::kF32: return KvDType::kF32;
    case KvCacheDType::kF16: return KvDType::kF16;
    case KvCacheDType::kBF16: return KvDType::kBF16;
    case KvCacheDType::kFp8: return KvDType::kE4m3;
    case KvCacheDType::kAuto: break;
  }
  if (options.weights_dtype == WeightsDType::kF32) return KvDType::kF32;
  return place.on_device() ? KvDType::kBF16 : KvDType::kF16;
}

absl::StatusOr<int32_t> ResolveContext(const Checkpoint& checkpoint, const EngineOptions& options) {
  if (options.context_tokens == 0) return checkpoint.config.context;
  if (options.context_tokens > checkpoint.config.context) {
    return absl::InvalidArgumentError(
        absl::StrFormat("limits.context_tokens is %d; the model's context is %d",
                        options.context_tokens, checkpoint.config.context));
  }
  return options.context_tokens;
}

int32_t ResolveThreads(const EngineOptions& options, const Machine& machine) {
  return options.threads > 0 ? options.threads : machine.cores;
}

ModelLimits MakeModelLimits(const EngineOptions& options, int32_t context, bool on_device) {
  return {.rows = std::max(options.step_tokens_max,
                           options.sequences_max + std::max(options.chunk_tokens_min, kPageTokens)),
          .sequences = options.sequences_max,
          .context = context,
          .logit_rows = std::min(std::max(options.sequences_max, 1),
                                 on_device ? kDeviceLogitRows : kLogitRows)};
}

int64_t PageUnitBytes(const ModelConfig& config, KvDType kv_dtype) {
  const int64_t bytes = kernels::PageBytes(kv_dtype, config.kv_heads, config.head_dim);
  return (bytes + kArenaUnitBytes - 1) / kArenaUnitBytes * kArenaUnitBytes;
}

int64_t SlotUnitBytes(const ModelConfig& config, const BranchesHeader* branches, KvDType kv_dtype) {
  if (branches == nullptr) return 0;
  return kernels::MakeSlotLayout(MakeSlotShape(branches->config, config, kv_dtype)).bytes;
}

bool FitArena(const MemoryVerdict& verdict, int64_t pages, int64_t slots) {
  const auto blocks = [&](int64_t units, int64_t bytes) {
    if (units == 0) return int64_t{0};
    const int64_t per_block = verdict.super_block_bytes / bytes;
    return (units + per_block - 1) / per_block;
  };
  return blocks(pages, verdict.page_bytes) +
             blocks(slots, std::max<int64_t>(verdict.slot_bytes, 1)) <=
         verdict.arena_bytes / verdict.super_block_bytes;
}

PlanMemory MakePlanMemory(const MemoryVerdict& verdict, int32_t layers, int32_t full_layers,
                          int32_t context) {
  PlanMemory memory;
  const int64_t linear = layers - full_layers;
  const int64_t pages = int64_t{full_layers} * ((context + kPageTokens - 1) / kPageTokens);
  memory.bytes_per_token = full_layers * verdict.page_bytes / kPageTokens;
  memory.state_bytes = linear * verdict.slot_bytes;
  int64_t low = 0;
  int64_t high = 1 << 20;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (FitArena(verdict, middle * pages, middle * linear)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  memory.sequences_max = low;
  return memory;
}

absl::StatusOr<MemoryVerdict> MakeMemoryVerdict(const Checkpoint& checkpoint,
                                                const BranchesHeader* branches,
                                                const EngineOptions& options,
                                                const Machine& machine, const DevicePlace& place) {
  MS_ASSIGN_OR_RETURN(const int32_t context, ResolveContext(checkpoint, options));
  const ModelConfig& config = checkpoint.config;
  const KvDType kv_dtype = ResolveKvDType(options, place);
  MS_RETURN_IF_ERROR(CheckPlace(options, kv_dtype, place));
  const BranchesRanking* ranking = branches == nullptr ? nullptr : DefaultRanking(*branches);
  MS_ASSIGN_OR_RETURN(const std::vector<LayerKind> kinds,
                      ParseKinds(options.active_plan, ranking, config.layers));
  const auto full_layers =
      static_cast<int32_t>(std::count(kinds.begin(), kinds.end(), LayerKind::kFull));
  if (branches == nullptr && full_layers < config.layers) {
    return absl::FailedPreconditionError(
        "plans.active has linear layers; the model has no branches (model.branches)");
  }
  MemoryVerdict verdict;
  if (place.on_device()) {
    MS_ASSIGN_OR_RETURN(const ModelWeights shapes, WeightShapes(checkpoint, options.weights_dtype));
    verdict.weight_bytes = DeviceBytes(shapes, nullptr);
    verdict.bf16_copies_bytes = Bf16CopiesBytes(shapes);
  } else {
    MS_ASSIGN_OR_RETURN(verdict.weight_bytes, PackedWeightBytes(checkpoint, options.weights_dtype));
  }
  if (branches != nullptr) {
    verdict.branches_bytes = BranchesBytes(*branches, config, options.weights_dtype);
  }
  verdict.workspace_bytes =
      ModelBuffers::Bytes(config, branches == nullptr ? nullptr : &branches->config, kv_dtype,
                          MakeModelLimits(options, context, place.on_device()), place.backend(),
                          ResolveThreads(options, machine));
  verdict.page_bytes = PageUnitBytes(config, kv_dtype);
  verdict.slot_bytes = SlotUnitBytes(config, branches, kv_dtype);
  verdict.super_block_bytes = SuperBlockBytes(verdict.page_bytes, verdict.slot_bytes);
  verdict.lab_bytes = branches == nullptr ? 0 : options.lab_bytes;
  DecideBf16Copies(options, place, &verdict);
  const int64_t fixed = FixedBytes(verdict);
  const int64_t most = place.on_device()
                           ? place.info().free_bytes - kDeviceReserve - fixed - verdict.lab_bytes
                           : std::min(machine.memory_bytes / 4, kAutoArenaMax);
  const int64_t asked = options.arena_bytes > 0 ? options.arena_bytes : std::max<int64_t>(most, 0);
  verdict.arena_bytes = asked / verdict.super_block_bytes * verdict.super_block_bytes;
  verdict.pages_total = verdict.arena_bytes / verdict.super_block_bytes *
                        (verdict.super_block_bytes / verdict.page_bytes);
  const auto describe = [&](const char* name, int32_t full) {
    const PlanMemory memory = MakePlanMemory(verdict, config.layers, full, context);
    return absl::StrFormat("%s %dF/%dL: %.1f MiB per sequence of %d tokens, %d fit", name, full,
                           config.layers - full, ToMiB(memory.SequenceBytes(context)), context,
                           memory.sequences_max);
  };
  const PlanMemory active = MakePlanMemory(verdict, config.layers, full_layers, context);
  verdict.bytes_per_token = active.bytes_per_token;
  verdict.bytes_per_sequence = active.SequenceBytes(context);
  verdict.sequences_max = active.sequences_max;
  verdict.text = DescribeParts(verdict) + "; " + describe("plan", full_layers);
  if (branches != nullptr) {
    for (const int32_t other : {config.layers, 0}) {
      if (other == full_layers) continue;
      verdict.text += "; " + describe(other == 0 ? "all-linear" : "all-full", other);
    }
  }
  const int64_t needed = fixed + verdict.arena_bytes;
  if (verdict.sequences_max < 1) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "one sequence of limits.context_tokens %d needs %.1f MiB; cache.arena_bytes holds %.1f "
        "MiB (%s)",
        context, ToMiB(verdict.bytes_per_sequence), ToMiB(verdict.arena_bytes), verdict.text));
  }
  const int64_t room =
      place.on_device() ? place.info().free_bytes - kDeviceReserve : machine.memory_bytes;
  if (needed > room) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%.1f MiB are needed; %s %.1f MiB (%s)", ToMiB(needed),
                        place.on_device() ? "the device has free" : "this process may use",
                        ToMiB(room), verdict.text));
  }
  return verdict;
}

}  // namespace morphserve
