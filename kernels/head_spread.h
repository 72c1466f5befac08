// What         Grouped heads become whole heads, and back: SpreadHeads copies key-value head g to
//              the heads of its group; FoldHeads, its gradient, adds the group up.
// Math         spread: wide[t, g * group + i] = narrow[t, g]; fold: narrow[t, g] += sum over i,
//              ascending, of wide[t, g * group + i].
// Shapes       narrow [rows, kv_heads, d]; wide [rows, heads, d]; row strides in elements.
// Aliasing     none.
// Padding      rows == 0 does nothing.
// Limits       heads a multiple of kv_heads; d >= 1.
// Launch       cpu: rows split statically over the pool. cuda: a block a row.
// Determinism  bitwise repeatable; rows independent. Workspace: none.
// Errors       INVALID_ARGUMENT for a broken limit.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels {

struct HeadSpreadShape {
  int32_t rows = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
};

namespace cpu {
absl::Status SpreadHeads(const HeadSpreadShape& shape, const float* narrow, int64_t narrow_stride,
                         float* wide, int64_t wide_stride, Stream stream);
absl::Status FoldHeads(const HeadSpreadShape& shape, const float* wide, int64_t wide_stride,
                       float* narrow, int64_t narrow_stride, Stream stream);
}  // namespace cpu

}  // namespace morphserve::kernels
