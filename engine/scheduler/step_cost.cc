#include "engine/scheduler/step_cost.h"

#include <algorithm>
#include <bit>

namespace morphserve {
namespace {

constexpr double kMemory = 0.9;  // Weight of the past in the moving means.
constexpr double kSurprise = 3;  // A step counts as at most so many times the mean: one that waited
                                 // for something else must not shrink the chunks after it.

void Blend(double* mean, double value) {
  *mean = *mean == 0 ? value : kMemory * *mean + (1 - kMemory) * std::min(value, kSurprise * *mean);
}

void Lower(std::atomic<double>* best, double value) {
  const double old = best->load(std::memory_order_relaxed);
  if (old == 0 || value < old) best->store(value, std::memory_order_relaxed);
}

}  // namespace

StepCost::DecodeSteps& StepCost::StepsOf(int32_t rows) {
  return decode_[static_cast<size_t>(std::bit_width(static_cast<uint32_t>(rows)) - 1)];
}

double StepCost::DecodeMs(int32_t rows) const {
  if (rows == 0) return 0;
  const DecodeSteps *below = nullptr, *above = nullptr, *before = nullptr;
  for (const DecodeSteps& steps : decode_) {
    if (steps.ms == 0) continue;
    if (steps.rows > rows) {
      above = &steps;
      break;
    }
    before = below;
    below = &steps;
  }
  if (below == nullptr) return above == nullptr ? 0 : above->ms;
  const DecodeSteps* const other = above != nullptr ? above : before;
  if (other == nullptr) return below->ms;
  const double slope = (other->ms - below->ms) / (other->rows - below->rows);
  return below->ms + std::max(0.0, slope) * (rows - below->rows);
}

void StepCost::Observe(int32_t decode_rows, int32_t prefill_rows, double ms) {
  if (ms <= 0) return;
  if (prefill_rows == 0) {
    if (decode_rows == 0) return;
    DecodeSteps& steps = StepsOf(decode_rows);
    Blend(&steps.rows, decode_rows);
    Blend(&steps.ms, ms);
    if (decode_rows == 1) Lower(&best_decode_ms_, ms);
    return;
  }
  // Its decode rows alone would not have taken longer. While prompts wait there may be no step
  // without prefill for long, so this is what ends an estimate that leaves them no room.
  if (decode_rows > 0 && ms < DecodeMs(decode_rows)) {
    StepsOf(decode_rows) = {.rows = static_cast<double>(decode_rows), .ms = ms};
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
