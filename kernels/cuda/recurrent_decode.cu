// Decode rows of the recurrent mixer, one launch a layer: a block takes one row and one head. The
// loads of the state, which are nearly all of its bytes, go out before anything else and arrive
// while the convolution, the norms and the gates are done.
// Floor: 2 * SlotStateBytes a row over the copy bandwidth. Share on an H200: 0.63 at 64 x 32 heads
// x 128 (tests/bench/gpu/RESULTS.md).
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_launch.h"
#include "kernels/cuda/recurrent_steps.cuh"

namespace morphserve::kernels::cuda {
namespace {

template <int kPad>
struct DecodeShape {
  static constexpr int kWarps = kPad == 64 ? 4 : 8;
  static constexpr int kRowsPerWarp = kPad / kWarps;
  static constexpr int kRows = kPad == 256 ? 4 : 8;  // Of a group of lanes at once.
  static constexpr int kBatch = kRows * StateRows<kPad>::kRowsAtOnce;
  static constexpr int kBatches = kRowsPerWarp / kBatch;
  static constexpr int kAhead = kPad == 256 ? 1 : kBatches;  // Batches whose loads go out first.
};

// Rows `first` + group + i * groups of a head's state.
template <int kPad, bool kExact>
struct StateBatch {
  using Rows = StateRows<kPad>;
  using Shape = DecodeShape<kPad>;
  float4 s[Shape::kRows][Rows::kVectors];

  __device__ static int RowAt(int first, int i) { return first + i + Rows::Group() * Shape::kRows; }
  __device__ void Load(const float* state, int first, int d) {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
      const int row = RowAt(first, i);
#pragma unroll
      for (int v = 0; v < Rows::kVectors; ++v) {
        s[i][v] = state == nullptr || row >= d
                      ? float4{}
                      : LoadKeysOf<kExact>(state + static_cast<int64_t>(row) * d, Rows::Key(v), d);
      }
    }
  }
  __device__ void Store(float* state, int first, int d) const {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
      const int row = RowAt(first, i);
      if (row >= d) continue;
#pragma unroll
      for (int v = 0; v < Rows::kVectors; ++v) {
        StoreKeysOf<kExact>(state + static_cast<int64_t>(row) * d, Rows::Key(v), d, s[i][v]);
      }
    }
  }
  __device__ bool IsAllFinite() const {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
      for (int v = 0; v < Rows::kVectors; ++v) finite = finite && IsFinite(s[i][v]);
    }
    return finite;
  }
};

// A thread's channels of the row: element e of q, k or v of the head. All of their loads go out
// before the first is used; on an idle device they are most of the time that a row takes.
template <int kPad, int kTaps>
struct Channels {
  static constexpr int kThreads = DecodeShape<kPad>::kWarps * kWarp;
  static constexpr int kApart = kThreads / kPad;            // Parts that are done side by side.
  static constexpr int kParts = (3 + kApart - 1) / kApart;  // Of a thread.
  float x[kParts];
  uint32_t before[kParts][kTaps];  // Words with those of the row t before; 0 is not used.
  float weights[kParts][kTaps];

  __device__ static int Element() { return threadIdx.x % kPad; }
  __device__ static int Part(int i) { return static_cast<int>(threadIdx.x) / kPad + i * kApart; }
  __device__ static bool Has(int i, int d) { return Part(i) < 3 && Element() < d; }
  __device__ static int64_t Channel(const SlotShape& shape, int head, int i) {
    return (static_cast<int64_t>(Part(i)) * shape.heads + head) * shape.head_dim + Element();
  }

  // Element of the slot that remembers channel `c` of the row t before.
  __device__ static int64_t At(const SlotShape& shape, const MixerSegment& segment, int t,
                               int64_t c) {
    const int64_t channels = int64_t{3} * shape.heads * shape.head_dim;
    return (segment.position - t) % (shape.conv_taps - 1) * channels + c;
  }

  __device__ void Load(const RecurrentWork& work, const MixerSegment& segment, int64_t row,
                       int head) {
    const SlotShape& shape = work.args.shape;
    const int64_t channels = int64_t{3} * shape.heads * shape.head_dim;
    const std::byte* const slot =
        InSlot<const std::byte>(work.args.slot_base, segment.src_slot, work.layout.conv_offset);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int64_t c = Channel(shape, head, i);
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        weights[i][t] = 0;
        before[i][t] = 0;
        const bool has = Has(i, shape.head_dim);
        if (t == 0) x[i] = has ? work.args.qkv[row * work.args.qkv_stride + c] : 0.0f;
        if (!has || t >= shape.conv_taps) continue;
        weights[i][t] = work.args.conv[t * channels + c];
        if (t == 0 || segment.position < t) continue;
        before[i][t] = CacheWord::Load(shape.dtype, slot, At(shape, segment, t, c)).bits;
      }
    }
  }

  // Step 1 and the activation, into x [3][kPad], zeros behind d; and what the convolution
  // remembers.
  __device__ void Convolve(const RecurrentWork& work, const MixerSegment& segment, int head,
                           float (*to)[kPad]) {
    const SlotShape& shape = work.args.shape;
    const int64_t channels = int64_t{3} * shape.heads * shape.head_dim;
    const bool in_place =
        segment.src_slot == segment.dst_slot && segment.position > 0 && segment.emit_count == 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (Part(i) >= 3) continue;
      float y = x[i];
      if (shape.conv_taps > 0) {
        x[i] = RoundToCache(shape.dtype, x[i]);
        y = weights[i][0] * x[i];
#pragma unroll
        for (int t = 1; t < kTaps; ++t) {
          if (t < shape.conv_taps && segment.position >= t) {
            const int64_t at = At(shape, segment, t, Channel(shape, head, i));
            const CacheWord word = {before[i][t], CacheWord::Shift(shape.dtype, at)};
            y = fmaf(weights[i][t], word.Value(shape.dtype), y);
          }
        }
      }
      if (Part(i) < 2 && work.args.silu) y *= Sigmoid(y);
      to[Part(i)][Element()] = y;
      if (shape.conv_taps <= 1 || !Has(i, shape.head_dim)) continue;
      const int64_t c = Channel(shape, head, i);
      if (in_place) {
        StoreCache(
            shape.dtype,
            InSlot<std::byte>(work.args.slot_base, segment.dst_slot, work.layout.conv_offset),
            segment.position % (shape.conv_taps - 1) * channels + c, x[i]);
      } else {
        RememberInputs(shape.dtype, work, segment, c);
      }
    }
  }
};

// Factor of step 2's norm, from the sum of squares.
__device__ float NormFactor(const RecurrentMixerArgs& args, float squares) {
  if (args.qk_norm == QkNorm::kL2) return 1.0f / sqrtf(squares + 1e-6f);
  if (args.qk_norm == QkNorm::kRms) {
    return 1.0f / sqrtf(squares / static_cast<float>(args.shape.head_dim) + args.eps);
  }
  return 1.0f;
}

// The lane's parts of q and k, normed, and their product.
template <int kPad>
struct QueryAndKey {
  using Rows = StateRows<kPad>;
  float4 q[Rows::kVectors], k[Rows::kVectors];
  float kq = 0;

  __device__ QueryAndKey(const RecurrentMixerArgs& args, const float (*x)[kPad]) {
    float qq = 0, kk = 0;
#pragma unroll
    for (int v = 0; v < Rows::kVectors; ++v) {
      q[v] = *reinterpret_cast<const float4*>(&x[0][Rows::Key(v)]);
      k[v] = *reinterpret_cast<const float4*>(&x[1][Rows::Key(v)]);
      qq = Dot(q[v], q[v], qq);
      kk = Dot(k[v], k[v], kk);
    }
    const float of_q = NormFactor(args, Sum(qq)), of_k = NormFactor(args, Sum(kk));
#pragma unroll
    for (int v = 0; v < Rows::kVectors; ++v) {
      q[v] = {q[v].x * of_q, q[v].y * of_q, q[v].z * of_q, q[v].w * of_q};
      k[v] = {k[v].x * of_k, k[v].y * of_k, k[v].z * of_k, k[v].w * of_k};
      kq = Dot(k[v], q[v], kq);
    }
    kq = Sum(kq);
  }
  __device__ static float Sum(float value) {
    float one[1] = {value};
    return SumTransposed<1, Rows::kLanes>(one);
  }
};

template <int kPad, bool kExact, int kTaps>
__global__ void __launch_bounds__(DecodeShape<kPad>::kWarps* kWarp, kPad == 64             ? 3
                                                                    : kExact && kTaps == 4 ? 2
                                                                                           : 1)
    RecurrentDecodeKernel(const RecurrentWork work) {
  using Shape = DecodeShape<kPad>;
  using Rows = StateRows<kPad>;
  using Step = TokenStep<kPad, Shape::kRows>;
  __shared__ alignas(16) float x[3][kPad];
  __shared__ float outputs[kPad];
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  if (segment.row_count != 1) return;
  const int head = static_cast<int>(blockIdx.x), d = args.shape.head_dim;
  const int64_t row = RowOf(args.row_list, segment, 0);
  float* const out = args.out + row * args.out_stride + static_cast<int64_t>(head) * d;
  if (IsPadding(segment)) {
    for (int i = threadIdx.x; i < d && row >= 0; i += blockDim.x) out[i] = 0;
    return;
  }
  const int64_t of_head = static_cast<int64_t>(head) * d * d;
  const float* const source =
      segment.position == 0 ? nullptr
                            : InSlot<const float>(args.slot_base, segment.src_slot, 0) + of_head;
  Channels<kPad, kTaps> channels;
  channels.Load(work, segment, row, head);
  const int warp = threadIdx.x / kWarp, first = warp * Shape::kRowsPerWarp;
  StateBatch<kPad, kExact> batches[Shape::kAhead];
#pragma unroll
  for (int b = 0; b < Shape::kAhead; ++b) batches[b].Load(source, first + b * Shape::kBatch, d);
  const float2 gates = GatesOf(args, row, head);
  channels.Convolve(work, segment, head, x);
  __syncthreads();  // The convolved row is there.
  if (args.cos != nullptr) {
    if (warp < 2) {
      RotateHead(x[warp], d,
                 RotationOfRow(args.cos, args.sin, args.rotary_dim, args.interleaved, row));
    }
    __syncthreads();  // And rotated.
  }
  const QueryAndKey<kPad> qk(args, x);
  bool finite = true;
#pragma unroll
  for (int b = 0; b < Shape::kBatches; ++b) {
    const int at = first + b * Shape::kBatch;
    StateBatch<kPad, kExact>& batch = batches[b % Shape::kAhead];
    if (b >= Shape::kAhead) batch.Load(source, at, d);
    const int own = at + Step::OwnRow() + Rows::Group() * Shape::kRows;
    const float o = Step::Do(batch.s, qk.k, qk.q, qk.kq, x[2][own], gates,
                             args.kind == RecurrentKind::kGatedDelta);
    if (threadIdx.x % Step::kLanesPerRow == 0) outputs[own] = args.scale * o;
    for (int i = 0; i < SlotCopies(segment); ++i) {
      const SlotCopy copy = CopyOf(segment, args.emits.data(), i);
      batch.Store(InSlot<float>(args.slot_base, copy.slot, 0) + of_head, at, d);
    }
    finite = finite && batch.IsAllFinite();
  }
  __syncthreads();  // All of the head's outputs are there.
  if (args.per_head_norm) {
    const float inverse =
        1.0f / sqrtf(SquaresOfHead(outputs, d) / static_cast<float>(d) + args.eps);
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
      const float y = Finished(args, row, static_cast<int64_t>(head) * d + i, outputs[i], inverse);
      finite = finite && isfinite(y);
      out[i] = y;
    }
  } else {
    for (int i = threadIdx.x; i < d; i += blockDim.x) out[i] = outputs[i];
  }
  if (!finite && args.nonfinite != nullptr) args.nonfinite[blockIdx.y] = 1;
}

template <int kPad, bool kExact, int kTaps>
absl::Status Launch(const RecurrentWork& work, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(work.args.shape.heads),
                  static_cast<unsigned>(work.args.segments.size()));
  RecurrentDecodeKernel<kPad, kExact, kTaps>
      <<<grid, DecodeShape<kPad>::kWarps * kWarp, 0, stream>>>(work);
  return LaunchStatus("RecurrentMixer, decode");
}

}  // namespace

absl::Status LaunchRecurrentDecode(const RecurrentWork& work, void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  return WithPaddedDim(work.args.shape.head_dim, [&](auto pad, auto exact) {
    constexpr int kPad = decltype(pad)::value;
    constexpr bool kExact = decltype(exact)::value;
    return work.args.shape.conv_taps <= 4 ? Launch<kPad, kExact, 4>(work, raw)
                                          : Launch<kPad, kExact, kTapsMax>(work, raw);
  });
}

}  // namespace morphserve::kernels::cuda
