// The first kernel of the chunked recurrence (recurrent_chunks.cuh): a block takes one chunk of one
// head, from the layer's inputs (convolution, activation, rotation, norms, gates) to W, U, Q, K and
// P. Eight warps: four make A and its inverse while the others make P, Q and K; then four make U
// and four W.
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/panel_tiles.cuh"
#include "kernels/cuda/recurrent_chunks.cuh"
#include "kernels/cuda/recurrent_launch.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kHalf = kWarps / 2 * kWarp;  // Threads of four warps.
constexpr int kRowsPerWarp = kChunkTokens / kWarps;
constexpr int kRowsAtOnce = 4;                    // Whose inputs are in registers together.
constexpr int kInverseStride = kChunkTokens + 4;  // Of A, in floats: rows a multiple of 16 bytes.
constexpr float kLog2E = 1.4426950408889634f;

template <int kPad>
struct ChunkShared {
  static constexpr int kPanels = kPad / 64;
  static constexpr int kTile = kPanels * 64 * kPanelRowBytes;
  static constexpr int kInverse = kChunkTokens * kInverseStride * 4;
  static constexpr int kBytes = 3 * kTile + kInverse + kChunkTokens * kChunkTokens * 4 + 1024;
};

// Chunk-wide numbers.
struct ChunkGates {
  float log2_decay[kChunkTokens];  // G, in units of log2.
  float beta[kChunkTokens];
};

// Running sums of g, by one warp; rows behind the chunk have g = 0 and beta = 0.
__device__ void SumGates(const RecurrentMixerArgs& args, const MixerSegment& segment,
                         const Chunk& chunk, int head, ChunkGates* gates) {
  const int lane = threadIdx.x % kWarp;
  float before = 0;
  for (int first = 0; first < kChunkTokens; first += kWarp) {
    const int r = first + lane;
    float2 own = {0, 0};
    if (r < chunk.count) {
      own = LogGatesOf(args, RowOf(args.row_list, segment, chunk.begin + r), head);
    }
    float sum = own.x * kLog2E;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const float other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    gates->log2_decay[r] = before + sum;
    gates->beta[r] = own.y;
    before += __shfl_sync(~0u, sum, kWarp - 1);
  }
}

// The warp's rows of a part of the mixer's steps 1 and 2. The lane has elements lane + 32 j.
template <int kPad, int kTaps>
struct Features {
  static constexpr int kElements = kPad / kWarp;
  static constexpr int kInputs = kRowsAtOnce + kTaps - 1;  // From those before the first row on.
  static_assert(kInputs <= kWarp);
  const RecurrentWork& work;
  const MixerSegment& segment;
  const Chunk& chunk;
  int head, part;
  int first;  // Row of the chunk.
  float x[kElements][kInputs];
  float weights[kElements][kTaps];

  __device__ static int Lane() { return threadIdx.x % kWarp; }
  __device__ int64_t Channel() const {
    return (static_cast<int64_t>(part) * work.args.shape.heads + head) * work.args.shape.head_dim;
  }

  // All loads go out before the first value is looked at.
  __device__ void Load() {
    const RecurrentMixerArgs& args = work.args;
    const int d = args.shape.head_dim, taps = args.shape.conv_taps, lane = Lane();
    const int64_t channel = Channel(), channels = int64_t{3} * args.shape.heads * d;
    int64_t own_row = 0;
    const int r = chunk.begin + first + lane - (kTaps - 1);
    if (r >= 0 && r < segment.row_count) {
      own_row = RowOf(args.row_list, segment, r) * args.qkv_stride + channel;
    }
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
      const int in_chunk = first + i - (kTaps - 1);
      const float* const from = args.qkv + __shfl_sync(~0u, own_row, i) + lane;
      const bool is_there = chunk.begin + in_chunk >= 0 && in_chunk < chunk.count;
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        x[j][i] = is_there && lane + j * kWarp < d ? from[j * kWarp] : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const int e = lane + j * kWarp;
        weights[j][t] = t < taps && e < d ? args.conv[t * channels + channel + e] : 0;
      }
    }
    if (taps == 0) return;
#pragma unroll
    for (int i = 0; i < kInputs; ++i) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) x[j][i] = RoundToCache(args.shape.dtype, x[j][i]);
    }
    LoadHistory();
  }

  // What came before the segment is in its slot.
  __device__ void LoadHistory() {
    const SlotShape& shape = work.args.shape;
    const int before = chunk.begin + first - (kTaps - 1), places = shape.conv_taps - 1;
    if (places <= 0 || before >= 0) return;
    const int64_t channels = int64_t{3} * shape.heads * shape.head_dim;
    const std::byte* const conv =
        InSlot<const std::byte>(work.args.slot_base, segment.src_slot, work.layout.conv_offset);
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) {
      const int position = segment.position + before + i;
      if (before + i >= 0 || position < segment.position - places || position < 0) continue;
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const int e = Lane() + j * kWarp;
        if (e >= shape.head_dim) continue;
        x[j][i] = CacheWord::Load(shape.dtype, conv, position % places * channels + Channel() + e)
                      .Value(shape.dtype);
      }
    }
  }

  // Row i of the warp's, convolved and, of q and k, through the activation.
  __device__ void Convolve(int i, float (&y)[kElements]) const {
    const int taps = work.args.shape.conv_taps;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      y[j] = x[j][i + kTaps - 1];
      if (taps > 0) {
        y[j] = 0;
#pragma unroll
        for (int t = 0; t < kTaps; ++t) {
          if (t < taps) y[j] = fmaf(weights[j][t], x[j][i + kTaps - 1 - t], y[j]);
        }
      }
      if (part < 2 && work.args.silu) y[j] = __fdividef(y[j], 1.0f + __expf(-y[j]));
    }
  }

  // Rotation and norm of a row of q or k.
  __device__ void Finish(int i, float (&y)[kElements], float* scratch) const {
    const RecurrentMixerArgs& args = work.args;
    const int d = args.shape.head_dim, r = first + i;
    if (args.cos != nullptr && r < chunk.count) {
#pragma unroll
      for (int j = 0; j < kElements; ++j) scratch[Lane() + j * kWarp] = y[j];
      __syncwarp();
      const int64_t row = RowOf(args.row_list, segment, chunk.begin + r);
      const RowRotation rotation =
          RotationOfRow(args.cos, args.sin, args.rotary_dim, args.interleaved, row);
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        const int e = Lane() + j * kWarp;
        if (e < d) y[j] = RotatedElement(scratch, e, rotation);
      }
      __syncwarp();  // The scratch may be written again.
    }
    if (args.qk_norm == QkNorm::kNone) return;
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kElements; ++j) squares = fmaf(y[j], y[j], squares);
    squares = WarpSum(squares);
    const float factor = args.qk_norm == QkNorm::kL2
                             ? rsqrtf(squares + 1e-6f)
                             : rsqrtf(squares / static_cast<float>(d) + args.eps);
#pragma unroll
    for (int j = 0; j < kElements; ++j) y[j] *= factor;
  }
};

// A part of the chunk, rounded into its tile; rows behind the chunk become zeros.
template <int kPad, int kTaps>
__device__ void MakeFeatures(const RecurrentWork& work, const MixerSegment& segment,
                             const Chunk& chunk, int head, int part, uint32_t tile,
                             float* scratch) {
  using Own = Features<kPad, kTaps>;
#pragma unroll 1
  for (int done = 0; done < kRowsPerWarp; done += kRowsAtOnce) {
    const int first = static_cast<int>(threadIdx.x) / kWarp * kRowsPerWarp + done;
    Own own = {work, segment, chunk, head, part, first, {}, {}};
    own.Load();
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int r = first + i;
      float y[Own::kElements];
      own.Convolve(i, y);
      if (part < 2) own.Finish(i, y, scratch);
#pragma unroll
      for (int j = 0; j < Own::kElements; ++j) {
        const int e = Own::Lane() + j * kWarp;
        const uint32_t at = PieceAddress(tile, r, e / 8) + e % 8 * 2;
        const __nv_bfloat16 value = __float2bfloat16_rn(r < chunk.count ? y[j] : 0.0f);
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(at), "h"(__bfloat16_as_ushort(value))
                     : "memory");
      }
    }
  }
}

// 16 rows of X Y^T from tiles of kPad columns, up to the diagonal: columns 8 n from `row` on stay.
template <int kPad>
__device__ void MultiplyRows(float (&c)[8][4], uint32_t x, uint32_t y, int row) {
#pragma unroll
  for (int k = 0; k < kPad / 16; ++k) {
    uint32_t a[4];
    LoadRowsA(a, x, row, k);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      if (n * 16 > row) continue;
      uint32_t b[4];
      LoadRowsB(b, y, n * 16, k);
      Mma<__nv_bfloat16>(c[2 * n], a, b[0], b[1]);
      Mma<__nv_bfloat16>(c[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Column `c` of T = (I + A)^-1 by forward substitution in f32, the safest of the ways: eight rows
// at a time, first what the rows above them give, then the triangle among themselves. `a` is A
// transposed, so that the eight factors of a row lie together; `t` is [row][column].
__device__ void SolveColumn(const float* a, int c, float* t) {
  constexpr int kBlock = 8;
  for (int first = 0; first < kChunkTokens; first += kBlock) {
    float x[kBlock];
#pragma unroll
    for (int i = 0; i < kBlock; ++i) x[i] = first + i == c ? 1.0f : 0.0f;
#pragma unroll 4
    for (int j = 0; j < first; ++j) {
      float factors[kBlock];
      *reinterpret_cast<float4*>(factors) =
          *reinterpret_cast<const float4*>(a + j * kInverseStride + first);
      *reinterpret_cast<float4*>(factors + 4) =
          *reinterpret_cast<const float4*>(a + j * kInverseStride + first + 4);
      const float above = t[j * kChunkTokens + c];
#pragma unroll
      for (int i = 0; i < kBlock; ++i) x[i] = fmaf(-factors[i], above, x[i]);
    }
#pragma unroll
    for (int j = 0; j < kBlock; ++j) {
      t[(first + j) * kChunkTokens + c] = x[j];
#pragma unroll
      for (int i = j + 1; i < kBlock; ++i) {
        x[i] = fmaf(-a[(first + j) * kInverseStride + first + i], x[j], x[i]);
      }
    }
  }
}

// T with a factor for each column, rounded into a tile, by all threads of the block.
template <typename F>
__device__ void StoreT(const float* t, uint32_t tile, F&& factor_of_column) {
  for (int i = threadIdx.x; i < kChunkTokens * kChunkTokens / 8; i += kWarps * kWarp) {
    const int row = i / 8, piece = i % 8;
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int c = piece * 8 + j * 2;
      words[j] = Pack<__nv_bfloat16>(t[row * kChunkTokens + c] * factor_of_column(c),
                                     t[row * kChunkTokens + c + 1] * factor_of_column(c + 1));
    }
    StorePiece(PieceAddress(tile, row, piece), uint4{words[0], words[1], words[2], words[3]});
  }
}

// The chunk of this block.
struct ChunkWork {
  int head, count;
  int64_t place;  // Of the chunk's first token.
};

// A of the first four warps, transposed into `a`.
template <int kPad>
__device__ void MakeA(uint32_t k, const ChunkGates& gates, float* a) {
  const int lane = threadIdx.x % kWarp, row = static_cast<int>(threadIdx.x) / kWarp * 16;
  float c[8][4] = {};
  MultiplyRows<kPad>(c, k, k, row);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int i = row + lane / 4 + x / 2 * 8, j = n * 8 + lane % 4 * 2 + x % 2;
      float value = 0;
      if (j < i) value = gates.beta[i] * exp2f(gates.log2_decay[i] - gates.log2_decay[j]) * c[n][x];
      a[j * kInverseStride + i] = value;
    }
  }
}

// P of the last four warps, into the workspace.
template <int kPad>
__device__ void MakeP(const ChunkParts& parts, const ChunkWork& chunk, uint32_t q, uint32_t k,
                      const ChunkGates& gates, float scale) {
  const int lane = threadIdx.x % kWarp, row = (static_cast<int>(threadIdx.x) / kWarp - 4) * 16;
  float c[8][4] = {};
  MultiplyRows<kPad>(c, q, k, row);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = row + lane / 4 + half * 8, j = n * 8 + lane % 4 * 2;
      if (i >= chunk.count) continue;
      float value[2] = {};
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        if (j + x > i) continue;
        value[x] =
            scale * exp2f(gates.log2_decay[i] - gates.log2_decay[j + x]) * c[n][half * 2 + x];
      }
      __nv_bfloat16* const to = parts.p + parts.Row(chunk.head, 1, 0, chunk.place + i);
      *reinterpret_cast<uint32_t*>(to + (n ^ (i % 8)) * 8 + lane % 4 * 2) =
          Pack<__nv_bfloat16>(value[0], value[1]);
    }
  }
}

// Rows of a tile times a factor each, into the workspace, by the last four warps.
template <int kPad, typename F>
__device__ void StoreScaled(const ChunkParts& parts, const ChunkWork& chunk, uint32_t tile,
                            __nv_bfloat16* to, F&& factor_of_row) {
  constexpr int kPanels = kPad / 64, kPieces = kPad / 8;
  for (int i = static_cast<int>(threadIdx.x) - kHalf; i < chunk.count * kPieces; i += kHalf) {
    const int r = i / kPieces, piece = i % kPieces;
    uint4 x = LoadPiece(PieceAddress(tile, r, piece));
    const float factor = factor_of_row(r);
    uint32_t* const words = &x.x;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      __nv_bfloat162 pair;
      memcpy(&pair, words + j, 4);
      words[j] = Pack<__nv_bfloat16>(__low2float(pair) * factor, __high2float(pair) * factor);
    }
    __nv_bfloat16* const row = to + parts.Row(chunk.head, kPanels, piece / 8, chunk.place + r);
    *reinterpret_cast<uint4*>(row + ((piece % 8) ^ (r % 8)) * 8) = x;
  }
}

// 16 rows of T X, T lower triangular, into the workspace.
template <int kPad>
__device__ void MultiplyT(const ChunkParts& parts, const ChunkWork& chunk, uint32_t t, uint32_t x,
                          int row, __nv_bfloat16* to) {
  constexpr int kPanels = kPad / 64;
  const int lane = threadIdx.x % kWarp;
  float c[kPad / 8][4] = {};
#pragma unroll 1  // More loads ahead would spill.
  for (int k = 0; k < 4; ++k) {
    if (k * 16 > row) continue;
    uint32_t a[4];
    LoadRowsA(a, t, row, k);
#pragma unroll
    for (int n = 0; n < kPad / 16; ++n) {
      uint32_t b[4];
      LoadColumnsB(b, x, k * 16, n);
      Mma<__nv_bfloat16>(c[2 * n], a, b[0], b[1]);
      Mma<__nv_bfloat16>(c[2 * n + 1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < kPad / 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + lane / 4 + half * 8;
      if (r >= chunk.count) continue;
      __nv_bfloat16* const at = to + parts.Row(chunk.head, kPanels, n / 8, chunk.place + r);
      *reinterpret_cast<uint32_t*>(at + ((n % 8) ^ (r % 8)) * 8 + lane % 4 * 2) =
          Pack<__nv_bfloat16>(c[n][half * 2], c[n][half * 2 + 1]);
    }
  }
}

// Block (chunk, head, segment).
template <int kPad, int kTaps>
__global__ void __launch_bounds__(kWarps* kWarp, kTaps == 4 ? 2 : 1)
    ChunksKernel(const RecurrentWork work, const ChunkParts parts) {
  using Shared = ChunkShared<kPad>;
  extern __shared__ std::byte shared[];
  __shared__ ChunkGates gates;
  __shared__ float scratch[kWarps][kPad];
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.z];
  if (segment.row_count < 2 || IsPadding(segment)) return;
  const Chunk at = ChunkAt(segment, args.emits.data(), static_cast<int>(blockIdx.x));
  if (at.count <= 0) return;
  const ChunkWork chunk = {static_cast<int>(blockIdx.y), at.count, segment.row_begin + at.begin};
  const uint32_t start = (SharedAddress(shared) + 1023) / 1024 * 1024;
  const uint32_t q = start, k = q + Shared::kTile, v = k + Shared::kTile;
  const uint32_t inverse = v + Shared::kTile;
  float* const a = reinterpret_cast<float*>(shared + (inverse - SharedAddress(shared)));
  float* const t = a + Shared::kInverse / 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (warp == 0) SumGates(args, segment, at, chunk.head, &gates);
#pragma unroll 1
  for (int part = 0; part < 3; ++part) {
    MakeFeatures<kPad, kTaps>(work, segment, at, chunk.head, part, q + part * Shared::kTile,
                              scratch[warp]);
  }
  __syncthreads();  // The tiles and gates are there.
  const bool is_delta = args.kind == RecurrentKind::kGatedDelta;
  const float end = gates.log2_decay[kChunkTokens - 1];
  if (warp >= 4) {
    MakeP<kPad>(parts, chunk, q, k, gates, args.scale);
    StoreScaled<kPad>(parts, chunk, q, parts.q,
                      [&](int r) { return args.scale * exp2f(gates.log2_decay[r]); });
    StoreScaled<kPad>(parts, chunk, k, parts.k,
                      [&](int r) { return exp2f(end - gates.log2_decay[r]); });
    if (!is_delta) {
      StoreScaled<kPad>(parts, chunk, v, parts.u, [](int) { return 1.0f; });
    }
    if (threadIdx.x == kHalf) parts.decay[chunk.head * parts.places + chunk.place] = exp2f(end);
  } else if (is_delta) {
    MakeA<kPad>(k, gates, a);
    // A is there for the warps that invert it.
    asm volatile("bar.sync 1, %0;" ::"n"(kHalf) : "memory");
    if (warp < 2) SolveColumn(a, static_cast<int>(threadIdx.x), t);
  }
  if (!is_delta) return;
  __syncthreads();  // T is there, and nobody reads A any more: rounded T comes in its place.
  const uint32_t t_values = inverse, t_keys = inverse + 64 * kPanelRowBytes;
  StoreT(t, t_values, [&](int c) { return gates.beta[c]; });
  StoreT(t, t_keys, [&](int c) { return gates.beta[c] * exp2f(gates.log2_decay[c]); });
  __syncthreads();  // Both forms of it are there.
  if (warp < 4) {
    MultiplyT<kPad>(parts, chunk, t_values, v, warp * 16, parts.u);
  } else {
    MultiplyT<kPad>(parts, chunk, t_keys, k, (warp - 4) * 16, parts.w);
  }
}

template <int kPad, int kTaps>
absl::Status Launch(const RecurrentWork& work, const ChunkParts& parts, cudaStream_t stream) {
  constexpr int kBytes = ChunkShared<kPad>::kBytes;
  static const cudaError_t kAllowed = cudaFuncSetAttribute(
      ChunksKernel<kPad, kTaps>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const RecurrentMixerArgs& args = work.args;
  // A segment has at most a chunk more for each of its emits.
  const int chunks =
      (args.rows_max + kChunkTokens - 1) / kChunkTokens + static_cast<int>(args.emits.size());
  const dim3 grid(static_cast<unsigned>(chunks), static_cast<unsigned>(args.shape.heads),
                  static_cast<unsigned>(args.segments.size()));
  ChunksKernel<kPad, kTaps><<<grid, kWarps * kWarp, kBytes, stream>>>(work, parts);
  return LaunchStatus("RecurrentMixer, chunks");
}

template <int kPad>
absl::Status LaunchOfTaps(const RecurrentWork& work, const ChunkParts& parts, cudaStream_t stream) {
  return work.args.shape.conv_taps <= 4 ? Launch<kPad, 4>(work, parts, stream)
                                        : Launch<kPad, kTapsMax>(work, parts, stream);
}

}  // namespace

absl::Status LaunchRecurrentChunks(const RecurrentWork& work, const ChunkParts& parts,
                                   void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  return PaddedDim(work.args.shape.head_dim) == 64 ? LaunchOfTaps<64>(work, parts, raw)
                                                   : LaunchOfTaps<128>(work, parts, raw);
}

}  // namespace morphserve::kernels::cuda
