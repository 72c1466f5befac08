// The recurrence of chunks, token by token: a block takes some rows of the state of one head, which
// stay in registers from the first row of the segment to the last; tokens come in tiles through
// shared memory, the next one while this one is worked on. The arithmetic of a token is that of
// decode, bit for bit.
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_launch.h"
#include "kernels/cuda/recurrent_steps.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTileTokens = 16;

template <int kPad>
struct ScanShape {
  static constexpr int kRows = kPad == 256 ? 4 : kPad == 128 ? 8 : 4;  // Of a group of lanes.
  static constexpr int kRowsPerWarp = kRows * StateRows<kPad>::kRowsAtOnce;
  static constexpr int kRowsPerBlock = kWarps * kRowsPerWarp;
  static constexpr int kBlocks = kPad / kRowsPerBlock;  // Of a head.
};

template <int kPad>
struct TokenTile {
  float q[kTileTokens][kPad];
  float k[kTileTokens][kPad];
  float v[kTileTokens][ScanShape<kPad>::kRowsPerBlock];
  float2 gates[kTileTokens];
};

__device__ void CopyAsync(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ void CopyAsync8(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

// Starts the copy of tokens [first, first + count) of the segment, as one group.
template <int kPad>
__device__ void FetchTile(const RecurrentWork& work, int64_t place, int head, int value, int count,
                          TokenTile<kPad>* tile) {
  using Shape = ScanShape<kPad>;
  const int64_t part = work.args.shape.heads * work.places * kPad;
  const float* const q = work.features + (head * work.places + place) * kPad;
  for (int i = threadIdx.x; i < count * kPad / 4; i += blockDim.x) {
    CopyAsync(&tile->q[0][i * 4], q + i * 4);
    CopyAsync(&tile->k[0][i * 4], q + part + i * 4);
  }
  constexpr int kPieces = Shape::kRowsPerBlock / 4;
  for (int i = threadIdx.x; i < count * kPieces; i += blockDim.x) {
    const int token = i / kPieces, e = i % kPieces * 4;
    CopyAsync(&tile->v[token][e], q + 2 * part + token * kPad + value + e);
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    CopyAsync8(&tile->gates[i], work.gates + head * work.places + place + i);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// The warp's rows of the state, from the slot, to it, and through a token.
template <int kPad, bool kExact>
struct ScanState {
  using Rows = StateRows<kPad>;
  using Shape = ScanShape<kPad>;
  using Step = TokenStep<kPad, Shape::kRows>;
  float4 s[Shape::kRows][Rows::kVectors] = {};

  template <typename F>
  __device__ void ForEachVector(int first, int d, F&& f) {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
      const int row = first + i + Rows::Group() * Shape::kRows;
#pragma unroll
      for (int v = 0; v < Rows::kVectors; ++v) {
        if (row < d) f(static_cast<int64_t>(row) * d, Rows::Key(v), s[i][v]);
      }
    }
  }
  __device__ void Load(const float* state, int first, int d) {
    ForEachVector(first, d, [&](int64_t row, int key, float4& x) {
      x = LoadKeysOf<kExact>(state + row, key, d);
    });
  }
  __device__ void Store(float* state, int first, int d) {
    ForEachVector(first, d, [&](int64_t row, int key, float4& x) {
      StoreKeysOf<kExact>(state + row, key, d, x);
    });
  }
  __device__ bool IsAllFinite() {
    bool finite = true;
    ForEachVector(0, kPad, [&](int64_t, int, float4& x) { finite = finite && IsFinite(x); });
    return finite;
  }
  // Output of the lane's own row, before the scale.
  __device__ float Advance(const TokenTile<kPad>& tile, int token, int in_block, bool is_delta) {
    float4 k[Rows::kVectors], q[Rows::kVectors];
    float kq[1] = {0};
#pragma unroll
    for (int v = 0; v < Rows::kVectors; ++v) {
      q[v] = *reinterpret_cast<const float4*>(&tile.q[token][Rows::Key(v)]);
      k[v] = *reinterpret_cast<const float4*>(&tile.k[token][Rows::Key(v)]);
      kq[0] = Dot(k[v], q[v], kq[0]);
    }
    const float dot = SumTransposed<1, Rows::kLanes>(kq);
    return Step::Do(s, k, q, dot, tile.v[token][in_block], tile.gates[token], is_delta);
  }
};

// Block (head and part of its rows, segment).
template <int kPad, bool kExact>
__global__ void __launch_bounds__(kWarps* kWarp) ScanKernel(const RecurrentWork work) {
  using Shape = ScanShape<kPad>;
  using State = ScanState<kPad, kExact>;
  __shared__ alignas(16) TokenTile<kPad> tiles[kPad == 256 ? 1 : 2];
  constexpr int kTiles = kPad == 256 ? 1 : 2;
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  if (segment.row_count < 2 || IsPadding(segment)) return;
  const int head = static_cast<int>(blockIdx.x) / Shape::kBlocks, d = args.shape.head_dim;
  const int value = static_cast<int>(blockIdx.x) % Shape::kBlocks * Shape::kRowsPerBlock;
  if (value >= d) return;
  const int in_block = static_cast<int>(threadIdx.x) / kWarp * Shape::kRowsPerWarp +
                       State::Step::OwnRow() + State::Rows::Group() * Shape::kRows;
  const int first = value + static_cast<int>(threadIdx.x) / kWarp * Shape::kRowsPerWarp;
  const int64_t of_head = static_cast<int64_t>(head) * d * d;
  State state;
  if (segment.position > 0) {
    state.Load(InSlot<const float>(args.slot_base, segment.src_slot, 0) + of_head, first, d);
  }
  const auto fetch = [&](int token) {
    const int count = min(kTileTokens, segment.row_count - token);
    FetchTile<kPad>(work, segment.row_begin + token, head, value, count,
                    &tiles[token / kTileTokens % kTiles]);
  };
  int emit = 0;
  if (kTiles > 1) fetch(0);
  for (int token = 0; token < segment.row_count; ++token) {
    const int in_tile = token % kTileTokens;
    if (in_tile == 0) {
      if (kTiles == 1) fetch(token);
      asm volatile("cp.async.wait_all;" ::: "memory");
      __syncthreads();  // This tile is there, and nobody reads the one before it any more.
      if (kTiles > 1 && token + kTileTokens < segment.row_count) fetch(token + kTileTokens);
    }
    const float o = state.Advance(tiles[token / kTileTokens % kTiles], in_tile, in_block,
                                  args.kind == RecurrentKind::kGatedDelta);
    if (threadIdx.x % State::Step::kLanesPerRow == 0 && value + in_block < d) {
      args.out[RowOf(args.row_list, segment, token) * args.out_stride +
               static_cast<int64_t>(head) * d + value + in_block] = args.scale * o;
    }
    for (; emit < SlotCopies(segment); ++emit) {
      const SlotCopy copy = CopyOf(segment, args.emits.data(), emit);
      if (copy.rows != token + 1) break;
      state.Store(InSlot<float>(args.slot_base, copy.slot, 0) + of_head, first, d);
    }
    if (kTiles == 1 && in_tile == kTileTokens - 1) __syncthreads();  // The only tile is used up.
  }
  if (!state.IsAllFinite() && args.nonfinite != nullptr) args.nonfinite[blockIdx.y] = 1;
}

}  // namespace

absl::Status LaunchRecurrentScan(const RecurrentWork& work, void* stream) {
  return WithPaddedDim(work.args.shape.head_dim, [&](auto pad, auto exact) {
    constexpr int kPad = decltype(pad)::value;
    const dim3 grid(static_cast<unsigned>(work.args.shape.heads * ScanShape<kPad>::kBlocks),
                    static_cast<unsigned>(work.args.segments.size()));
    ScanKernel<kPad, decltype(exact)::value>
        <<<grid, kWarps * kWarp, 0, static_cast<cudaStream_t>(stream)>>>(work);
    return LaunchStatus("RecurrentMixer, scan");
  });
}

}  // namespace morphserve::kernels::cuda
