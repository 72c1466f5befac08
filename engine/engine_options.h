// EngineOptions is everything the engine can be told at start-up; the server fills it from its
// settings table.
#pragma once

#include <cstdint>
#include <string>

namespace morphserve {

enum class WeightsDType : uint8_t { kNative, kBF16, kF32, kFp8 };
enum class DeviceKind : uint8_t { kAuto, kCpu, kCuda };
enum class Bf16Copies : uint8_t { kAuto, kOn, kOff };
enum class KvCacheDType : uint8_t { kAuto, kF32, kF16, kBF16, kFp8 };

struct EngineOptions {
  DeviceKind device = DeviceKind::kAuto;
  WeightsDType weights_dtype = WeightsDType::kNative;
  KvCacheDType kv_dtype = KvCacheDType::kAuto;
  // On a device: quantised weights once more as bf16. kAuto: where that takes no more than a tenth
  // of its memory, and leaves the arena what was asked for.
  Bf16Copies bf16_copies = Bf16Copies::kAuto;
  int32_t threads = 0;          // 0: min(physical cores, affinity, floor(CPU quota)), at least 1.
  int32_t context_tokens = 0;   // 0: the model's own.
  int64_t arena_bytes = 0;      // 0: a quarter of RAM, at most 4 GiB; of a device, what is left.
  int32_t sequences_max = 0;    // 0: 32, on a device 256.
  int32_t step_tokens_max = 0;  // 0: 256, on a device 2048; at least sequences_max.
  double step_ms_target = 0;    // 0: 150, on a device 50.
  bool run_ahead = true;        // On a device: begin a step before the one before it has been read.
  int32_t chunk_tokens_min = 64;
  int32_t growth_tokens = 128;
  double starvation_s = 30;
  int32_t preemptions_max = 8;
  bool deadline_admission = true;  // Refuse what certainly cannot meet its deadline.
  int32_t queue_requests_max = 1024;
  int64_t queue_tokens_max = 1'000'000;

  std::string branches;     // A branches file, window:W[:SINKS], or empty: dense.
  std::string active_plan;  // At the start: empty or "full", "full_layers=K", or a plan's kinds as
                            // a string of F and L, one a layer.
  int32_t plans_table_max = 64;
  int32_t plans_history = 16;
  bool prefix_cache = true;
  double snapshot_share_max = 0.5;
  int32_t snapshots_per_path = 8;
  int64_t host_spill_bytes = 0;
  int32_t guard_state_every_tokens = 256;  // 0: states are scanned only before they are published.
  int32_t guard_trips_max = 3;             // On one plan within guard_window_s: it is withdrawn.
  double guard_window_s = 300;
  double latency_share_max = 0.10;  // Of a step's time, that work in the lab may add to it.
  int64_t lab_bytes = 0;  // Such work takes while it runs; an arena that takes what a device has
                          // left leaves it free. Counts with branches only.
};

// The options with what depends on the place filled in.
EngineOptions ResolveOptions(EngineOptions options, bool on_device);

}  // namespace morphserve
