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
  double percentile = 50;             // Of the latency goals.
  SelectMode mode = SelectMode::kStored;
  std::string selector;  // Empty: the default one.
};

struct Estimate {
  LoadPoint at;
  std::optional<double> tpot_ms;
  std::optional<double> tpot_margin_ms;
  std::optional<double> ttft_ms;
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
