// Attention of the window mixer's chunks: a block does 64 rows of a head over the sinks and the
// positions that any of them sees, 32 at a time, with running maxima and sums (Dao et al. 2022).
// Keys and values come from the ring where they are older than the call, else from its own rows.
// This is the form for any type and head; window_attend_half.cu takes most heads of 16-bit rings.
// Products: tf32_tiles.cuh, which keep the accuracy of f32. Floor: 4 D (window + sinks) flops a row
// and head, three times over for the halves, and (window + 64) / 64 readings of keys and values.
#include "kernels/cuda/error.h"
#include "kernels/cuda/running_softmax.cuh"
#include "kernels/cuda/tf32_tiles.cuh"
#include "kernels/cuda/window_attend.cuh"
#include "kernels/cuda/window_launch.h"

namespace morphserve::kernels::cuda {
namespace {

// A tile of queries: rows [first, last) of the segment, zeros behind.
template <int kDim>
__device__ inline void LoadQueries(const WindowMixerArgs& args, const MixerSegment& segment,
                                   int head, int first, int last, float* tile) {
  const int d = args.shape.head_dim, lane = threadIdx.x % kWarp;
#pragma unroll 4
  for (int r = threadIdx.x / kWarp; r < kTileRows; r += kTileWarps) {
    const bool inside = first + r < last;
    const int64_t row = inside ? RowOf(args.row_list, segment, first + r) : 0;
    const float* const from = args.q + row * args.q_stride + int64_t{head} * d;
#pragma unroll
    for (int column = lane; column < kDim; column += kWarp) {
      tile[r * TileStride<kDim>() + column] = inside && column < d ? from[column] : 0.0f;
    }
  }
}

// Tiles of the keys and values of 32 positions from `first` on, zeros for what no row sees; values
// as the cache type rounds them.
template <typename T, int kDim>
__device__ inline void LoadKeys(const WindowWork& work, const MixerSegment& segment, int kv_head,
                                const TileKeys<kTileColumns>& keys, int first, float* k, float* v) {
  const WindowMixerArgs& args = work.args;
  const int d = args.shape.head_dim, lane = threadIdx.x % kWarp;
  const T* const ring_keys = work.Keys<const T>(segment.src_slot, kv_head);
  const T* const ring_values = work.Values<const T>(segment.src_slot, kv_head);
#pragma unroll 4
  for (int j = threadIdx.x / kWarp; j < kTileColumns; j += kTileWarps) {
    const int position = first + j;
    const bool inside = keys.Seen(position), is_old = position < segment.position;
    const int64_t place = int64_t{PlaceOf(args, position)} * d;
    const int64_t own =
        inside && !is_old ? RowOf(args.row_list, segment, position - segment.position) : 0;
    const float* const own_key = args.k + own * args.k_stride + int64_t{kv_head} * d;
    const float* const own_value = args.v + own * args.v_stride + int64_t{kv_head} * d;
#pragma unroll
    for (int column = lane; column < kDim; column += kWarp) {
      float key = 0, value = 0;
      if (inside && column < d) {
        key = is_old ? ToFloat(ring_keys[place + column]) : own_key[column];
        value = is_old ? ToFloat(ring_values[place + column])
                       : ToFloat(FromFloat<T>(own_value[column]));
      }
      k[j * TileStride<kDim>() + column] = key;
      v[j * TileStride<kDim>() + column] = value;
    }
  }
}

// Block (64 rows, head, segment).
template <typename T, int kDim>
__global__ void __launch_bounds__(kTileThreads) AttendKernel(const WindowWork work) {
  extern __shared__ float shared[];
  const WindowMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.z];
  const int first = static_cast<int>(blockIdx.x) * kTileRows, head = static_cast<int>(blockIdx.y);
  if (segment.row_count < 2 || first >= segment.row_count) return;
  const int last = min(first + kTileRows, segment.row_count);
  if (IsPadding(segment)) {
    ZeroRows(args, segment, first, last, head);
    return;
  }
  float* const q = shared;
  float* const k = q + kTileRows * TileStride<kDim>();
  float* const v = k + kTileColumns * TileStride<kDim>();
  LoadQueries<kDim>(args, segment, head, first, last, q);
  const TileKeys<kTileColumns> keys(args, segment, first, last);
  const int kv_head = head / (args.heads / args.shape.kv_heads);
  float sums[kDim / 8][4] = {};
  RunningSoftmax softmax;
  for (int tile = 0; tile < keys.tiles; ++tile) {
    const int at = keys.Tile(tile);
    __syncthreads();  // The tiles before are read.
    LoadKeys<T, kDim>(work, segment, kv_head, keys, at, k, v);
    __syncthreads();  // The tiles are whole.
    const auto sees = [&](int row, int column) {
      return Sees(args, segment.position + first + row, at + column);
    };
    AddKeys<kDim>(q, k, v, args.scale, sees, &softmax, sums);
  }
  StoreRows<kDim>(args, segment, first, last, head, softmax.total, sums);
}

template <typename T, int kDim>
absl::Status Launch(const WindowWork& work, cudaStream_t stream) {
  static const cudaError_t kAllowed =
      cudaFuncSetAttribute(AttendKernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           AttentionTileBytes<kDim>());
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  AttendKernel<T, kDim>
      <<<AttendGrid(work.args), kTileThreads, AttentionTileBytes<kDim>(), stream>>>(work);
  return LaunchStatus("WindowMixer, attention");
}

}  // namespace

absl::Status LaunchWindowAttend(const WindowWork& work, void* stream) {
  if (HasHalfForm(work)) return LaunchWindowAttendHalf(work, stream);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  absl::Status status;
  WithSlotType(work.args.shape.dtype, [&](auto type) {
    using T = decltype(type);
    const int32_t d = work.args.shape.head_dim;
    status = d <= 64    ? Launch<T, 64>(work, cuda_stream)
             : d <= 128 ? Launch<T, 128>(work, cuda_stream)
                        : Launch<T, 256>(work, cuda_stream);
  });
  return status;
}

}  // namespace morphserve::kernels::cuda
