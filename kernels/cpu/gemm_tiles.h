// Token tiles: how the rows of x lie in the workspace while a product runs. Internal to the CPU
// mat-mul. Rows are cut into tiles of 16, the rest into tiles of 8, 4, 2 and 1; a tile is stored
// inputs first, so that a kernel walks it in one straight line:
//   floats     [k][width] f32
//   quantised  for each group of 32 inputs: [width][32] int8, then four vectors [width]:
//              scale f32; scale * sum(q) f32; -128 * sum(q) int32; -32 * sum(q of the first 16).
// Rows that only fill a tile up are zeros with scale zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace morphserve::kernels::cpu {

inline constexpr int32_t kMaxTileRows = 16;
inline constexpr int32_t kTileWidths = 5;  // 1, 2, 4, 8, 16: index i stands for 1 << i.

// Bytes of one group of a quantised tile, per row.
inline constexpr int64_t kTileGroupBytes = 32 + 4 * 4;

struct Tile {
  int32_t first = 0;         // First row.
  int32_t rows = 0;          // Rows that count; the rest of the width is padding.
  int32_t width_index = 0;   // log2(width).
  int32_t padded_first = 0;  // Sum of the widths before this tile.
  int32_t width() const { return 1 << width_index; }
};

// The cut of `rows` rows. A wider tile is taken when at most a quarter of it (3 of 16) is padding.
class Tiling {
 public:
  explicit Tiling(int32_t rows) : full_(rows / kMaxTileRows), count_(full_) {
    int32_t first = full_ * kMaxTileRows;
    padded_rows_ = first;
    while (first < rows) {
      const int32_t rest = rows - first;
      const int32_t index = rest >= 13 ? 4 : rest >= 7 ? 3 : rest >= 3 ? 2 : rest - 1;
      const int32_t width = 1 << index;
      const int32_t taken = rest < width ? rest : width;
      tail_[count_ - full_] = {first, taken, index, padded_rows_};
      ++count_;
      first += taken;
      padded_rows_ += width;
    }
  }

  int32_t count() const { return count_; }
  int32_t padded_rows() const { return padded_rows_; }
  Tile At(int32_t i) const {
    if (i >= full_) return tail_[i - full_];
    return {i * kMaxTileRows, kMaxTileRows, kTileWidths - 1, i * kMaxTileRows};
  }

 private:
  int32_t full_;
  int32_t count_;
  int32_t padded_rows_ = 0;
  Tile tail_[4];
};

}  // namespace morphserve::kernels::cpu
