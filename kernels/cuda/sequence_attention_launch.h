// The check that both directions of attention inside one sequence make.
#pragma once

#include "absl/status/status.h"
#include "kernels/sequence_attention.h"

namespace morphserve::kernels::cuda {

absl::Status CheckSequenceAttention(const SequenceAttentionShape& shape);

}  // namespace morphserve::kernels::cuda
