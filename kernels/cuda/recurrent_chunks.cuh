// The chunked form of the recurrence (Yang et al. 2024, arXiv 2412.06464, section 3): a chunk is up
// to 64 tokens of a segment, cut also where a copy of the state is asked for. With G the running
// sum of g within the chunk and S the state before it, all of [token][...]:
//   A_ij = beta_i e^(G_i - G_j) (k_i . k_j) below the diagonal;   T = (I + A)^-1
//   U = T (beta V);   W = T (beta e^G K);   Vn = U - W S
//   O = scale e^G (Q S) + P Vn,  P_ij = scale e^(G_i - G_j) (q_i . k_j) up to the diagonal
//   S <- e^(G_end) S + K^T (e^(G_end - G) Vn)
// Lightning has U = V and no W. Where heads are many, a block makes what does not need S for one
// chunk of its head while it walks over the one before; where they are few, a kernel of its own
// makes it for all chunks at once. Exponents are of differences that are never positive. Operands
// of products are bf16, sums and the state f32.
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

#include "kernels/cuda/panel_tiles.cuh"
#include "kernels/cuda/recurrent_steps.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kChunkTokens = 64;
inline constexpr int kPanelBytes = kChunkTokens * kPanelRowBytes;

// Addresses of a chunk's tiles in shared memory, [token][...] in panels.
template <int kPad>
struct ChunkStage {
  static constexpr int kTile = kPad / 64 * kPanelBytes;
  static constexpr int kBytes = 4 * kTile + kPanelBytes;
  uint32_t w, u, q, k, p;

  // `start` is a multiple of 1024.
  __device__ explicit ChunkStage(uint32_t start)
      : w(start),
        u(start + kTile),
        q(start + 2 * kTile),
        k(start + 3 * kTile),
        p(start + 4 * kTile) {}
};

// Factors of a chunk's tokens, of which the first `count` are kept; behind the chunk G stays.
struct ChunkFactors {
  float* from_begin;  // e^G
  float* to_end;      // e^(G_end - G)
  int count;
};

// f(the padded head size, whether the recurrence is the gated delta rule), both as types.
template <typename F>
auto WithChunkKind(const RecurrentMixerArgs& args, F&& f) {
  const auto with_kind = [&](auto pad) {
    return args.kind == RecurrentKind::kGatedDelta ? f(pad, std::true_type())
                                                   : f(pad, std::false_type());
  };
  return args.shape.head_dim <= 64 ? with_kind(std::integral_constant<int, 64>())
                                   : with_kind(std::integral_constant<int, 128>());
}

// What the first kernel leaves in the workspace for each token, of each head: rows of the panels of
// panel_tiles.cuh, a token's place in the swizzle being that within its chunk.
struct ChunkParts {
  __nv_bfloat16* w;  // [head][panel][place][64]
  __nv_bfloat16* u;  // the same
  __nv_bfloat16* q;
  __nv_bfloat16* k;
  __nv_bfloat16* p;  // [head][place][64]
  float* factors;    // [head][2][place]: those of ChunkFactors.
  int64_t places;

  // Where those of the chunk at `place` are.
  __device__ ChunkFactors Factors(int head, int64_t place, int count) const {
    float* const at = factors + 2 * head * places + place;
    return {at, at + places, count};
  }

  __device__ int64_t Row(int head, int panels, int panel, int64_t place) const {
    return ((static_cast<int64_t>(head) * panels + panel) * places + place) * kChunkTokens;
  }
};

// Bytes of ChunkParts a place.
constexpr int64_t ChunkBytesPerPlace(int64_t heads, int64_t padded) {
  return heads * (4 * padded * 2 + kChunkTokens * 2 + 2 * static_cast<int64_t>(sizeof(float)));
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

// Asks for `d` elements of each row of a chunk to come to the second-level cache, by kThreads
// threads of which this is `thread`. One line at a time: copies in bulk would leave one after the
// other.
template <int kThreads>
__device__ inline void PrefetchRows(const float* base, int64_t stride, const int32_t* row_list,
                                    const MixerSegment& segment, const Chunk& chunk, int d,
                                    int thread) {
  constexpr int kLine = 32;  // Elements.
  const int lines = (d + kLine - 1) / kLine;
  for (int i = thread; i < chunk.count * lines; i += kThreads) {
    const float* const row = base + RowOf(row_list, segment, chunk.begin + i / lines) * stride;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row + i % lines * kLine));
  }
}

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
