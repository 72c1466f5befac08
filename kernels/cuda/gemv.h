// The product of up to 64 token rows with a row-major matrix (matrix_layout.h): how a call is laid
// out over the device. The plan depends on the shape and on the bucket of `rows`, never on what the
// row list holds, so that a row's bits are the same beside any other rows. Thread rule: pure.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/gemm.h"

namespace morphserve::kernels::cuda {

inline constexpr int32_t kGemvRowsMax = 64;   // More rows go to the large product.
inline constexpr int32_t kExactRowsMax = 16;  // Up to here x is exact; above it is rounded to bf16.
inline constexpr int32_t kTileOutputs = 16;   // Rows of w that one warp works on.
inline constexpr int32_t kGemvWarps = 8;
inline constexpr int32_t kGemvPartsMax = 8;
inline constexpr int32_t kClusterMax = 8;

struct GemvPlan {
  int32_t column_tiles = 1;  // Of 8 columns; x takes `splits` columns a row.
  int32_t splits = 3;        // bf16 terms that x is the sum of: 3 are exact.
  int32_t cluster = 1;       // Blocks that share the inputs of a tile.
  int32_t slice_steps = 0;   // Steps of each of them.
  int32_t k_split = 1;       // Warps that share the inputs of a block.
  int32_t tiles = 1;         // Tiles of a block.
  int32_t blocks = 1;        // Of all tiles; the grid is this times `cluster`.
  int64_t shared_bytes = 0;
};

// `tiles` is the sum over parts of ceil(n / 16). False when x of so many rows and inputs does not
// fit the shared memory of a cluster: the caller then halves the rows.
bool PlanGemv(WeightFormat format, int32_t tiles, int32_t k, int32_t rows, GemvPlan* plan);

// One launch for all parts, which have one format. `args` are valid and have 1..64 rows.
absl::Status GemvBf16(const MatmulArgs& args, const GemvPlan& plan, Stream stream);
absl::Status GemvQ8(const MatmulArgs& args, const GemvPlan& plan, Stream stream);
absl::Status GemvQ4(const MatmulArgs& args, const GemvPlan& plan, Stream stream);

}  // namespace morphserve::kernels::cuda
