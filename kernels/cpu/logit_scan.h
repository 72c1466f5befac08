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

// Appends (value, index) of all values >= threshold, by index.
void AppendAtLeast(std::span<const float> logits, float threshold,
                   std::vector<std::pair<float, int32_t>>* found);

// values[i] = exp(values[i] - largest) for values <= largest.
void ExpBelow(std::span<float> values, float largest);

// Sum of the same, over 16 lanes in f64.
double SumExpBelow(std::span<const float> logits, float largest);

// logits[i] /= divisor.
void DivideLogits(std::span<float> logits, float divisor);

}  // namespace morphserve::kernels::cpu
