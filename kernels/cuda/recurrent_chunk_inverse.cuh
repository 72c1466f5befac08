// The inverse T = (I + A)^-1 of a chunk of the gated recurrence (recurrent_chunks.cuh), by four
// warps: diagonal blocks of 16 tokens by substitution in f32, what is below them by products of
// operands that are split in two, so that T is as good as f32 until it is rounded itself.
#pragma once

#include "kernels/cuda/panel_tiles.cuh"
#include "kernels/cuda/recurrent_chunks.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kBlock = 16;  // Tokens whose triangle is inverted by substitution.

// A comes as two tiles whose sum it is, its diagonal blocks being those of T. T comes transposed,
// in two forms: times the factors of values and of keys.
struct InverseTiles {
  static constexpr int kBytes = 4 * kPanelBytes;
  uint32_t a, a_rest, t_values, t_keys;

  // `start` is a multiple of 1024.
  __device__ explicit InverseTiles(uint32_t start)
      : a(start),
        a_rest(start + kPanelBytes),
        t_values(start + 2 * kPanelBytes),
        t_keys(start + 3 * kPanelBytes) {}
};

// Numbers of a chunk's tokens.
struct ChunkGates {
  float log2_decay[kChunkTokens];  // G, in units of log2.
  float beta[kChunkTokens];
};

// 2^x; a result that is not normal is zero.
__device__ inline float Power(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

__device__ inline void StoreWord(uint32_t address, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
__device__ inline void StoreHalf(uint32_t address, uint32_t word) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(static_cast<unsigned short>(word))
               : "memory");
}
// Of the pair of elements that the lane has of rows `row` on in the eight columns `n` of a product;
// `row` of the tile is a multiple of 8.
__device__ inline uint32_t PairAddress(uint32_t tile, int row, int n, int lane) {
  return LanePieceAddress(tile, row, lane / 4, n / 2, n % 2) + lane % 4 * 4;
}

// 16 rows of X Y^T from tiles of kPad columns, up to the diagonal: columns 8 n from `row` on stay.
template <int kPad>
__device__ void MultiplyRows(float (&c)[8][4], uint32_t x, uint32_t y, int row, int lane) {
#pragma unroll
  for (int k = 0; k < kPad / 16; ++k) {
    uint32_t a[4];
    LoadRowsA(a, x, row, k, lane);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (n * 16 > row) continue;
      uint32_t b[4];
      LoadRowsB(b, y, n * 16, k, lane);
      Mma<__nv_bfloat16>(c[2 * n], a, b[0], b[1]);
      Mma<__nv_bfloat16>(c[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Rows [16 warp, 16 warp + 16) of A, below their diagonal block into the tiles, that block
// transposed into `diagonal`.
template <int kPad>
__device__ void MakeA(const ChunkStage<kPad>& stage, const InverseTiles& tiles,
                      const ChunkGates& gates, int warp, int lane, float (*diagonal)[kBlock]) {
  const int row = warp * kBlock;
  float c[8][4] = {};
  MultiplyRows<kPad>(c, stage.k, stage.k, row, lane);
  float of_row[2], beta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    of_row[half] = gates.log2_decay[row + lane / 4 + half * 8];
    beta[half] = gates.beta[row + lane / 4 + half * 8];
  }
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    if (n / 2 > warp) continue;
    const int j = n * 8 + lane % 4 * 2;
    const float2 of_column = *reinterpret_cast<const float2*>(gates.log2_decay + j);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Above the diagonal the exponent may be positive, and the product anything.
      const float x = beta[half] * Power(of_row[half] - of_column.x) * c[n][half * 2];
      const float y = beta[half] * Power(of_row[half] - of_column.y) * c[n][half * 2 + 1];
      if (n / 2 == warp) {
        const int i = lane / 4 + half * 8, in_block = j - row;
        diagonal[in_block][i] = in_block < i ? x : 0.0f;
        diagonal[in_block + 1][i] = in_block + 1 < i ? y : 0.0f;
      } else {
        uint32_t rest;
        StoreWord(PairAddress(tiles.a, row + half * 8, n, lane),
                  PackWithRest<__nv_bfloat16>(x, y, &rest));
        StoreWord(PairAddress(tiles.a_rest, row + half * 8, n, lane), rest);
      }
    }
  }
  __syncwarp();  // The diagonal block is there.
}

// The inverse of a diagonal block of I + A by forward substitution in f32: the lane has column
// lane % 16. Into the tiles in A's place, and into both forms of T.
__device__ inline void InvertDiagonal(const InverseTiles& tiles, const ChunkGates& gates, int warp,
                                      int lane, const float (*diagonal)[kBlock]) {
  const int c = lane % kBlock, at = warp * kBlock;
  float x[kBlock];
#pragma unroll
  for (int i = 0; i < kBlock; ++i) x[i] = i == c ? 1.0f : 0.0f;
#pragma unroll
  for (int j = 0; j < kBlock - 1; ++j) {
#pragma unroll
    for (int i = j / 4 * 4; i < kBlock; i += 4) {
      const float4 a = *reinterpret_cast<const float4*>(&diagonal[j][i]);
      const float of[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (i + e > j) x[i + e] = fmaf(-of[e], x[j], x[i + e]);
      }
    }
  }
  // The first half of the warp stores the rounded values, the other what that lost; and likewise
  // the forms of T.
  const bool is_upper = lane >= kBlock;
  const float factor = gates.beta[at + c] * (is_upper ? Power(gates.log2_decay[at + c]) : 1.0f);
  const uint32_t tile = (is_upper ? tiles.a_rest : tiles.a) + at * kPanelRowBytes + c % 8 * 2;
  uint32_t words[kBlock / 2];
#pragma unroll
  for (int i = 0; i < kBlock; i += 2) {
    uint32_t rest;
    const uint32_t rounded = PackWithRest<__nv_bfloat16>(x[i], x[i + 1], &rest);
    const uint32_t word = is_upper ? rest : rounded;
    StoreHalf(PieceAddress(tile, i, (at + c) / 8), word);
    StoreHalf(PieceAddress(tile, i + 1, (at + c) / 8), word >> 16);
    words[i / 2] = Pack<__nv_bfloat16>(x[i] * factor, x[i + 1] * factor);
  }
  const uint32_t form = is_upper ? tiles.t_keys : tiles.t_values;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    StorePiece(
        PieceAddress(form, at + c, at / 8 + half),
        uint4{words[half * 4], words[half * 4 + 1], words[half * 4 + 2], words[half * 4 + 3]});
  }
}

// A 16 x 16 operand as two whose sum it is.
struct Split {
  uint32_t high[4], rest[4];

  // Of a product's result, as the first operand of the next one.
  __device__ void Set(const float (&c)[2][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] = PackWithRest<__nv_bfloat16>(c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1], rest + i);
    }
  }
};

// c += a b^T of a block of the split tiles, rows from 16 `row` on and columns of step `k`.
__device__ inline void MultiplySplit(float (&c)[2][4], const Split& a, const InverseTiles& tiles,
                                     int row, int k, int lane) {
  uint32_t high[4], rest[4];
  LoadRowsB(high, tiles.a, row * kBlock, k, lane);
  LoadRowsB(rest, tiles.a_rest, row * kBlock, k, lane);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    Mma<__nv_bfloat16>(c[n], a.rest, high[2 * n], high[2 * n + 1]);
    Mma<__nv_bfloat16>(c[n], a.high, rest[2 * n], rest[2 * n + 1]);
    Mma<__nv_bfloat16>(c[n], a.high, high[2 * n], high[2 * n + 1]);
  }
}

// Below the diagonal block `j`, column block j of T: T_ij = -T_ii sum_{j <= k < i} A_ik T_kj. All
// of it transposed, so that each result is the next product's first operand as it lies in
// registers.
__device__ inline void SolveColumns(const InverseTiles& tiles, const ChunkGates& gates, int j,
                                    int lane) {
  float of_values[2], of_keys[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int c = j * kBlock + lane / 4 + half * 8;
    of_values[half] = gates.beta[c];
    of_keys[half] = gates.beta[c] * Power(gates.log2_decay[c]);
  }
  Split column[4];  // Of T, transposed: rows' blocks j, j + 1, ...
  LoadColumnsA(column[0].high, tiles.a, j, j, lane);
  LoadColumnsA(column[0].rest, tiles.a_rest, j, j, lane);
#pragma unroll
  for (int s = 1; s < 4; ++s) {
    const int i = j + s;
    if (i >= 4) break;
    float sum[2][4] = {}, t[2][4] = {};
#pragma unroll
    for (int r = 0; r < s; ++r) MultiplySplit(sum, column[r], tiles, i, j + r, lane);
    Split of_sum;
    of_sum.Set(sum);
    MultiplySplit(t, of_sum, tiles, i, i, lane);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int x = 0; x < 4; ++x) t[n][x] = -t[n][x];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = j * kBlock + half * 8;
        const float x = t[n][half * 2], y = t[n][half * 2 + 1];
        StoreWord(PairAddress(tiles.t_values, c, i * 2 + n, lane),
                  Pack<__nv_bfloat16>(x * of_values[half], y * of_values[half]));
        StoreWord(PairAddress(tiles.t_keys, c, i * 2 + n, lane),
                  Pack<__nv_bfloat16>(x * of_keys[half], y * of_keys[half]));
      }
    }
    column[s].Set(t);
  }
}

}  // namespace morphserve::kernels::cuda
