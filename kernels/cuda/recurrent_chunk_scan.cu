// The second kernel of the chunked recurrence (recurrent_chunks.cuh): a block walks the chunks of
// one head with some columns of its state, which stay in registers. Chunks come by bulk copies, the
// next one while this one is worked on. Four warps share 64 columns (or 32, where whole heads would
// leave the device idle: a column's arithmetic is the same): each has 16 tokens of a chunk, and a
// quarter of the state's keys.
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/panel_tiles.cuh"
#include "kernels/cuda/recurrent_chunks.cuh"
#include "kernels/cuda/recurrent_launch.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kStages = 2;
constexpr int kPanelBytes = 64 * kPanelRowBytes;

template <int kPad, int kColumns>
struct ScanShape {
  static constexpr int kGroupColumns = kColumns < 64 ? kColumns : 64;
  static constexpr int kGroups = kColumns / kGroupColumns;
  static constexpr int kThreads = kGroups * 4 * kWarp;
  static constexpr int kPanels = kPad / 64;     // Of keys.
  static constexpr int kValuePanels = kGroups;  // Of this block's columns.
  static constexpr int kTile = kPanels * kPanelBytes;
  // A stage: W, Q, K, P, U.
  static constexpr int kStage = 3 * kTile + kPanelBytes + kValuePanels * kPanelBytes;
  static constexpr int kState = kValuePanels * kPad * kPanelRowBytes;
  static constexpr int kNew = kValuePanels * kPanelBytes;
  static constexpr int kBytes = kStages * kStage + kState + kNew + 1024;
  static constexpr int kBlocks = kPad / kColumns;  // Of a head.
  static constexpr int kKeyTiles = kPad / 64;      // Of 16 keys, of a warp.
  static constexpr int kColumnTiles = kGroupColumns / 8;
};

struct StageTiles {
  uint32_t w, q, k, p, u;
};

template <typename Shape>
__device__ StageTiles TilesOf(uint32_t start, int stage) {
  const uint32_t w = start + stage * Shape::kStage;
  return {w, w + Shape::kTile, w + 2 * Shape::kTile, w + 3 * Shape::kTile,
          w + 3 * Shape::kTile + kPanelBytes};
}

// Starts the copies of a chunk, by one thread.
template <typename Shape>
__device__ void Fetch(const ChunkParts& parts, const StageTiles& to, int head, int value_panel,
                      int64_t place, int count, bool is_delta, uint64_t* barrier) {
  const uint32_t bytes = count * kPanelRowBytes;
  ArriveExpecting(barrier, bytes * ((is_delta ? 3 : 2) * Shape::kPanels + 1 + Shape::kValuePanels));
  for (int panel = 0; panel < Shape::kPanels; ++panel) {
    const int64_t row = parts.Row(head, Shape::kPanels, panel, place);
    if (is_delta) BulkCopyTo(to.w + panel * kPanelBytes, parts.w + row, bytes, barrier);
    BulkCopyTo(to.q + panel * kPanelBytes, parts.q + row, bytes, barrier);
    BulkCopyTo(to.k + panel * kPanelBytes, parts.k + row, bytes, barrier);
  }
  BulkCopyTo(to.p, parts.p + parts.Row(head, 1, 0, place), bytes, barrier);
  for (int panel = 0; panel < Shape::kValuePanels; ++panel) {
    BulkCopyTo(to.u + panel * kPanelBytes,
               parts.u + parts.Row(head, Shape::kPanels, value_panel + panel, place), bytes,
               barrier);
  }
}

// A warp's part of the state: keys [key, key + 16 kKeyTiles), columns of its group.
template <int kPad, int kColumns>
struct StatePart {
  using Shape = ScanShape<kPad, kColumns>;
  float s[Shape::kKeyTiles][Shape::kColumnTiles][4];

  // f(the element of the state [value][key], the register).
  template <typename F>
  __device__ void ForEach(int key, int column, int d, F&& f) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int m = 0; m < Shape::kKeyTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kColumnTiles; ++n) {
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          const int k = key + m * 16 + lane / 4 + x / 2 * 8;
          const int v = column + n * 8 + lane % 4 * 2 + x % 2;
          if (k < d && v < d) f(static_cast<int64_t>(v) * d + k, s[m][n][x]);
        }
      }
    }
  }

  // Rounded into the tile [key][column of the block].
  __device__ void ToTile(uint32_t tile, int key, int piece) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int m = 0; m < Shape::kKeyTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kColumnTiles; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t at =
              PieceAddress<kPad>(tile, key + m * 16 + lane / 4 + half * 8, piece + n) +
              lane % 4 * 4;
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(at),
                       "r"(Pack<__nv_bfloat16>(s[m][n][half * 2], s[m][n][half * 2 + 1]))
                       : "memory");
        }
      }
    }
  }

  // S <- decay S + K^T Vn.
  __device__ void Advance(float decay, uint32_t keys, uint32_t news, int key, int piece) {
#pragma unroll
    for (int m = 0; m < Shape::kKeyTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kColumnTiles; ++n) {
#pragma unroll
        for (int x = 0; x < 4; ++x) s[m][n][x] *= decay;
      }
    }
#pragma unroll 1
    for (int k = 0; k < kChunkTokens / 16; ++k) {
      uint32_t a[Shape::kKeyTiles][4];
#pragma unroll
      for (int m = 0; m < Shape::kKeyTiles; ++m) LoadColumnsA(a[m], keys, key / 16 + m, k);
#pragma unroll
      for (int n = 0; n < Shape::kColumnTiles / 2; ++n) {
        uint32_t b[4];
        LoadColumnsB(b, news, k * 16, piece / 2 + n);
#pragma unroll
        for (int m = 0; m < Shape::kKeyTiles; ++m) {
          Mma<__nv_bfloat16>(s[m][2 * n], a[m], b[0], b[1]);
          Mma<__nv_bfloat16>(s[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
};

// A warp's 16 tokens of a chunk.
template <int kPad, int kColumns>
struct TokenPart {
  using Shape = ScanShape<kPad, kColumns>;
  float o[Shape::kColumnTiles][4] = {};

  // What the state gives: Q S, and the new values U - W S, rounded into their tile.
  __device__ void FromState(const StageTiles& t, uint32_t state, uint32_t news, int token,
                            int piece, bool is_delta) {
    float ws[Shape::kColumnTiles][4] = {};
#pragma unroll 2  // More loads ahead would spill.
    for (int k = 0; k < kPad / 16; ++k) {
      uint32_t w[4], q[4];
      if (is_delta) LoadRowsA(w, t.w, token, k);
      LoadRowsA(q, t.q, token, k);
#pragma unroll
      for (int n = 0; n < Shape::kColumnTiles / 2; ++n) {
        uint32_t b[4];
        LoadColumnsB<kPad>(b, state, k * 16, piece / 2 + n);
        if (is_delta) {
          Mma<__nv_bfloat16>(ws[2 * n], w, b[0], b[1]);
          Mma<__nv_bfloat16>(ws[2 * n + 1], w, b[2], b[3]);
        }
        Mma<__nv_bfloat16>(o[2 * n], q, b[0], b[1]);
        Mma<__nv_bfloat16>(o[2 * n + 1], q, b[2], b[3]);
      }
    }
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int n = 0; n < Shape::kColumnTiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = token + lane / 4 + half * 8;
        const uint32_t offset = PieceAddress(0, row, piece + n) + lane % 4 * 4;
        uint32_t u;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(u) : "r"(t.u + offset) : "memory");
        __nv_bfloat162 pair;
        memcpy(&pair, &u, 4);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(news + offset),
                     "r"(Pack<__nv_bfloat16>(__low2float(pair) - ws[n][half * 2],
                                             __high2float(pair) - ws[n][half * 2 + 1]))
                     : "memory");
      }
    }
  }

  // O += P Vn.
  __device__ void FromChunk(const StageTiles& t, uint32_t news, int token, int piece) {
#pragma unroll
    for (int k = 0; k < kChunkTokens / 16; ++k) {
      if (k * 16 > token) continue;
      uint32_t a[4];
      LoadRowsA(a, t.p, token, k);
#pragma unroll
      for (int n = 0; n < Shape::kColumnTiles / 2; ++n) {
        uint32_t b[4];
        LoadColumnsB(b, news, k * 16, piece / 2 + n);
        Mma<__nv_bfloat16>(o[2 * n], a, b[0], b[1]);
        Mma<__nv_bfloat16>(o[2 * n + 1], a, b[2], b[3]);
      }
    }
  }

  // Into the rows of the call, before the norm.
  __device__ void Store(const RecurrentMixerArgs& args, const MixerSegment& segment,
                        const Chunk& chunk, int token, int head, int column) const {
    const int lane = threadIdx.x % kWarp, d = args.shape.head_dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = token + lane / 4 + half * 8;
      if (r >= chunk.count) continue;
      float* const to = args.out +
                        RowOf(args.row_list, segment, chunk.begin + r) * args.out_stride +
                        static_cast<int64_t>(head) * d;
#pragma unroll
      for (int n = 0; n < Shape::kColumnTiles; ++n) {
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          const int v = column + n * 8 + lane % 4 * 2 + x;
          if (v < d) to[v] = o[n][half * 2 + x];
        }
      }
    }
  }
};

// Block (head and part of its columns, segment).
template <int kPad, int kColumns>
__global__ void __launch_bounds__(ScanShape<kPad, kColumns>::kThreads, 1)
    ChunkScanKernel(const RecurrentWork work, const ChunkParts parts) {
  using Shape = ScanShape<kPad, kColumns>;
  extern __shared__ std::byte shared[];
  __shared__ uint64_t full[kStages];
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  if (segment.row_count < 2 || IsPadding(segment)) return;
  const int head = static_cast<int>(blockIdx.x) / Shape::kBlocks, d = args.shape.head_dim;
  const int first_column = static_cast<int>(blockIdx.x) % Shape::kBlocks * kColumns;
  if (first_column >= d) return;
  const bool is_delta = args.kind == RecurrentKind::kGatedDelta;
  const uint32_t start = (SharedAddress(shared) + 1023) / 1024 * 1024;
  const uint32_t state_tile = start + kStages * Shape::kStage;
  const uint32_t new_tile = state_tile + Shape::kState;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, group = warp / 4;
  // Where a block has less than a panel, its tiles are whole panels all the same.
  const int panel = first_column / 64, piece = first_column % 64 / 8 + group * 8;
  const int token = warp % 4 * 16, key = warp % 4 * (kPad / 4);
  const int column = first_column + group * Shape::kGroupColumns;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) InitBarrier(full + i, 1);
    FenceBarrierInit();
  }
  StatePart<kPad, kColumns> state = {};
  const int64_t of_head = static_cast<int64_t>(head) * d * d;
  if (segment.position > 0) {
    const float* const from = InSlot<const float>(args.slot_base, segment.src_slot, 0) + of_head;
    state.ForEach(key, column, d, [&](int64_t i, float& x) { x = from[i]; });
  }
  __syncthreads();  // The barriers are ready.
  ChunkWalk walk(segment, args.emits.data());
  Chunk chunk = walk.Next();
  const auto fetch = [&](const Chunk& c, int i) {
    Fetch<Shape>(parts, TilesOf<Shape>(start, i % kStages), head, panel,
                 segment.row_begin + c.begin, c.count, is_delta, full + i % kStages);
  };
  if (threadIdx.x == 0) fetch(chunk, 0);
  int emit = 0;
  for (int i = 0; chunk.count > 0; ++i) {
    const Chunk next = walk.Next();
    if (threadIdx.x == 0 && next.count > 0) fetch(next, i + 1);
    const StageTiles tiles = TilesOf<Shape>(start, i % kStages);
    const float decay = parts.decay[head * parts.places + segment.row_begin + chunk.begin];
    state.ToTile(state_tile, key, piece);
    Wait(full + i % kStages, i / kStages % 2);
    if (chunk.count < kChunkTokens) {
      const int t = static_cast<int>(threadIdx.x);
      for (const uint32_t tile : {tiles.w, tiles.q, tiles.k}) {
        ZeroTileRows(tile, Shape::kPanels, chunk.count, t, Shape::kThreads);
      }
      ZeroTileRows(tiles.p, 1, chunk.count, t, Shape::kThreads);
      ZeroTileRows(tiles.u, Shape::kValuePanels, chunk.count, t, Shape::kThreads);
      FenceSharedProxies();  // A later copy may come to the same place.
    }
    __syncthreads();  // The state's tile, and zeros behind a short chunk, are there.
    TokenPart<kPad, kColumns> tokens;
    tokens.FromState(tiles, state_tile, new_tile, token, piece, is_delta);
    __syncthreads();  // The new values are there.
    tokens.FromChunk(tiles, new_tile, token, piece);
    state.Advance(decay, tiles.k, new_tile, key, piece);
    tokens.Store(args, segment, chunk, token, head, column);
    for (; emit < SlotCopies(segment); ++emit) {
      const SlotCopy copy = CopyOf(segment, args.emits.data(), emit);
      if (copy.rows != chunk.begin + chunk.count) break;
      float* const to = InSlot<float>(args.slot_base, copy.slot, 0) + of_head;
      state.ForEach(key, column, d, [&](int64_t at, float& x) { to[at] = x; });
    }
    __syncthreads();  // This stage, the state's tile and the new values are used up.
    chunk = next;
  }
  bool finite = true;
  state.ForEach(key, column, d, [&](int64_t, float& x) { finite = finite && isfinite(x); });
  if (!finite && args.nonfinite != nullptr) args.nonfinite[blockIdx.y] = 1;
}

template <int kPad, int kColumns>
absl::Status Launch(const RecurrentWork& work, const ChunkParts& parts, cudaStream_t stream) {
  using Shape = ScanShape<kPad, kColumns>;
  static const cudaError_t kAllowed = cudaFuncSetAttribute(
      ChunkScanKernel<kPad, kColumns>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const dim3 grid(static_cast<unsigned>(work.args.shape.heads * Shape::kBlocks),
                  static_cast<unsigned>(work.args.segments.size()));
  ChunkScanKernel<kPad, kColumns><<<grid, Shape::kThreads, Shape::kBytes, stream>>>(work, parts);
  return LaunchStatus("RecurrentMixer, chunk scan");
}

}  // namespace

absl::Status LaunchRecurrentChunkScan(const RecurrentWork& work, const ChunkParts& parts,
                                      void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  const SlotShape& shape = work.args.shape;
  // Whole heads read each chunk once; where they are few, more blocks are worth more.
  const bool is_wide = static_cast<int64_t>(work.args.segments.size()) * shape.heads >= 96;
  if (PaddedDim(shape.head_dim) == 64) {
    return is_wide ? Launch<64, 64>(work, parts, raw) : Launch<64, 32>(work, parts, raw);
  }
  return is_wide ? Launch<128, 128>(work, parts, raw) : Launch<128, 32>(work, parts, raw);
}

}  // namespace morphserve::kernels::cuda
