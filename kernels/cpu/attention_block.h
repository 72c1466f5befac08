// The inner part of paged attention: a tile of query rows of one KV head against one block of
// kAttentionBlockTokens positions, and the ordered merge of blocks. Every row is computed as if
// alone: which rows share a tile never changes its bits. Thread rule: reentrant; memory is the
// caller's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/common/types.h"

namespace morphserve::kernels::cpu {

// Query rows of a tile. 24 rows fill the registers of the inner product evenly (4 x 6) and keep
// their scores in the first-level cache.
inline constexpr int32_t kTileRows = 24;
inline constexpr int32_t kBlockPages = kAttentionBlockTokens / kPageTokens;

// Visible positions of one row within a block, relative to its start: [begin, end), empty if equal.
struct VisibleRange {
  int32_t begin = 0;
  int32_t end = 0;
};

struct AttentionBlock {
  int32_t rows = 0;      // 1..kTileRows
  int32_t head_dim = 0;  //
  float scale = 0;       //
  KvDType kv_dtype = KvDType::kF16;
  const float* q = nullptr;                    // [rows, d]
  const VisibleRange* visible = nullptr;       // [rows]
  const std::byte* k_pages[kBlockPages] = {};  // [d][64] each; null where no row sees the page.
  const std::byte* v_pages[kBlockPages] = {};  // [64][d] each
  const std::byte* next_page = nullptr;        // Likely to be read next, or null.
  float* scores = nullptr;                     // [rows, 256] scratch
  float* maximum = nullptr;                    // [rows] largest score; -inf for an empty range
  float* sum = nullptr;     // [rows] sum of exp(score - maximum); 0 for an empty range
  float* output = nullptr;  // [rows, d] sum of exp(score - maximum) * v
};

// Fills maximum, sum and output.
void AttendBlock(const AttentionBlock& block);

// Adds a later block's part of one row to what came before it. The state of "nothing yet" is sum 0.
void MergeBlockRow(const float* output, float maximum, float sum, int32_t head_dim,
                   float* merged_output, float* merged_maximum, float* merged_sum);

// out = merged / sum.
void FinishRow(const float* merged_output, float merged_sum, int32_t head_dim, float* out);

}  // namespace morphserve::kernels::cpu
