#include "engine/memory_plan.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/cache/arena.h"
#include "kernels/qk_rope_append.h"

namespace morphserve {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kAutoArenaMax = int64_t{4} << 30;
constexpr int32_t kLogitRows = 32;

double ToMiB(int64_t bytes) { return static_cast<double>(bytes) / static_cast<double>(kMiB); }

}  // namespace

KvDType ResolveKvDType(const EngineOptions& options) {
  switch (options.kv_dtype) {
    case KvCacheDType::kF32: return KvDType::kF32;
    case KvCacheDType::kF16: return KvDType::kF16;
    case KvCacheDType::kBF16: return KvDType::kBF16;
    case KvCacheDType::kAuto: break;
  }
  return options.weights_dtype == WeightsDType::kF32 ? KvDType::kF32 : KvDType::kF16;
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

ModelLimits MakeModelLimits(const EngineOptions& options, int32_t context) {
  return {.rows = std::max(options.step_tokens_max,
                           options.sequences_max + std::max(options.chunk_tokens_min, kPageTokens)),
          .sequences = options.sequences_max,
          .context = context,
          .logit_rows = std::min(std::max(options.sequences_max, 1), kLogitRows)};
}

int64_t PageUnitBytes(const ModelConfig& config, KvDType kv_dtype) {
  const int64_t bytes = kernels::PageBytes(kv_dtype, config.kv_heads, config.head_dim);
  return (bytes + kArenaUnitBytes - 1) / kArenaUnitBytes * kArenaUnitBytes;
}

absl::StatusOr<MemoryVerdict> MakeMemoryVerdict(const Checkpoint& checkpoint,
                                                const EngineOptions& options,
                                                const Machine& machine) {
  MS_ASSIGN_OR_RETURN(const int32_t context, ResolveContext(checkpoint, options));
  const ModelConfig& config = checkpoint.config;
  MemoryVerdict verdict;
  verdict.weight_bytes = PackedWeightBytes(checkpoint, options.weights_dtype);
  verdict.workspace_bytes = HybridModel::WorkspaceBytes(config, MakeModelLimits(options, context),
                                                        ResolveThreads(options, machine));
  verdict.page_bytes = PageUnitBytes(config, ResolveKvDType(options));
  const int64_t super_block = SuperBlockBytes(verdict.page_bytes);
  const int64_t asked = options.arena_bytes > 0 ? options.arena_bytes
                                                : std::min(machine.memory_bytes / 4, kAutoArenaMax);
  verdict.arena_bytes = asked / super_block * super_block;
  verdict.pages_total = verdict.arena_bytes / super_block * (super_block / verdict.page_bytes);
  verdict.bytes_per_token =
      int64_t{config.layers} *
      kernels::PageBytes(ResolveKvDType(options), config.kv_heads, config.head_dim) / kPageTokens;
  const int64_t pages_per_sequence =
      int64_t{config.layers} * ((context + kPageTokens - 1) / kPageTokens);
  verdict.bytes_per_sequence = pages_per_sequence * verdict.page_bytes;
  verdict.sequences_max = verdict.pages_total / pages_per_sequence;
  verdict.text = absl::StrFormat(
      "weights %.1f MiB, workspace %.1f MiB, cache arena %.1f MiB; plan %dF/0L: %.1f MiB per "
      "sequence of %d tokens, %d fit",
      ToMiB(verdict.weight_bytes), ToMiB(verdict.workspace_bytes), ToMiB(verdict.arena_bytes),
      config.layers, ToMiB(verdict.bytes_per_sequence), context, verdict.sequences_max);
  const int64_t needed = verdict.weight_bytes + verdict.workspace_bytes + verdict.arena_bytes;
  if (verdict.sequences_max < 1) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "one sequence of limits.context_tokens %d needs %.1f MiB; cache.arena_bytes holds %.1f "
        "MiB (%s)",
        context, ToMiB(verdict.bytes_per_sequence), ToMiB(verdict.arena_bytes), verdict.text));
  }
  if (needed > machine.memory_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%.1f MiB are needed; this process may use %.1f MiB (%s)", ToMiB(needed),
                        ToMiB(machine.memory_bytes), verdict.text));
  }
  return verdict;
}

}  // namespace morphserve
