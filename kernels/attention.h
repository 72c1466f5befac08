// What         Causal softmax attention of query rows over paged K and V: decode rows and prefill
//              chunks of many sequences in one call.
// Math         o = softmax(scale * q K^T) V over positions p with p <= pos and, with a window w >
// 0,
//              p > pos - w, where pos is the position of the query. Online softmax in f32 over
//              blocks of kAttentionBlockTokens positions counted from position 0: in each block
//              scores (d ascending, one FMA chain), maximum, exp, sum and P V (p ascending) are
//              formed alone; (m, l, O) of the blocks are merged in ascending order. A query's bits
//              therefore depend on its own q and cache only, never on chunk, batch or threads.
// Shapes       q, out [rows, heads, d]; a segment is `row_count` consecutive rows of one sequence,
//              whose last row sees kv_len positions (its position is kv_len - 1).
// Pages        Layout of kernels/qk_rope_append.h; page_table[i] is the page of positions
//              64 i .. 64 i + 63 in units of kArenaUnitBytes.
// Dtypes       q, out: f32. Pages: KvDType; the CPU refuses kE4m3. Accumulation f32.
// Aliasing     out may not overlap q or pages.
// Padding      row_count == 0 does nothing; a segment with kv_len == 0 writes zeros. Rows of no
//              segment are not written. Row r of a segment is row_list[row_begin + r] when a list
//              is given; -1 skips.
// Limits       d in 1..256; heads a multiple of kv_heads; kv_len >= row_count unless 0.
// Launch       cpu: prefill: (segment, kv head, query tile) items; decode: (segment, kv head,
//              range of blocks) items with an ordered merge; taken by threads in fixed blocks.
// Cost         bytes = sum over segments of kv_len * PageBytes / 64; flops = 4 * d * heads * pairs.
// Determinism  bitwise repeatable. Workspace: AttentionWorkspaceBytes.
// Errors       INVALID_ARGUMENT for a broken limit.
// Source       Milakov and Gimelshein 2018 (arXiv 1805.02867); Dao et al. 2022 (arXiv 2205.14135).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/common/types.h"

namespace morphserve::kernels {

struct AttentionSegment {
  int32_t row_begin = 0;
  int32_t row_count = 0;
  int32_t kv_len = 0;
  const int32_t* page_table = nullptr;
};

struct QkRopeAppendArgs;

struct AttentionArgs {
  const float* q = nullptr;
  int64_t q_stride = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  const std::byte* kv_base = nullptr;
  KvDType kv_dtype = KvDType::kF16;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  float scale = 0;
  int32_t window = 0;                 // 0: unlimited.
  const int32_t* row_list = nullptr;  // Or null.
  std::span<const AttentionSegment> segments;
  int32_t rows_max = 0;     // CUDA: no segment has more rows,
  int32_t kv_len_max = 0;   // nor sees more positions,
  int32_t first_chunk = 0;  // and none before this one has more than one row,
  bool single_rows = true;  // and, if false, none has just one. The CPU reads them.
  // Null, or what to do to the segments' rows before: kernels/qk_rope_append.h. It has the same q,
  // pages, shape and row list; a backend may fuse it, and leave q and k as they are.
  const QkRopeAppendArgs* append = nullptr;
  std::byte* workspace = nullptr;  // 64-byte aligned.
  int64_t workspace_bytes = 0;
};

// Workspace that suffices for any call with at most this many segments, rows and positions.
int64_t AttentionWorkspaceBytes(int32_t segments_max, int32_t rows_max, int32_t kv_len_max,
                                int32_t heads, int32_t head_dim, int32_t threads);

namespace cpu {
absl::Status PagedAttention(const AttentionArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
