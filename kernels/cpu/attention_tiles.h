// How a call of paged attention is cut into work: tiles of query rows of one KV head, each a run of
// blocks, dealt to threads as contiguous parts of the list of all blocks. A tile that spans two
// parts is "cut": its blocks are kept apart and merged in a second pass, in ascending order as
// ever. Thread rule: a TileList is read by all workers and changed by none.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cpu/attention_block.h"

namespace morphserve::kernels::cpu {

struct AttentionTile {
  const AttentionSegment* segment = nullptr;
  int32_t kv_head = 0;
  int32_t first = 0;  // First row, counted as query * group + head in group.
  int32_t rows = 0;   // At most kTileRows.
  int32_t begin = 0;  // Positions that any row sees: [begin, end).
  int32_t end = 0;    //
  int32_t first_block = 0;
  int32_t end_block = 0;
  int64_t start = 0;       // Cost of all blocks before this tile's first.
  int64_t block_cost = 0;  //
  int32_t cut = -1;        // Number of this tile among the cut ones, or -1.
};

class TileList {
 public:
  TileList(const AttentionArgs& args, int32_t threads)
      : args_(args), group_(args.heads / args.kv_heads), threads_(threads) {
    Walk([&](const AttentionTile& tile) {
      total_ += tile.block_cost * (tile.end_block - tile.first_block);
      blocks_max_ = std::max(blocks_max_, tile.end_block - tile.first_block);
    });
    Walk([&](const AttentionTile& tile) { cuts_ = std::max(cuts_, tile.cut + 1); });
  }

  int32_t cuts() const { return cuts_; }
  int32_t blocks_max() const { return blocks_max_; }
  int32_t group() const { return group_; }

  // The worker that computes the block.
  int32_t Owner(const AttentionTile& tile, int32_t block) const {
    return OwnerAt(tile.start + tile.block_cost * (block - tile.first_block));
  }

  // The sequence's position of a row of the tile.
  int32_t Position(const AttentionTile& tile, int32_t row) const {
    return tile.segment->kv_len - tile.segment->row_count + (tile.first + row) / group_;
  }

  // First position that a query at `position` sees.
  int32_t FirstSeen(int32_t position) const {
    return args_.window > 0 ? std::max(0, position - args_.window + 1) : 0;
  }

  // Calls f(tile) for all tiles, always in the same order.
  template <class F>
  void Walk(F&& f) const {
    AttentionTile tile;
    int64_t start = 0;
    int32_t cuts = 0;
    for (const AttentionSegment& segment : args_.segments) {
      if (segment.row_count == 0 || segment.kv_len == 0) continue;
      const int64_t rows = int64_t{segment.row_count} * group_;
      tile.segment = &segment;
      for (tile.kv_head = 0; tile.kv_head < args_.kv_heads; ++tile.kv_head) {
        for (int64_t first = 0; first < rows; first += kTileRows) {
          tile.first = static_cast<int32_t>(first);
          tile.rows = static_cast<int32_t>(std::min<int64_t>(kTileRows, rows - first));
          tile.begin = FirstSeen(Position(tile, 0));
          tile.end = Position(tile, tile.rows - 1) + 1;
          tile.first_block = tile.begin / kAttentionBlockTokens;
          tile.end_block = (tile.end - 1) / kAttentionBlockTokens + 1;
          tile.start = start;
          tile.block_cost = kReadCost + tile.rows;
          const bool is_cut =
              total_ > 0 && Owner(tile, tile.first_block) != Owner(tile, tile.end_block - 1);
          tile.cut = is_cut ? cuts++ : -1;
          start += tile.block_cost * (tile.end_block - tile.first_block);
          f(static_cast<const AttentionTile&>(tile));
        }
      }
    }
  }

 private:
  // Reading a block takes as long as computing this many rows of it.
  static constexpr int64_t kReadCost = 8;

  // Worker t starts at floor(total * t / threads).
  int32_t OwnerAt(int64_t cost) const {
    return static_cast<int32_t>(((cost + 1) * threads_ - 1) / total_);
  }

  const AttentionArgs& args_;
  const int32_t group_;
  const int32_t threads_;
  int64_t total_ = 0;
  int32_t cuts_ = 0;
  int32_t blocks_max_ = 0;
};

}  // namespace morphserve::kernels::cpu
