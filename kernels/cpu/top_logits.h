// The best few of a row of logits, without sorting the row: counting passes find a threshold, and
// only what reaches it is sorted. Thread rule: reentrant; memory is the caller's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace morphserve::kernels::cpu {

// (logit, id)
using Candidate = std::pair<float, int32_t>;

// Sorts by (logit descending, id ascending).
void SortCandidates(std::vector<Candidate>* candidates);

// Fills `best` with the first `count` of the row in that order; fewer if the row has fewer values
// that are not -inf. `largest` is the row's maximum; the row holds no NaN and no +inf.
void TopLogits(std::span<const float> row, float largest, size_t count,
               std::vector<Candidate>* best);

}  // namespace morphserve::kernels::cpu
