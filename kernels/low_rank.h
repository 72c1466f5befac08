// What         Adds low-rank corrections to rows: the second factor of `W + B A`, several matrices
//              in one call; optionally spreads grouped heads over all heads first.
// Math         For each part p and listed row r:
//              base = p.base == null ? (p.accumulate ? y[r] : 0) : spread(p.base[r]);
//              y[r, n] = base[n] + (sum_k x[r, p.x_column + k] * B_p[n, k] + bias[n]), the sum
//              first, one f32 FMA chain with k ascending (but see Determinism). spread(): output
//              head h takes head h / (n / base_width) of the base row, base heads being head_dim
//              wide, so that grouped keys and values become whole heads; base_width == n copies.
// Shapes       x [rows, x_stride]; B [n, k] packed; base [rows, base_width]; y [rows, n].
// Dtypes       f32; B: kF32, kF16 or kBF16.
// Aliasing     no y may overlap x, a base or another y (base == y is `accumulate`).
// Padding      rows == 0 does nothing. The row list names rows of x, base and y; -1 skips.
// Limits       k >= 1; n >= 1; x_column + k <= x_stride; n a multiple of base_width, base_width of
//              head_dim when a base is given. weights null: the part only spreads its base, and
//              takes no bias. A part has a base or accumulates, not both.
// Determinism  bitwise repeatable; rows independent; the bits of a row do not depend on the number
//              of rows, threads or the instruction set (all with FMA); on a device they do where
//              more than 64 rows go to its tensor cores, as products do, and inputs then have 16
//              bits. Workspace: none.
// Launch       cpu: one fork for all parts; units of (row block, panel) split statically.
// Errors       INVALID_ARGUMENT for a broken limit, before anything is written.
// Source       Hu et al. 2021 (arXiv 2106.09685).
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/gemm.h"

namespace morphserve::kernels {

struct LowRankPart {
  const PackedMatrix* weights = nullptr;  // B, or null.
  const float* bias = nullptr;            // [n] or null.
  int32_t x_column = 0;
  const float* base = nullptr;
  int64_t base_stride = 0;
  int32_t base_width = 0;
  int32_t head_dim = 0;  // Only with a base narrower than n.
  int32_t n = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  bool accumulate = false;
};

struct LowRankArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int32_t rows = 0;
  const int32_t* row_list = nullptr;  // [rows] or null.
  std::span<const LowRankPart> parts;
};

namespace cpu {
absl::Status LowRank(const LowRankArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
