// The weights of a GEMV block: how tiles are shared out among clusters, the order in which a warp
// takes its units of them, and the ring in shared memory through which they come.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/gemv_call.h"
#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

// The part that a tile of the call belongs to; `tile` becomes one of the part. `parts` are the
// call's, wherever they are.
__device__ inline int32_t PartOf(const GemvCall& call, const GemvPart* parts, int32_t* tile) {
  if (call.swiglu) {
    const int32_t part = *tile % 2;
    *tile /= 2;
    return part;
  }
  int32_t part = 0;
  while (*tile >= parts[part].tile_end) ++part;
  if (part > 0) *tile -= parts[part - 1].tile_end;
  return part;
}

// The tiles of a cluster: as even as whole tiles, or pairs of them, allow.
struct GemvShare {
  __device__ GemvShare(const GemvCall& call, int32_t cluster) {
    const int32_t granule = call.swiglu ? 2 : 1;
    const int64_t pieces = call.tiles / granule;
    first = static_cast<int32_t>(cluster * pieces / call.clusters) * granule;
    count = static_cast<int32_t>((cluster + 1) * pieces / call.clusters) * granule - first;
  }
  int32_t first, count;
};

// Where a lane reads rows g and g + 8 of a tile.
struct GemvSource {
  const std::byte *low, *high;
};

// Walks the groups of steps of a warp's units, in order: every kGemvWarps'th of the block's, which
// count up the pieces of a tile, then tiles.
template <WeightFormat kFormat>
class GemvCursor {
 public:
  __device__ GemvCursor(const GemvCall& call, const GemvShare& share, int32_t slice_begin,
                        int32_t slice_count)
      : tile_(static_cast<int32_t>(threadIdx.x / kWarp) / call.k_split),
        piece_(static_cast<int32_t>(threadIdx.x / kWarp) % call.k_split),
        tiles_(share.count),
        first_tile_(share.first),
        slice_begin_(slice_begin),
        slice_count_(slice_count) {
    Enter(call);
  }

  __device__ bool there() const { return tile_ < tiles_; }
  __device__ int32_t tile() const { return tile_; }  // Of the share.
  __device__ int32_t piece() const { return piece_; }
  __device__ int32_t at() const { return at_; }  // Step of the slice.

  // To the next group; true when it is of the same unit.
  __device__ bool Advance(const GemvCall& call) {
    at_ += call.group_steps;
    if (at_ < end_) return true;
    tile_ += call.tile_stride;
    piece_ += call.piece_stride;
    if (piece_ >= call.k_split) {
      piece_ -= call.k_split;
      ++tile_;
    }
    Enter(call);
    return false;
  }

  // Steps of the group; none of a unit past the slice.
  __device__ int32_t count(const GemvCall& call) const {
    return max(0, min(call.group_steps, end_ - at_));
  }
  // The group's first step of the whole row.
  __device__ int32_t step() const { return slice_begin_ + at_; }

  // Where the lane's pieces of the unit's tile begin. Outputs past n read the last row and are not
  // stored.
  __device__ GemvSource Source(const GemvCall& call) const {
    int32_t tile = first_tile_ + tile_;
    const GemvPart& part = call.parts[PartOf(call, call.parts, &tile)];
    const int lane = threadIdx.x % kWarp;
    if constexpr (IsTiled(kFormat)) {
      const std::byte* const data = part.data + tile * TileBytes(kFormat, call.k) + lane * 16;
      return {data, data + kTileBytes / 2};
    }
    const int64_t low = min(tile * kTileOutputs + lane / 4, part.n - 1);
    const int64_t high = min(tile * kTileOutputs + lane / 4 + 8, part.n - 1);
    const std::byte* const data = part.data + lane % 4 * 16;
    return {data + low * RowBytes(kFormat, call.k), data + high * RowBytes(kFormat, call.k)};
  }

 private:
  // A unit without steps is passed over: its sums are zero, and nobody asks for them.
  __device__ void Enter(const GemvCall& call) {
    at_ = piece_ * call.unit_steps;
    end_ = min(at_ + call.unit_steps, slice_count_);
  }

  int32_t tile_, piece_, tiles_, first_tile_, slice_begin_, slice_count_;
  int32_t at_ = 0, end_ = 0;
};

// The weights on their way to a warp: stages in shared memory, each a group of steps, that copies
// past the registers fill in the order of the warp's units. Loads to registers need as much of the
// first-level cache, of which the kernels before may have left little.
template <WeightFormat kFormat>
class GemvRing {
 public:
  // Asks for the first stages.
  __device__ GemvRing(const GemvCall& call, const GemvCursor<kFormat>& first, std::byte* memory)
      : loading_(first), memory_(memory) {
    if (loading_.there()) source_ = loading_.Source(call);
#pragma unroll 1
    for (int stage = 0; stage < GemvStages(kFormat); ++stage) Fetch(call, stage);
  }

  // The oldest stage, when it is there.
  __device__ const std::byte* Front() const {
    WaitCopies<GemvStages(kFormat) - 1>();
    // Integers and floats are read by the lane that copied them, scales by others too.
    if constexpr (IsTiled(kFormat)) __syncwarp();
    return memory_ + front_ * GemvStageBytes(kFormat);
  }
  // It is read: the next group takes its place.
  __device__ void Pop(const GemvCall& call) {
    if constexpr (IsTiled(kFormat)) __syncwarp();
    Fetch(call, front_);
    front_ = front_ + 1 == GemvStages(kFormat) ? 0 : front_ + 1;
  }

 private:
  __device__ void Fetch(const GemvCall& call, int stage) {
    if (loading_.there()) {
      const int64_t at =
          int64_t{loading_.step()} * (IsTiled(kFormat) ? TileStepBytes(kFormat) : kStepBytes);
      const int32_t count = loading_.count(call);
      const uint32_t to = SharedAddress(memory_ + stage * GemvStageBytes(kFormat));
#pragma unroll
      for (int u = 0; u < kStageSteps; ++u) {
        if (u < count) CopyStep(at, u, to + u * TileStepBytes(kFormat));
      }
      if (!loading_.Advance(call) && loading_.there()) source_ = loading_.Source(call);
    }
    CommitCopies();
  }
  __device__ void CopyStep(int64_t at, int u, uint32_t to) const {
    constexpr int32_t kBytes = IsTiled(kFormat) ? TileStepBytes(kFormat) : kStepBytes;
    constexpr int32_t kScaleBytes = TileStepBytes(kFormat) - kTileBytes;
    const uint32_t lane = threadIdx.x % kWarp;
    CopyStream(to + lane * 16, source_.low + at + u * kBytes);
    CopyStream(to + lane * 16 + kTileBytes / 2, source_.high + at + u * kBytes);
    if constexpr (kScaleBytes > 0) {
      if (lane >= kScaleBytes / 16) return;
      CopyStream(to + lane * 16 + kTileBytes, source_.low + at + u * kBytes + kTileBytes);
    }
  }

  GemvCursor<kFormat> loading_;
  GemvSource source_ = {};
  std::byte* const memory_;
  int front_ = 0;
};

}  // namespace morphserve::kernels::cuda
