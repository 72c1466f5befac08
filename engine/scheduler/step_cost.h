// StepCost predicts how long a step takes from steps already measured, to size prefill chunks and
// to refuse deadlines that cannot be met. Decode steps are kept by the power of two of their rows:
// on a device their time is far from a line through few rows, and one that ran out of few would
// leave no room for prefill beside many. Thread rule: Observe and PrefillRowsWithin on the engine
// thread; the best_* figures from any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace morphserve {

class StepCost {
 public:
  // Takes a finished step: its rows by kind and its duration.
  void Observe(int32_t decode_rows, int32_t prefill_rows, double ms);

  // Prefill rows that fit beside `decode_rows` into `target_ms`; 0 only when decode alone fills it.
  int32_t PrefillRowsWithin(int32_t decode_rows, double target_ms) const;

  // What `rows` prefill rows take; 0 until measured.
  double PrefillMs(int32_t rows) const { return prefill_row_ms_ * rows; }
  // What copying so many bytes takes, at a rate any memory of today exceeds.
  static double CopyMs(int64_t bytes) { return static_cast<double>(bytes) / kCopyBytesPerMs; }

  // The least time ever seen for one prefill row and for one decode step of one sequence: what even
  // an idle server cannot beat. 0 until measured.
  double best_prefill_row_ms() const {
    return best_prefill_row_ms_.load(std::memory_order_relaxed);
  }
  double best_decode_ms() const { return best_decode_ms_.load(std::memory_order_relaxed); }

 private:
  static constexpr double kCopyBytesPerMs = 2e6;

  // Decode steps of 2^i to 2^(i+1) - 1 rows: moving means, 0 until there was one.
  struct DecodeSteps {
    double rows = 0;
    double ms = 0;
  };

  DecodeSteps& StepsOf(int32_t rows);
  // A decode step of `rows`: by a line between the nearest ones measured. 0 until measured.
  double DecodeMs(int32_t rows) const;

  std::array<DecodeSteps, 31> decode_ = {};
  double prefill_row_ms_ = 0;
  std::atomic<double> best_prefill_row_ms_{0};
  std::atomic<double> best_decode_ms_{0};
};

}  // namespace morphserve
