// Attention of the window mixer's chunks where the ring has 16-bit elements: a block does 64 rows
// of a head over tiles of 64 positions. Keys and values are exact in the ring's type, so only
// queries and weights are split, into a rounded value and its rest: two products on the tensor core
// with f32 sums. A warp passes over 16 positions that none of its 16 rows sees, which changes no
// bit. Floor: 8 D (window + sinks) flops a row and head, and (window + 64) / 64 readings of keys
// and values.
#include "kernels/cuda/alignment.h"
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/panel_tiles.cuh"
#include "kernels/cuda/running_softmax.cuh"
#include "kernels/cuda/window_attend.cuh"
#include "kernels/cuda/window_launch.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kTilePositions = 64;
constexpr int kPieceElements = 8;  // Of 16 bytes.
constexpr int kGroup = 16;         // Positions of one step of a product.
static_assert(kTileRows == 64);    // Rows of a panel, as for keys and values.

template <int kDim>
constexpr int kTileBytes = kTilePositions* kDim * 2;

// Two tiles of queries, rounded values and rests, then keys and values.
template <int kDim>
constexpr int kSharedBytes = 4 * kTileBytes<kDim>;

struct EightFloats {
  float4 low, high;
};
__device__ inline EightFloats LoadFloats(const float* from) {
  return {*reinterpret_cast<const float4*>(from), *reinterpret_cast<const float4*>(from + 4)};
}
template <typename T>
__device__ inline uint4 Rounded(const EightFloats& x) {
  return {Pack<T>(x.low.x, x.low.y), Pack<T>(x.low.z, x.low.w), Pack<T>(x.high.x, x.high.y),
          Pack<T>(x.high.z, x.high.w)};
}

// Rows [first, last) of the segment, zeros behind, in both tiles.
template <typename T, int kDim>
__device__ inline void LoadQueries(const WindowMixerArgs& args, const MixerSegment& segment,
                                   int head, int first, int last, uint32_t tile, uint32_t rests) {
  constexpr int kPieces = kDim / kPieceElements;
#pragma unroll 4
  for (int i = threadIdx.x; i < kTileRows * kPieces; i += kTileThreads) {
    const int r = i / kPieces, piece = i % kPieces, column = piece * kPieceElements;
    EightFloats x = {};
    if (first + r < last && column < args.shape.head_dim) {
      x = LoadFloats(args.q + RowOf(args.row_list, segment, first + r) * args.q_stride +
                     int64_t{head} * args.shape.head_dim + column);
    }
    uint4 value, rest;
    value.x = PackWithRest<T>(x.low.x, x.low.y, &rest.x);
    value.y = PackWithRest<T>(x.low.z, x.low.w, &rest.y);
    value.z = PackWithRest<T>(x.high.x, x.high.y, &rest.z);
    value.w = PackWithRest<T>(x.high.z, x.high.w, &rest.w);
    StorePiece(PieceAddress(tile, r, piece), value);
    StorePiece(PieceAddress(rests, r, piece), rest);
  }
}

// The tiles of keys and of values, which lies behind, of 64 positions from `first` on: zeros for
// what no row of the block sees.
template <typename T, int kDim>
__device__ inline void LoadKeys(const WindowWork& work, const MixerSegment& segment, int kv_head,
                                const TileKeys<kTilePositions>& keys, int first, uint32_t tile) {
  constexpr int kPieces = kDim / kPieceElements, kBatch = 4;
  const WindowMixerArgs& args = work.args;
  const int d = args.shape.head_dim;
  const T* const ring[2] = {work.Keys<const T>(segment.src_slot, kv_head),
                            work.Values<const T>(segment.src_slot, kv_head)};
#pragma unroll 1
  for (int begin = 0; begin < 2 * kTilePositions * kPieces; begin += kBatch * kTileThreads) {
    // All loads of a batch go out before the first of them is used.
    EightFloats x[kBatch];
    uint32_t is_own = 0;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = begin + j * kTileThreads + static_cast<int>(threadIdx.x);
      const int which = i / (kTilePositions * kPieces),
                position = first + i / kPieces % kTilePositions;
      const int column = i % kPieces * kPieceElements;
      x[j] = {};
      if (!keys.Seen(position) || column >= d) continue;
      if (position < segment.position) {
        x[j].low = *reinterpret_cast<const float4*>(ring[which] +
                                                    int64_t{PlaceOf(args, position)} * d + column);
      } else {
        is_own |= 1u << j;
        const int64_t row = RowOf(args.row_list, segment, position - segment.position);
        x[j] =
            LoadFloats((which == 0 ? args.k + row * args.k_stride : args.v + row * args.v_stride) +
                       int64_t{kv_head} * d + column);
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int i = begin + j * kTileThreads + static_cast<int>(threadIdx.x);
      const int which = i / (kTilePositions * kPieces);
      const uint4 piece =
          (is_own >> j & 1) != 0 ? Rounded<T>(x[j]) : *reinterpret_cast<const uint4*>(&x[j].low);
      StorePiece(PieceAddress(tile + static_cast<uint32_t>(which * kTileBytes<kDim>),
                              i / kPieces % kTilePositions, i % kPieces),
                 piece);
    }
  }
}

// The groups of 16 positions of a tile that one of the warp's rows sees, a bit each.
__device__ inline uint32_t SeenGroups(const WindowMixerArgs& args, int own, int at) {
  uint32_t groups = 0;
#pragma unroll
  for (int g = 0; g < kTilePositions / kGroup; ++g) {
    const int begin = at + g * kGroup;
    const bool sees = begin < own + kGroup &&
                      (begin + kGroup - 1 > own - args.shape.window || begin < args.shape.sinks);
    groups |= (sees ? 1u : 0u) << g;
  }
  return groups;
}

// Scores of the warp's 16 rows; zeros for groups that are not seen.
template <typename T, int kDim>
__device__ inline void Scores(uint32_t tile, uint32_t rests, uint32_t keys, uint32_t groups,
                              float (&score)[kTilePositions / 8][4]) {
  const int row = static_cast<int>(threadIdx.x) / kWarp * kGroup;
#pragma unroll
  for (int n = 0; n < kTilePositions / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) score[n][i] = 0;
  }
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t value[4], rest[4];
    LoadRowsA(value, tile, row, k);
    LoadRowsA(rest, rests, row, k);
#pragma unroll
    for (int g = 0; g < kTilePositions / kGroup; ++g) {
      if ((groups >> g & 1) == 0) continue;
      uint32_t b[4];
      LoadRowsB(b, keys, g * kGroup, k);
      Mma<T>(score[2 * g], rest, b[0], b[1]);
      Mma<T>(score[2 * g + 1], rest, b[2], b[3]);
      Mma<T>(score[2 * g], value, b[0], b[1]);
      Mma<T>(score[2 * g + 1], value, b[2], b[3]);
    }
  }
}

// sums += weights times values.
template <typename T, int kDim>
__device__ inline void AddValues(const float (&weight)[kTilePositions / 8][4], uint32_t values,
                                 uint32_t groups, float (&sums)[kDim / 8][4]) {
#pragma unroll
  for (int g = 0; g < kTilePositions / kGroup; ++g) {
    if ((groups >> g & 1) == 0) continue;
    uint32_t value[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const pair = weight[2 * g + i / 2] + i % 2 * 2;
      value[i] = PackWithRest<T>(pair[0], pair[1], &rest[i]);
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      uint32_t b[4];
      LoadColumnsB(b, values, g * kGroup, n);
      Mma<T>(sums[2 * n], rest, b[0], b[1]);
      Mma<T>(sums[2 * n + 1], rest, b[2], b[3]);
      Mma<T>(sums[2 * n], value, b[0], b[1]);
      Mma<T>(sums[2 * n + 1], value, b[2], b[3]);
    }
  }
}

// Blocks of an SM: a short prompt's are to run in one wave.
template <int kDim>
constexpr int kBlocksOfSm = kDim == 64    ? 4
                            : kDim == 128 ? 2
                                          : 1;

// Block (64 rows, head, segment).
template <typename T, int kDim>
__global__ void __launch_bounds__(kTileThreads, kBlocksOfSm<kDim>)
    AttendHalfKernel(const WindowWork work) {
  extern __shared__ __align__(1024) std::byte shared[];
  const WindowMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.z];
  const int first = static_cast<int>(blockIdx.x) * kTileRows, head = static_cast<int>(blockIdx.y);
  if (segment.row_count < 2 || first >= segment.row_count) return;
  const int last = min(first + kTileRows, segment.row_count);
  if (IsPadding(segment)) return ZeroRows(args, segment, first, last, head);
  const uint32_t q = SharedAddress(shared), rests = q + kTileBytes<kDim>;
  const uint32_t k = rests + kTileBytes<kDim>, v = k + kTileBytes<kDim>;
  LoadQueries<T, kDim>(args, segment, head, first, last, q, rests);
  const TileKeys<kTilePositions> keys(args, segment, first, last);
  const int kv_head = head / (args.heads / args.shape.kv_heads);
  const int own = segment.position + first;
  const int warp_own = own + static_cast<int>(threadIdx.x) / kWarp * kGroup;
  float sums[kDim / 8][4] = {};
  RunningSoftmax softmax;
  for (int i = 0; i < keys.tiles; ++i) {
    const int at = keys.Tile(i);
    __syncthreads();  // The tiles before are read.
    LoadKeys<T, kDim>(work, segment, kv_head, keys, at, k);
    __syncthreads();  // The tiles are whole.
    const uint32_t groups = SeenGroups(args, warp_own, at);
    if (groups == 0) continue;
    float score[kTilePositions / 8][4], kept[2];
    Scores<T, kDim>(q, rests, k, groups, score);
#pragma unroll
    for (int n = 0; n < kTilePositions / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool sees = Sees(args, own + ElementRow(j), at + ElementColumn(n, j));
        score[n][j] = sees ? score[n][j] * args.scale : -INFINITY;
      }
    }
    softmax.Add(score, kept);
    if (__any_sync(~0u, kept[0] != 1.0f || kept[1] != 1.0f)) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[n][j] *= kept[j / 2];
      }
    }
    AddValues<T, kDim>(score, v, groups, sums);
  }
  StoreRows<kDim>(args, segment, first, last, head, softmax.total, sums);
}

template <typename T, int kDim>
absl::Status Launch(const WindowWork& work, cudaStream_t stream) {
  static const cudaError_t kAllowed = cudaFuncSetAttribute(
      AttendHalfKernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<kDim>);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  AttendHalfKernel<T, kDim>
      <<<AttendGrid(work.args), kTileThreads, kSharedBytes<kDim>, stream>>>(work);
  return LaunchStatus("WindowMixer, attention");
}

template <typename T>
absl::Status LaunchOfType(const WindowWork& work, cudaStream_t stream) {
  const int32_t d = work.args.shape.head_dim;
  if (d <= 64) return Launch<T, 64>(work, stream);
  if (d <= 128) return Launch<T, 128>(work, stream);
  return Launch<T, 256>(work, stream);
}

}  // namespace

bool HasHalfForm(const WindowWork& work) {
  const WindowMixerArgs& args = work.args;
  return args.shape.dtype != KvDType::kF32 && args.shape.head_dim % kPieceElements == 0 &&
         work.ring_offset % 16 == 0 && HasWholeFours(args.slot_base, 0) &&
         HasWholeFours(args.q, args.q_stride) && HasWholeFours(args.k, args.k_stride) &&
         HasWholeFours(args.v, args.v_stride);
}

absl::Status LaunchWindowAttendHalf(const WindowWork& work, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  return work.args.shape.dtype == KvDType::kF16 ? LaunchOfType<__half>(work, cuda_stream)
                                                : LaunchOfType<__nv_bfloat16>(work, cuda_stream);
}

}  // namespace morphserve::kernels::cuda
