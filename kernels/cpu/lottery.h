// Draws one token from a row of logits: steps 4 and 5 of kernels/sample.h, after the division by
// the temperature. Weights are exp(logit - largest), so that the best token weighs 1. Thread rule:
// reentrant; memory is the caller's.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/sample.h"

namespace morphserve::kernels::cpu {

// `logits` hold no NaN and no +inf; `largest` is their finite maximum. Of `args` only top_k, top_p
// and min_p are read. `uniform` is in [0, 1).
int32_t DrawToken(std::span<const float> logits, float largest, const SampleArgs& args,
                  double uniform, SampleScratch* scratch);

}  // namespace morphserve::kernels::cpu
