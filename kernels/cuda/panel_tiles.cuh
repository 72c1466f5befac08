// Tiles of 16-bit elements in shared memory in panels of 64 columns, as page_layout.h keeps a page:
// a row of a panel is 128 bytes, and the 16-byte piece c of row r lies in place c ^ (r % 8). Eight
// neighbouring rows have a piece in eight different places, so none of the loads below meets
// another one's bank. Operands are those of tensor_ops.cuh.
#pragma once

#include "kernels/cuda/tensor_ops.cuh"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kPanelRowBytes = 128;

// Address of a piece of a tile whose panels have kRows rows.
template <int kRows = 64>
__device__ inline uint32_t PieceAddress(uint32_t tile, int row, int piece) {
  return tile + static_cast<uint32_t>(((piece / 8) * kRows + row) * kPanelRowBytes +
                                      ((piece % 8) ^ (row % 8)) * 16);
}

// The same for row `row` + `lane_row`, where `row` is a multiple of 8, and piece 2 k +
// `lane_piece`. In this order of the sums addresses differ by numbers that are known before the
// kernel runs.
template <int kRows = 64>
__device__ inline uint32_t LanePieceAddress(uint32_t tile, int row, int lane_row, int k,
                                            int lane_piece) {
  const int own = lane_row * kPanelRowBytes + (lane_piece ^ lane_row % 8) * 16;
  return tile + static_cast<uint32_t>(own ^ k % 4 * 32) +
         static_cast<uint32_t>((k / 4 * kRows + row) * kPanelRowBytes);
}

// threadIdx.x - `first`, of 1024 at most, such that the compiler does not know it again: addresses
// that a loop makes of it are not kept in registers from one round to the next.
__device__ inline int OpaqueThread(int first = 0) {
  int thread = static_cast<int>(threadIdx.x) - first;
  asm volatile("" : "+r"(thread));
  return thread & 1023;
}
// The lane that the loads below go by, where they are given no other.
__device__ inline int OwnLane() { return static_cast<int>(threadIdx.x) % kWarp; }

// A [16][16]: rows from `row` on, columns of step `k`.
__device__ inline void LoadRowsA(uint32_t (&a)[4], uint32_t tile, int row, int k,
                                 int lane = OwnLane()) {
  LoadMatrices(a, LanePieceAddress(tile, row, lane % 16, k, lane / 16));
}

// A [16][16] of the tile's transpose: its columns of step `m`, rows of step `k`.
__device__ inline void LoadColumnsA(uint32_t (&a)[4], uint32_t tile, int m, int k,
                                    int lane = OwnLane()) {
  LoadMatricesTransposed(a,
                         LanePieceAddress(tile, k * 16, lane / 16 * 8 + lane % 8, m, lane / 8 % 2));
}

// B of a product with the tile's transpose, for 16 rows from `row` on and the columns of step `k`:
// registers 0, 1 are those of the first 8 rows, 2, 3 of the others.
__device__ inline void LoadRowsB(uint32_t (&b)[4], uint32_t tile, int row, int k,
                                 int lane = OwnLane()) {
  LoadMatrices(b, LanePieceAddress(tile, row, lane / 16 * 8 + lane % 8, k, lane / 8 % 2));
}

// B of a product with the tile, for 16 rows from `row` on and the 16 columns of step `n`: registers
// 0, 1 are those of the first 8 columns.
template <int kRows = 64>
__device__ inline void LoadColumnsB(uint32_t (&b)[4], uint32_t tile, int row, int n,
                                    int lane = OwnLane()) {
  LoadMatricesTransposed(
      b, LanePieceAddress<kRows>(tile, row, lane / 8 % 2 * 8 + lane % 8, n, lane / 16));
}

__device__ inline void StorePiece(uint32_t address, const uint4& piece) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(piece.x),
               "r"(piece.y), "r"(piece.z), "r"(piece.w)
               : "memory");
}

// Zeros in rows [begin, kRows) of `panels` panels, by threads of which this is `thread`.
template <int kRows = 64>
__device__ inline void ZeroTileRows(uint32_t tile, int panels, int begin, int thread, int threads) {
  for (int i = thread; i < (kRows - begin) * panels * 8; i += threads) {
    StorePiece(PieceAddress<kRows>(tile, begin + i / (panels * 8), i % (panels * 8)), uint4{});
  }
}

}  // namespace morphserve::kernels::cuda
