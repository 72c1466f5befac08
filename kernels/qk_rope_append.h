// What         Prepares rows for attention: optional per-head norm of q and k, rotary embedding of
//              q and k, and the append of k and v to the rows' pages.
// Math         q, k: h * (1/sqrt(mean(h*h) + eps)) * w per head when w is given; then the first
//              rotary_dim elements are rotated: pairs (i, i + rotary_dim/2) (half split) or
//              (2i, 2i+1) (interleaved) by (cos[row, i], sin[row, i]). f32; k and v are rounded
//              once to the cache type.
// Shapes       q [rows, heads, d]; k, v [rows, kv_heads, d]; cos, sin [rows, rotary_dim / 2].
//              Row strides in elements; heads contiguous within a row.
// Pages        A page of one layer holds kPageTokens positions: first K as [kv_heads][d][64]
//              (transposed: 64 positions contiguous), then V as [kv_heads][64][d]. The page of a
//              row is kv_base + page_of_row[row] * kArenaUnitBytes; its place in it is
//              offset_of_row[row] (0..63).
// Dtypes       q, k, v, norms, cos, sin: f32. Pages: KvDType, rounded to nearest even; kE4m3, which
//              the CPU refuses, takes what is beyond 448 as 448.
// Aliasing     q is updated in place (k too).
// Padding      rows == 0 does nothing; page_of_row[row] == -1 skips the row entirely.
//              A row list (optional) names the rows to treat; -1 entries are skipped.
// Limits       d in 1..256; rotary_dim even, 0 <= rotary_dim <= d; heads multiple of kv_heads.
// Launch       cpu: rows split statically over the pool.
// Determinism  bitwise repeatable; rows independent; pages of unlisted rows untouched.
// Errors       INVALID_ARGUMENT for a broken limit.
// Source       Su et al. 2021 (arXiv 2104.09864).
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/common/types.h"

namespace morphserve::kernels {

struct QkRopeAppendArgs {
  float* q = nullptr;
  int64_t q_stride = 0;
  float* k = nullptr;
  int64_t k_stride = 0;
  const float* v = nullptr;
  int64_t v_stride = 0;
  const float* q_norm = nullptr;  // [d] or null.
  const float* k_norm = nullptr;  // [d] or null.
  float norm_eps = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  int32_t rotary_dim = 0;
  bool interleaved = false;
  int32_t rows = 0;
  const int32_t* row_list = nullptr;       // [rows] or null.
  const int32_t* page_of_row = nullptr;    // Indexed by row.
  const int32_t* offset_of_row = nullptr;  // Indexed by row.
  std::byte* kv_base = nullptr;
  KvDType kv_dtype = KvDType::kF16;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
};

// Bytes of one page: K and V of kPageTokens positions of one layer.
constexpr int64_t PageBytes(KvDType type, int32_t kv_heads, int32_t head_dim) {
  return int64_t{2} * kPageTokens * kv_heads * head_dim * KvDTypeBytes(type);
}

namespace cpu {
absl::Status QkRopeAppend(const QkRopeAppendArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
