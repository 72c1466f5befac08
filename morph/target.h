// Target is what an operator asks a plan to reach; Estimate is what a plan is expected, or was
// measured, to do. Plain values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "morph/load_point.h"

namespace morphserve {

enum class SelectMode : uint8_t { kStored, kReselect };

// All goals that are set must hold; of the plans that meet them the one with the most full layers
// is wanted.
struct Target {
  std::optional<double> tpot_ms;
  std::optional<double> ttft_ms;
  std::optional<int64_t> kv_bytes;  // Pages and slots of one sequence of the load's context.
  std::optional<int32_t> full_layers;
  LoadPoint load;
  std::optional<double> quality_min;  // Perplexity of the all-full plan over that of the plan.
  double percentile = 50;  // Of the latency goals: so many per cent of the times keep to them.
  SelectMode mode = SelectMode::kStored;
  std::string selector;  // Empty: the default one.
};

// The time per token that a plan is held to once it is measured.
struct LatencyBound {
  double tpot_ms = 0;
  double percentile = 50;  // Of the times between tokens.
};

struct Estimate {
  LoadPoint at;
  std::optional<double> tpot_ms;
  std::optional<double> tpot_margin_ms;  // With it tpot_ms holds at the percentile of the goals.
  std::optional<double> ttft_ms;
  std::optional<double> ttft_margin_ms;
  double percentile = 50;          // Of the goals; of tpot_ms itself where there are samples.
  std::optional<int64_t> samples;  // Times between tokens of requests that tpot_ms was read from.
  int64_t kv_bytes_per_token = 0;
  int64_t state_bytes = 0;
  int64_t sequences_max = 0;
  std::optional<double> quality;
  bool quality_measured = false;  // Else it is the branches file's.
  std::optional<double> kl;
  std::optional<double> recall;     // Share of passkeys that are right.
  std::optional<double> agreement;  // Share of positions with the same most likely token.
};

}  // namespace morphserve
