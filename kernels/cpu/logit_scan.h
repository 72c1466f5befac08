// Passes over a row of logits, each at memory speed. Thread rule: reentrant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace morphserve::kernels::cpu {

struct LogitRange {
  float largest = 0;  // -inf for an empty row.
  bool valid = true;  // False when a value is NaN or +inf; `largest` then means nothing.
};

LogitRange ScanLogits(std::span<const float> logits);

// Index of the first value equal to `value`; the size of the row if there is none.
size_t FirstEqual(std::span<const float> logits, float value);

size_t CountAtLeast(std::span<const float> logits, float threshold);
size_t CountAbove(std::span<const float> logits, float threshold);

// Appends (value, index) of all values in [low, high), by index.
void AppendBetween(std::span<const float> logits, float low, float high,
                   std::vector<std::pair<float, int32_t>>* found);

// weights[i] = exp(logits[i] - largest) for logits <= largest; returns their sum, over 16 lanes in
// f64. `weights` has the size of `logits` and may be the same memory.
double WeightsBelow(std::span<const float> logits, float largest, std::span<float> weights);
// The sum alone.
double SumExpBelow(std::span<const float> logits, float largest);

struct MassAbove {
  double mass = 0;
  size_t count = 0;
};

// Sum of weights[i] where logits[i] >= threshold, and how many those are. Sums run over 16 lanes in
// f64.
MassAbove SumAtLeast(std::span<const float> logits, float threshold,
                     std::span<const float> weights);

// logits[i] /= divisor.
void DivideLogits(std::span<float> logits, float divisor);

}  // namespace morphserve::kernels::cpu
