// What the kernels of attention inside one sequence share: which keys a row sees, and the gate.
#pragma once

#include "kernels/cuda/tf32_tiles.cuh"
#include "kernels/sequence_attention.h"

namespace morphserve::kernels::cuda {

__device__ inline bool Sees(const SequenceAttentionShape& s, int row, int key) {
  return key <= row && (s.window == 0 || key > row - s.window || key < s.sinks);
}

// False when no row of [row, row_end) sees a key of [key, key_end).
__device__ inline bool TileIsSeen(const SequenceAttentionShape& s, int row, int row_end, int key,
                                  int key_end) {
  return key < row_end && (s.window == 0 || key_end - 1 > row - s.window || key < s.sinks);
}

// Forward and gradient arguments alike.
template <typename Args>
__device__ inline float GateOf(const Args& args, int64_t row, int head) {
  if (args.gate == nullptr) return 1.0f;
  return 2.0f / (1.0f + expf(-(args.gate[row * args.gate_stride + head] + args.gate_bias[head])));
}

}  // namespace morphserve::kernels::cuda
