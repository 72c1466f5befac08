#include "engine/scheduler/step_cost.h"

#include <algorithm>

namespace morphserve {
namespace {

constexpr double kMemory = 0.9;  // Weight of the past in the moving means.

void Blend(double* mean, double value) {
  *mean = *mean == 0 ? value : kMemory * *mean + (1 - kMemory) * value;
}

void Lower(std::atomic<double>* best, double value) {
  const double old = best->load(std::memory_order_relaxed);
  if (old == 0 || value < old) best->store(value, std::memory_order_relaxed);
}

}  // namespace

double StepCost::DecodeMs(int32_t rows) const {
  return rows == 0 ? 0 : decode_base_ms_ + decode_row_ms_ * (rows - 1);
}

void StepCost::Observe(int32_t decode_rows, int32_t prefill_rows, double ms) {
  if (ms <= 0) return;
  if (prefill_rows == 0) {
    if (decode_rows == 1) {
      Blend(&decode_base_ms_, ms);
      Lower(&best_decode_ms_, ms);
    } else if (decode_rows > 1) {
      if (decode_base_ms_ == 0) decode_base_ms_ = ms;
      Blend(&decode_row_ms_, std::max(0.0, ms - decode_base_ms_) / (decode_rows - 1));
    }
    return;
  }
  // Very short chunks are mostly fixed cost and would overstate a row.
  constexpr int32_t kTelling = 16;
  if (prefill_rows < kTelling) return;
  const double rest = std::max(ms - DecodeMs(decode_rows), ms * 0.1);
  Blend(&prefill_row_ms_, rest / prefill_rows);
  Lower(&best_prefill_row_ms_, rest / prefill_rows);
}

int32_t StepCost::PrefillRowsWithin(int32_t decode_rows, double target_ms) const {
  constexpr int32_t kUnmeasured = 64;
  if (prefill_row_ms_ == 0) return kUnmeasured;
  const double left = target_ms - DecodeMs(decode_rows);
  return static_cast<int32_t>(std::clamp(left / prefill_row_ms_, 0.0, 1e6));
}

}  // namespace morphserve
