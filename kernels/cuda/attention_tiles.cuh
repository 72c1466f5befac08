// Tiles of K and V of one page and head in shared memory, for the kernels on tensor cores. The
// layout is that of page_layout.h, kept as it is: a position is a row of kv_operands.cuh.
#pragma once

#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/kv_operands.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kTileStageAlignment = 1024;  // Of the swizzled shape.

// The pages of a block's part, on their way to its warps: each has its positions of a page brought
// by itself and waits for nobody else.
template <typename T, int kDim, int kStageCount, int kWarps>
class WarpRing {
 public:
  static constexpr int kStages = kStageCount;
  static constexpr int kPanels = kDim / kPanelElements;
  static constexpr int kPanelBytes = kPageTokens * KvOperands<T>::kRowBytes;
  static constexpr int kTileBytes = kPanels * kPanelBytes;
  static constexpr int kSliceBytes = kPanelBytes / kWarps;  // A warp's of a panel.
  static constexpr int kBytes = 2 * kTileBytes * kStages + kTileStageAlignment;
  static constexpr int kBarriers = kStages * kWarps;

  // `pages` are addresses of `count` pages.
  __device__ WarpRing(std::byte* shared, uint64_t* barriers, const int32_t* pages, int count)
      : pages_(pages),
        count_(count),
        tiles_(SharedAddress(shared) +
               (kTileStageAlignment - SharedAddress(shared) % kTileStageAlignment) %
                   kTileStageAlignment),
        full_(barriers + threadIdx.x / kWarp) {}

  // By the first lane of each warp, before anything else.
  __device__ void Init() {
    for (int i = 0; i < kStages; ++i) InitBarrier(full_ + i * kWarps, 1);
    FenceBarrierInit();
  }
  __device__ std::byte* Keys(int i) const {
    return static_cast<std::byte*>(
        __cvta_shared_to_generic(tiles_ + static_cast<uint32_t>(i % kStages * 2 * kTileBytes)));
  }
  __device__ std::byte* Values(int i) const { return Keys(i) + kTileBytes; }
  __device__ void WaitFor(int i) const { Wait(full_ + i % kStages * kWarps, i / kStages % 2); }

  // Asks for the first pages.
  __device__ void Start(const AttentionArgs& args, int kv_head) {
    int32_t first[kStages];
#pragma unroll
    for (int i = 0; i < kStages; ++i) first[i] = i < count_ ? pages_[i] : 0;
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      if (i < count_) Fetch(args, kv_head, i, first[i]);
    }
    if (kStages < count_) next_ = pages_[kStages];
  }
  // The warp has done with page i, whose place goes to the next one.
  __device__ void Release(const AttentionArgs& args, int kv_head, int i) {
    __syncwarp();  // All lanes have read their operands.
    const int next = i + kStages;
    if (next >= count_) return;
    Fetch(args, kv_head, next, next_);
    if (next + 1 < count_) next_ = pages_[next + 1];
  }

 private:
  __device__ void Fetch(const AttentionArgs& args, int kv_head, int i, int32_t page) const {
    if (threadIdx.x % kWarp != 0) return;
    std::byte* const base = const_cast<std::byte*>(args.kv_base);
    uint64_t* const full = full_ + i % kStages * kWarps;
    const int own = static_cast<int>(threadIdx.x) / kWarp * kSliceBytes;
    const std::byte* const from[] = {
        reinterpret_cast<const std::byte*>(KeysOfPage<T>(base, page, kv_head, kDim)),
        reinterpret_cast<const std::byte*>(
            ValuesOfPage<T>(base, page, kv_head, kDim, args.kv_heads))};
    ArriveExpecting(full, 2 * kPanels * kSliceBytes);
#pragma unroll
    for (int n = 0; n < 2 * kPanels; ++n) {
      const int at = n / 2 * kPanelBytes + own;
      BulkCopy((n % 2 == 0 ? Keys(i) : Values(i)) + at, from[n % 2] + at, kSliceBytes, full);
    }
  }

  const int32_t* const pages_;
  const int count_;
  const uint32_t tiles_;  // A shared address.
  uint64_t* const full_;
  int32_t next_ = 0;
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
