#include "kernels/attention.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cpu/attention_block.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/qk_rope_append.h"

namespace morphserve::kernels {
namespace {

constexpr int32_t kHeadDimMax = 256;

constexpr int64_t RoundUp64(int64_t bytes) { return (bytes + 63) / 64 * 64; }
constexpr int64_t FloatBytes(int64_t count) {
  return RoundUp64(count * static_cast<int64_t>(sizeof(float)));
}

// What one block leaves behind: rows of output, then their maxima and sums.
constexpr int64_t PartBytes(int32_t head_dim) {
  return FloatBytes(int64_t{cpu::kTileRows} * head_dim) + 2 * FloatBytes(cpu::kTileRows);
}

// Scratch of one worker: q, scores, the present block's part and the merged one.
constexpr int64_t WorkerBytes(int32_t head_dim) {
  return FloatBytes(int64_t{cpu::kTileRows} * head_dim) +
         FloatBytes(int64_t{cpu::kTileRows} * kAttentionBlockTokens) + 2 * PartBytes(head_dim);
}

}  // namespace

int64_t AttentionWorkspaceBytes(int32_t segments_max, int32_t rows_max, int32_t kv_len_max,
                                int32_t heads, int32_t head_dim, int32_t threads) {
  const int64_t tiles = int64_t{segments_max} * heads + int64_t{rows_max} * heads / cpu::kTileRows;
  const int64_t cuts = std::min<int64_t>(threads - 1, tiles);
  const int64_t blocks = (int64_t{kv_len_max} + kAttentionBlockTokens - 1) / kAttentionBlockTokens;
  return threads * WorkerBytes(head_dim) + cuts * blocks * PartBytes(head_dim);
}

namespace cpu {
namespace {

// Rows of (output, maximum, sum) in the workspace.
struct Part {
  Part(std::byte* memory, int32_t head_dim)
      : output(reinterpret_cast<float*>(memory)),
        maximum(reinterpret_cast<float*>(memory + FloatBytes(int64_t{kTileRows} * head_dim))),
        sum(maximum + FloatBytes(kTileRows) / static_cast<int64_t>(sizeof(float))) {}

  float* output;
  float* maximum;
  float* sum;
};

// Everything one worker does in one call.
class Worker {
 public:
  Worker(const AttentionArgs& args, const TileList& tiles, int32_t worker, int32_t threads)
      : args_(args),
        tiles_(tiles),
        worker_(worker),
        dim_(args.head_dim),
        q_(reinterpret_cast<float*>(args.workspace + worker * WorkerBytes(dim_))),
        scores_(q_ + FloatBytes(int64_t{kTileRows} * dim_) / kFloat),
        block_(reinterpret_cast<std::byte*>(
                   scores_ + FloatBytes(int64_t{kTileRows} * kAttentionBlockTokens) / kFloat),
               dim_),
        merged_(reinterpret_cast<std::byte*>(block_.output) + PartBytes(dim_), dim_),
        cut_parts_(args.workspace + threads * WorkerBytes(dim_)) {}

  // First pass: the blocks this worker owns. Whole tiles are finished, parts of cut ones are kept.
  void Compute() {
    tiles_.Walk([&](const AttentionTile& tile) {
      if (worker_ < tiles_.Owner(tile, tile.first_block) ||
          worker_ > tiles_.Owner(tile, tile.end_block - 1)) {
        return;
      }
      GatherQueries(tile);
      if (tile.cut < 0) Clear();
      for (int32_t block = tile.first_block; block < tile.end_block; ++block) {
        if (tiles_.Owner(tile, block) != worker_) continue;
        if (tile.cut < 0) {
          Attend(tile, block, block_);
          Merge(tile, block_);
        } else {
          Attend(tile, block, CutPart(tile, block));
        }
      }
      if (tile.cut < 0) Finish(tile);
    });
  }

  // Second pass: cut tiles, dealt to the workers in turn.
  void MergeCuts(int32_t threads) {
    tiles_.Walk([&](const AttentionTile& tile) {
      if (tile.cut < 0 || tile.cut % threads != worker_) return;
      Clear();
      for (int32_t block = tile.first_block; block < tile.end_block; ++block) {
        Merge(tile, CutPart(tile, block));
      }
      Finish(tile);
    });
  }

 private:
  static constexpr int64_t kFloat = sizeof(float);

  Part CutPart(const AttentionTile& tile, int32_t block) const {
    const int64_t number = int64_t{tile.cut} * tiles_.blocks_max() + block - tile.first_block;
    return Part(cut_parts_ + number * PartBytes(dim_), dim_);
  }

  // Row of q and out that a row of the tile stands for, or -1.
  int64_t RowOf(const AttentionTile& tile, int32_t row) const {
    const int32_t r = tile.segment->row_begin + (tile.first + row) / tiles_.group();
    return args_.row_list == nullptr ? r : args_.row_list[r];
  }
  // Where the row's head starts in a row of q or out.
  int64_t HeadOffset(const AttentionTile& tile, int32_t row) const {
    const int64_t head =
        int64_t{tile.kv_head} * tiles_.group() + (tile.first + row) % tiles_.group();
    return head * dim_;
  }

  void GatherQueries(const AttentionTile& tile) {
    for (int32_t row = 0; row < tile.rows; ++row) {
      float* const to = q_ + int64_t{row} * dim_;
      const int64_t from = RowOf(tile, row);
      if (from < 0) {
        std::fill_n(to, dim_, 0.0f);
      } else {
        std::copy_n(args_.q + from * args_.q_stride + HeadOffset(tile, row), dim_, to);
      }
    }
  }

  void Attend(const AttentionTile& tile, int32_t block, const Part& part) {
    const int32_t base = block * kAttentionBlockTokens;
    VisibleRange visible[kTileRows];
    for (int32_t row = 0; row < tile.rows; ++row) {
      const int32_t position = tiles_.Position(tile, row);
      const int32_t begin = std::max(tiles_.FirstSeen(position) - base, 0);
      const int32_t end = std::min(position + 1 - base, kAttentionBlockTokens);
      visible[row] = begin < end ? VisibleRange{begin, end} : VisibleRange{};
    }
    AttentionBlock work = {.rows = tile.rows,
                           .head_dim = dim_,
                           .scale = args_.scale,
                           .kv_dtype = args_.kv_dtype,
                           .q = q_,
                           .visible = visible,
                           .scores = scores_,
                           .maximum = part.maximum,
                           .sum = part.sum,
                           .output = part.output};
    for (int32_t page = 0; page < kBlockPages; ++page) {
      const int32_t first = base + page * kPageTokens;
      if (first + kPageTokens <= tile.begin || first >= tile.end) continue;
      work.k_pages[page] = HeadOfPage(tile, first, tile.kv_head);
      work.v_pages[page] = HeadOfPage(tile, first, args_.kv_heads + tile.kv_head);
    }
    const int32_t next = base + kAttentionBlockTokens;
    if (next < tile.end) work.next_page = HeadOfPage(tile, next, tile.kv_head);
    AttendBlock(work);
  }

  // Where part `head` of the page of a position lies: K of all heads, then V of all heads.
  const std::byte* HeadOfPage(const AttentionTile& tile, int32_t position, int32_t head) const {
    const int64_t head_bytes = int64_t{kPageTokens} * dim_ * KvDTypeBytes(args_.kv_dtype);
    return args_.kv_base + tile.segment->page_table[position / kPageTokens] * kArenaUnitBytes +
           head * head_bytes;
  }

  void Clear() { std::fill_n(merged_.sum, kTileRows, 0.0f); }

  void Merge(const AttentionTile& tile, const Part& part) {
    for (int32_t row = 0; row < tile.rows; ++row) {
      const int64_t at = int64_t{row} * dim_;
      MergeBlockRow(part.output + at, part.maximum[row], part.sum[row], dim_, merged_.output + at,
                    &merged_.maximum[row], &merged_.sum[row]);
    }
  }

  void Finish(const AttentionTile& tile) {
    for (int32_t row = 0; row < tile.rows; ++row) {
      const int64_t to = RowOf(tile, row);
      if (to < 0) continue;
      FinishRow(merged_.output + int64_t{row} * dim_, merged_.sum[row], dim_,
                args_.out + to * args_.out_stride + HeadOffset(tile, row));
    }
  }

  const AttentionArgs& args_;
  const TileList& tiles_;
  const int32_t worker_;
  const int32_t dim_;
  float* const q_;       // [rows, d]
  float* const scores_;  // [rows, 256]
  const Part block_;
  const Part merged_;
  std::byte* const cut_parts_;
};

absl::Status CheckSegment(const AttentionSegment& segment, size_t number) {
  if (segment.row_begin < 0 || segment.row_count < 0 || segment.kv_len < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("segment %d has a negative size (row_begin %d, row_count %d, kv_len %d)",
                        number, segment.row_begin, segment.row_count, segment.kv_len));
  }
  if (segment.kv_len > 0 && segment.kv_len < segment.row_count) {
    return absl::InvalidArgumentError(
        absl::StrFormat("segment %d has kv_len %d, less than its row_count %d", number,
                        segment.kv_len, segment.row_count));
  }
  if (segment.kv_len > 0 && segment.row_count > 0 && segment.page_table == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("segment %d has no page table for kv_len %d", number, segment.kv_len));
  }
  return absl::OkStatus();
}

absl::Status CheckShape(const AttentionArgs& args) {
  if (args.kv_dtype == KvDType::kE4m3) {
    return absl::InvalidArgumentError("pages of e4m3 are not supported on the CPU");
  }
  if (args.head_dim < 1 || args.head_dim > kHeadDimMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("head_dim %d is outside 1..%d", args.head_dim, kHeadDimMax));
  }
  if (args.kv_heads < 1 || args.heads < 1 || args.heads % args.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("heads %d is not a multiple of kv_heads %d", args.heads, args.kv_heads));
  }
  if (args.window < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("window %d is negative", args.window));
  }
  for (size_t i = 0; i < args.segments.size(); ++i) {
    if (absl::Status status = CheckSegment(args.segments[i], i); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// Segments without a cache are padding.
void ZeroPadding(const AttentionArgs& args) {
  for (const AttentionSegment& segment : args.segments) {
    if (segment.kv_len > 0) continue;
    for (int32_t r = 0; r < segment.row_count; ++r) {
      const int32_t place = segment.row_begin + r;
      const int64_t row = args.row_list == nullptr ? place : args.row_list[place];
      if (row < 0) continue;
      std::fill_n(args.out + row * args.out_stride, int64_t{args.heads} * args.head_dim, 0.0f);
    }
  }
}

}  // namespace

absl::Status PagedAttention(const AttentionArgs& args, Stream stream) {
  if (absl::Status status = CheckShape(args); !status.ok()) return status;
  const int32_t threads = stream.pool->threads();
  const TileList tiles(args, threads);
  const int64_t needed = threads * WorkerBytes(args.head_dim) +
                         int64_t{tiles.cuts()} * tiles.blocks_max() * PartBytes(args.head_dim);
  if (args.workspace == nullptr || args.workspace_bytes < needed) {
    return absl::InvalidArgumentError(
        absl::StrFormat("workspace of %d bytes is less than %d", args.workspace_bytes, needed));
  }
  if (args.append != nullptr) {
    if (absl::Status status = QkRopeAppend(*args.append, stream); !status.ok()) return status;
  }
  ZeroPadding(args);
  if (tiles.blocks_max() == 0) return absl::OkStatus();
  stream.pool->ForEachWorker(
      [&](int32_t worker) { Worker(args, tiles, worker, threads).Compute(); });
  if (tiles.cuts() > 0) {
    stream.pool->ForEachWorker(
        [&](int32_t worker) { Worker(args, tiles, worker, threads).MergeCuts(threads); });
  }
  return absl::OkStatus();
}

}  // namespace cpu
}  // namespace morphserve::kernels
