// The chunked form of the recurrence (Yang et al. 2024, arXiv 2412.06464, section 3): a chunk is up
// to 64 tokens of a segment, cut also where a copy of the state is asked for. With G the running
// sum of g within the chunk and S the state before it, all of [token][...]:
//   A_ij = beta_i e^(G_i - G_j) (k_i . k_j) below the diagonal;   T = (I + A)^-1
//   U = T (beta V);   W = T (beta e^G K);   Vn = U - W S
//   O = (scale e^G Q) S + P Vn,  P_ij = scale e^(G_i - G_j) (q_i . k_j) up to the diagonal
//   S <- e^(G_end) S + (e^(G_end - G) K)^T Vn
// Lightning has U = V and no W. What does not need S is made by one kernel for all chunks at once,
// the rest by one that walks the chunks of a head. Exponents are of differences that are never
// positive. Operands of products are bf16, sums and the state f32.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/recurrent_steps.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kChunkTokens = 64;

// What the first kernel leaves in the workspace for each token, of each head: rows of the panels of
// panel_tiles.cuh, a token's place in the swizzle being that within its chunk.
struct ChunkParts {
  __nv_bfloat16* w;  // [head][panel][place][64]
  __nv_bfloat16* u;  // the same
  __nv_bfloat16* q;  // scale e^G Q
  __nv_bfloat16* k;  // e^(G_end - G) K
  __nv_bfloat16* p;  // [head][place][64]
  float* decay;      // [head][place] of a chunk's first token: e^(G_end)
  int64_t places;

  __device__ int64_t Row(int head, int panels, int panel, int64_t place) const {
    return ((static_cast<int64_t>(head) * panels + panel) * places + place) * kChunkTokens;
  }
};

// Bytes of ChunkParts a place.
constexpr int64_t ChunkBytesPerPlace(int64_t heads, int64_t padded) {
  return heads * (4 * padded * 2 + kChunkTokens * 2 + static_cast<int64_t>(sizeof(float)));
}

struct Chunk {
  int begin, count;  // Rows of the segment; count 0: there is no such chunk.
};

// Walks the chunks of a segment.
class ChunkWalk {
 public:
  __device__ ChunkWalk(const MixerSegment& segment, const StateEmit* emits)
      : segment_(segment), emits_(emits) {}
  __device__ Chunk Next() {
    int end = min(begin_ + kChunkTokens, segment_.row_count);
    while (emit_ < segment_.emit_count && emits_[segment_.emit_begin + emit_].rows <= begin_) {
      ++emit_;
    }
    if (emit_ < segment_.emit_count) end = min(end, emits_[segment_.emit_begin + emit_].rows);
    const Chunk chunk = {begin_, end - begin_};
    begin_ = end;
    return chunk;
  }

 private:
  const MixerSegment& segment_;
  const StateEmit* emits_;
  int begin_ = 0;
  int emit_ = 0;
};

__device__ inline Chunk ChunkAt(const MixerSegment& segment, const StateEmit* emits, int index) {
  if (segment.emit_count == 0) {
    const int begin = min(index * kChunkTokens, segment.row_count);
    return {begin, min(kChunkTokens, segment.row_count - begin)};
  }
  ChunkWalk walk(segment, emits);
  Chunk chunk = walk.Next();
  for (int i = 0; i < index && chunk.count > 0; ++i) chunk = walk.Next();
  return chunk;
}

}  // namespace morphserve::kernels::cuda
