// Tiles of K and V of one page and head in shared memory, for the kernels on tensor cores: the ring
// that a producer warp fills by bulk copies. The layout is that of page_layout.h, kept as it is: a
// position is a row of panel_tiles.cuh.
#pragma once

#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/page_layout.h"
#include "kernels/cuda/panel_tiles.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kTileStageAlignment = 1024;  // Of the swizzled shape.

template <int kDim, int kStageCount>
struct KvRing {
  static constexpr int kTileBytes = kPageTokens * kDim * 2;
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kStages = kStageCount;
  static constexpr int kBytes = kStageBytes * kStages + kTileStageAlignment;

  std::byte* tiles;  // [stage][K, V]
  uint64_t* full;    // [stage]
  uint64_t* empty;   // [stage]

  __device__ KvRing(std::byte* shared, uint64_t* barriers)
      : tiles(shared + (kTileStageAlignment - SharedAddress(shared) % kTileStageAlignment) %
                           kTileStageAlignment),
        full(barriers),
        empty(barriers + kStages) {}

  // By one thread, before the block's barrier.
  __device__ void Init(int consumer_warps) {
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(full + i, 1);
      InitBarrier(empty + i, consumer_warps);
    }
    FenceBarrierInit();
  }
  __device__ std::byte* Keys(int i) const { return tiles + i % kStages * kStageBytes; }
  __device__ std::byte* Values(int i) const { return Keys(i) + kTileBytes; }
  __device__ void WaitFull(int i) { Wait(full + i % kStages, i / kStages % 2); }
  __device__ void Release(int i) {
    __syncwarp();  // The whole warp has read its operands.
    if (threadIdx.x % kWarp == 0) Arrive(empty + i % kStages);
  }

  // All tiles in order, by one thread.
  template <typename T>
  __device__ void Produce(const AttentionArgs& args, const int32_t* page_table, int first_page,
                          int pages, int kv_head) {
    std::byte* const base = const_cast<std::byte*>(args.kv_base);
    for (int i = 0; i < pages; ++i) {
      const int stage = i % kStages;
      if (i >= kStages) Wait(empty + stage, (i / kStages - 1) % 2);
      const int32_t page = page_table[first_page + i];
      ArriveExpecting(full + stage, kStageBytes);
      BulkCopy(Keys(i), KeysOfPage<T>(base, page, kv_head, kDim), kTileBytes, full + stage);
      BulkCopy(Values(i), ValuesOfPage<T>(base, page, kv_head, kDim, args.kv_heads), kTileBytes,
               full + stage);
    }
  }
};

// Largest value and sum over the four lanes that hold a row of C.
__device__ inline float RowMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}
__device__ inline float RowSum(float value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}

}  // namespace morphserve::kernels::cuda
