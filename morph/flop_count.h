// FLOPs of the passes that a selection makes, from shapes alone: 2 a multiply-add, attention at its
// causal half, elementwise work left out. Pure functions.
#pragma once

#include <cstdint>

#include "engine/model/branches.h"
#include "engine/model/model_config.h"
#include "morph/selection_model.h"

namespace morphserve {

// One layer's mixers over a whole sequence, forward.
double MixerFlops(const ModelConfig& model, const BranchesConfig& branches, int32_t tokens,
                  Mixers mixers);
double MlpFlops(const ModelConfig& model, int32_t tokens);
double LogitFlops(const ModelConfig& model, int64_t rows);
// The input gradients of the same: products once more, attention 2.5 times, the recurrence with its
// replay 3.5 times.
double MixerGradFlops(const ModelConfig& model, const BranchesConfig& branches, int32_t tokens,
                      Mixers mixers);

}  // namespace morphserve
