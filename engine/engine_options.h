// EngineOptions is everything the engine can be told at start-up; the server fills it from its
// settings table.
#pragma once

#include <cstdint>

namespace morphserve {

enum class WeightsDType : uint8_t { kNative, kBF16, kF32 };
enum class KvCacheDType : uint8_t { kAuto, kF32, kF16, kBF16 };

struct EngineOptions {
  WeightsDType weights_dtype = WeightsDType::kNative;
  KvCacheDType kv_dtype = KvCacheDType::kAuto;
  int32_t threads = 0;         // 0: min(physical cores, affinity, floor(CPU quota)), at least 1.
  int32_t context_tokens = 0;  // 0: the model's own.
  int64_t arena_bytes = 0;     // 0: a quarter of RAM, at most 4 GiB.
  int32_t sequences_max = 32;
  int32_t step_tokens_max = 256;
  double step_ms_target = 150;
  int32_t chunk_tokens_min = 64;
  int32_t growth_tokens = 128;
  double starvation_s = 30;
  int32_t preemptions_max = 8;
  bool deadline_admission = true;  // Refuse what certainly cannot meet its deadline.
  int32_t queue_requests_max = 1024;
  int64_t queue_tokens_max = 1'000'000;
};

}  // namespace morphserve
