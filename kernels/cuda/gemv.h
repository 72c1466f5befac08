// The product of up to 64 token rows with an uploaded matrix (matrix_layout.h): how a call is laid
// out over the device. The plan depends on the shape and on the number of `rows`, never on what the
// row list holds, so that a row's bits are the same beside any other rows. Thread rule: pure.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/gemm.h"

namespace morphserve::kernels::cuda {

inline constexpr int32_t kGemvRowsMax = 64;   // More rows go to the large product.
inline constexpr int32_t kExactRowsMax = 8;   // Up to here x is exact; above it is rounded to bf16.
inline constexpr int32_t kFusedRowsMax = 16;  // Up to here norm and activation are of the launch.
inline constexpr int32_t kTileOutputs = kTileRows;  // Rows of w that one warp works on.
inline constexpr int32_t kGemvWarps = 8;
inline constexpr int32_t kGemvPartsMax = 8;
inline constexpr int32_t kClusterMax = 8;
inline constexpr int32_t kGemvSharedMax = 220 * 1024;

struct GemvPlan {
  int32_t rows_max = 1;     // That the kernel is made for: a power of two.
  int32_t cluster = 1;      // Blocks that share the inputs of a tile.
  int32_t clusters = 1;     // Among which tiles are shared out.
  int32_t slice_steps = 0;  // Steps of a block.
  int32_t k_split = 1;      // Units that share the inputs of a block.
  int32_t unit_steps = 0;
  int32_t group_steps = 0;  // Of a unit, loaded at a time.
  int32_t batch_tiles = 0;  // Of a cluster, summed at a time.
  int64_t shared_bytes = 0;
};

// `tiles` is the sum over parts of ceil(n / 16); with `pairs` they stay together two by two. False
// when x of so many rows and inputs does not fit the shared memory of a cluster: the caller then
// halves the rows.
bool PlanGemv(WeightFormat format, int32_t tiles, int32_t k, int32_t rows, bool pairs,
              GemvPlan* plan);

// One launch of all parts of a call, made for the plan.
struct GemvCall;
absl::Status GemvBf16(const GemvCall& call, const GemvPlan& plan, Stream stream);
absl::Status GemvQ8(const GemvCall& call, const GemvPlan& plan, Stream stream);
absl::Status GemvFp8(const GemvCall& call, const GemvPlan& plan, Stream stream);
absl::Status GemvQ4(const GemvCall& call, const GemvPlan& plan, Stream stream);

}  // namespace morphserve::kernels::cuda
