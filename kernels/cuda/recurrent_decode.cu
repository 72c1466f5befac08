// Decode rows of the recurrent mixer, one launch a layer: a block takes one row and one head.
// Each warp has rows of the state of its own, which bulk copies bring to shared memory, the
// first of them while the kernels ahead still run: three blocks of an SM keep enough bytes under
// way.
// Floor: 2 * SlotStateBytes a row over the copy bandwidth. Share on an H200, 2026-11-27: 0.88 at 64
// x 32 heads x 128; one row of 9 x 64 takes 3.7 us on an H100 (tests/bench/gpu/RESULTS.md).
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/launch.cuh"
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
  // Of a warp in shared memory: whole states up to 128 values.
  static constexpr int kStages = kBatches < 2 ? kBatches : 2;
  static constexpr int kBatchFloats = kBatch * kPad;
  static constexpr int kBytes = kWarps * kStages * kBatchFloats * static_cast<int>(sizeof(float));
};

// The warp's batches of the state on their way to shared memory, one after the other. Heads of
// other sizes than the kernel's are not staged: their rows come straight from the slot.
template <int kPad>
struct StagedRows {
  using Shape = DecodeShape<kPad>;
  float* buffer;  // [stage][row][kPad]
  uint64_t* full;

  // `rows`: the warp's of the state.
  __device__ void Begin(const float* rows) const {
    if (threadIdx.x % kWarp == 0) {
      for (int i = 0; i < Shape::kStages; ++i) InitBarrier(full + i, 1);
      FenceBarrierInit();
    }
    __syncwarp();  // The barriers are ready.
    for (int b = 0; b < Shape::kStages; ++b) Fetch(rows, b);
  }
  __device__ void Fetch(const float* rows, int batch) const {
    if (threadIdx.x % kWarp != 0) return;
    constexpr uint32_t kBytes = Shape::kBatchFloats * sizeof(float);
    ArriveExpecting(full + batch % Shape::kStages, kBytes);
    BulkCopy(At(batch), rows + batch * Shape::kBatchFloats, kBytes, full + batch % Shape::kStages);
  }
  __device__ float* At(int batch) const {
    return buffer + batch % Shape::kStages * Shape::kBatchFloats;
  }
  __device__ const float* Await(int batch) const {
    Wait(full + batch % Shape::kStages, batch / Shape::kStages % 2);
    return At(batch);
  }
};

// Rows `first` + group + i * groups of a head's state.
template <int kPad, bool kExact>
struct StateBatch {
  using Rows = StateRows<kPad>;
  using Shape = DecodeShape<kPad>;
  float4 s[Shape::kRows][Rows::kVectors];

  __device__ static int RowAt(int first, int i) { return first + i + Rows::Group() * Shape::kRows; }
  __device__ void LoadStaged(const float* rows) {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
      for (int v = 0; v < Rows::kVectors; ++v) {
        s[i][v] = *reinterpret_cast<const float4*>(rows + RowAt(0, i) * kPad + Rows::Key(v));
      }
    }
  }
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
  __device__ void StoreCopies(const RecurrentMixerArgs& args, const MixerSegment& segment,
                              int64_t of_head, int first) const {
    for (int i = 0; i < SlotCopies(segment); ++i) {
      const SlotCopy copy = CopyOf(segment, args.emits.data(), i);
      Store(InSlot<float>(args.slot_base, copy.slot, 0) + of_head, first, args.shape.head_dim);
    }
  }
  // As the function of one vector does.
  __device__ float SameIfFinite(float sum) const {
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
      for (int v = 0; v < Rows::kVectors; ++v) sum = cuda::SameIfFinite(s[i][v], sum);
    }
    return sum;
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

  // Element of the slot that remembers channel `c` of the row t before; `place` is that of the row.
  __device__ static int64_t At(const SlotShape& shape, int place, int t, int64_t c) {
    const int64_t channels = int64_t{3} * shape.heads * shape.head_dim;
    return (place < t ? place - t + shape.conv_taps - 1 : place - t) * channels + c;
  }
  __device__ static int Place(const SlotShape& shape, const MixerSegment& segment) {
    return shape.conv_taps > 1 ? segment.position % (shape.conv_taps - 1) : 0;
  }

  // What there is before x: the taps and what the slot remembers.
  __device__ void LoadBefore(const RecurrentWork& work, const MixerSegment& segment, int head) {
    const RecurrentMixerArgs& args = work.args;
    const SlotShape& shape = args.shape;
    const int place = Place(shape, segment);
    const std::byte* const slot =
        InSlot<const std::byte>(args.slot_base, segment.src_slot, work.layout.conv_offset);
    const int64_t channels = int64_t{3} * args.shape.heads * args.shape.head_dim;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const int64_t c = Channel(shape, head, i);
        const bool has = Has(i, shape.head_dim) && t < shape.conv_taps;
        weights[i][t] = has ? args.conv[t * channels + c] : 0.0f;
        before[i][t] = 0;
        if (t == 0 || !has || IsPadding(segment) || segment.position < t) continue;
        before[i][t] = CacheWord::Load(shape.dtype, slot, At(shape, place, t, c)).bits;
      }
    }
  }
  __device__ void Load(const RecurrentMixerArgs& args, int64_t row, int head) {
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const int64_t c = Channel(args.shape, head, i);
      x[i] = Has(i, args.shape.head_dim) ? args.qkv[row * args.qkv_stride + c] : 0.0f;
    }
  }

  // Step 1 and the activation, into x [3][kPad], zeros behind d; and what the convolution
  // remembers.
  __device__ void Convolve(const RecurrentWork& work, const MixerSegment& segment, int head,
                           float (*to)[kPad]) {
    const SlotShape& shape = work.args.shape;
    const int64_t channels = int64_t{3} * shape.heads * shape.head_dim;
    const int place = Place(shape, segment);
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
            const int64_t at = At(shape, place, t, Channel(shape, head, i));
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
            place * channels + c, x[i]);
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

// Blocks of an SM for which registers are shared out.
template <int kPad, bool kExact, int kTaps>
constexpr int DecodeBlocks() {
  if (kPad == 64) return kTaps == 4 ? 5 : 4;
  if (kPad == 256) return kExact && kTaps == 4 ? 2 : 1;
  return kExact && kTaps == 4 ? 3 : 1;
}

// What the output's norm and gate need of an element: there before the output is.
struct OutputElement {
  float weight = 0, z = 0;

  __device__ float Finished(const RecurrentMixerArgs& args, float o, float inverse) const {
    const float gate = args.output_gate == OutputGate::kSilu ? z * Sigmoid(z) : Sigmoid(z);
    return o * inverse * weight * gate;
  }
};

// The head's outputs, normed and gated where the norm is the head's own; whether they are finite.
__device__ __forceinline__ bool StoreOutputs(const RecurrentMixerArgs& args, const float* outputs,
                                             const OutputElement& of_thread, float* out) {
  const int d = args.shape.head_dim, thread = static_cast<int>(threadIdx.x);
  float inverse = 1;
  if (args.per_head_norm) {
    inverse = 1.0f / sqrtf(SquaresOfHead(outputs, d) / static_cast<float>(d) + args.eps);
  }
  if (thread >= d) return true;
  float y = outputs[thread];
  if (args.per_head_norm) y = of_thread.Finished(args, y, inverse);
  out[thread] = y;
  return isfinite(y);
}

// The state of a row's head; null: it is empty, or nobody reads it.
__device__ __forceinline__ const float* SourceOf(const RecurrentMixerArgs& args,
                                                 const MixerSegment& segment, int64_t of_head) {
  if (segment.row_count != 1 || IsPadding(segment) || segment.position == 0) return nullptr;
  return InSlot<const float>(args.slot_base, segment.src_slot, 0) + of_head;
}

template <int kPad, bool kExact, int kTaps>
__global__ void __launch_bounds__(DecodeShape<kPad>::kWarps* kWarp,
                                  DecodeBlocks<kPad, kExact, kTaps>())
    RecurrentDecodeKernel(const RecurrentWork work) {
  using Shape = DecodeShape<kPad>;
  using Rows = StateRows<kPad>;
  using Step = TokenStep<kPad, Shape::kRows>;
  extern __shared__ std::byte staged[];
  __shared__ alignas(16) float x[3][kPad];
  __shared__ float outputs[kPad];
  __shared__ uint64_t full[Shape::kWarps][Shape::kStages];
  LetNextStart();
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  const int head = static_cast<int>(blockIdx.x), d = args.shape.head_dim;
  const int warp = threadIdx.x / kWarp, first = warp * Shape::kRowsPerWarp;
  const int thread = static_cast<int>(threadIdx.x);
  const bool is_row = segment.row_count == 1;
  const int64_t row = is_row ? RowOf(args.row_list, segment, 0) : -1;
  const int64_t of_head = static_cast<int64_t>(head) * d * d;
  const float* const source = SourceOf(args, segment, of_head);
  const StagedRows<kPad> stages = {
      reinterpret_cast<float*>(staged) + warp * Shape::kStages * Shape::kBatchFloats, full[warp]};
  Channels<kPad, kTaps> channels;
  OutputElement of_thread;
  const float* const rows = source + first * d;
  const bool is_staged = kExact && source != nullptr;
  if (is_row) {
    // The slot is of the steps before: no kernel of this one writes it but this.
    if (is_staged) stages.Begin(rows);
    channels.LoadBefore(work, segment, head);
    if (thread < d) of_thread.weight = args.norm_weight[static_cast<int64_t>(head) * d + thread];
  }
  WaitForEarlier();
  if (!is_row) return;
  float* const out = args.out + row * args.out_stride + static_cast<int64_t>(head) * d;
  if (IsPadding(segment)) {
    if (thread < d && row >= 0) out[thread] = 0;
    return;
  }
  channels.Load(args, row, head);
  if (thread < d)
    of_thread.z = args.z[row * args.z_stride + static_cast<int64_t>(head) * d + thread];
  const float2 gates = GatesOf(args, row, head);
  channels.Convolve(work, segment, head, x);
  const float* const cos = warp < 2 ? args.cos : nullptr;
  const LaneRotation<kPad / kWarp> rotation(
      RotationOfRow(cos, args.sin, args.rotary_dim, args.interleaved, row));
  __syncthreads();  // The convolved row is there.
  if (args.cos != nullptr) {
    if (warp < 2) rotation.Rotate(x[warp], d);
    __syncthreads();  // And rotated.
  }
  const QueryAndKey<kPad> qk(args, x);
  float zero = 0;  // While the state is finite.
#pragma unroll 1   // More loads ahead would spill.
  for (int b = 0; b < Shape::kBatches; ++b) {
    const int at = first + b * Shape::kBatch;
    StateBatch<kPad, kExact> batch;
    if (is_staged) {
      batch.LoadStaged(stages.Await(b));
      if (b + Shape::kStages < Shape::kBatches) {
        __syncwarp();  // The stage is used up.
        stages.Fetch(rows, b + Shape::kStages);
      }
    } else {
      batch.Load(source, at, d);
    }
    const int own = at + Step::OwnRow() + Rows::Group() * Shape::kRows;
    const float o = Step::Do(batch.s, qk.k, qk.q, qk.kq, x[2][own], gates,
                             args.kind == RecurrentKind::kGatedDelta);
    if (threadIdx.x % Step::kLanesPerRow == 0) outputs[own] = args.scale * o;
    batch.StoreCopies(args, segment, of_head, at);
    zero = batch.SameIfFinite(zero);
  }
  __syncthreads();  // All of the head's outputs are there.
  if (!StoreOutputs(args, outputs, of_thread, out)) zero = 1;
  if (zero != 0 && args.nonfinite != nullptr) args.nonfinite[blockIdx.y] = 1;
}

template <int kPad, bool kExact, int kTaps>
absl::Status LaunchDecode(const RecurrentWork& work, cudaStream_t stream) {
  using Shape = DecodeShape<kPad>;
  constexpr auto kKernel = RecurrentDecodeKernel<kPad, kExact, kTaps>;
  constexpr int kBytes = kExact ? Shape::kBytes : 0;
  static const cudaError_t kAllowed =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const dim3 grid(static_cast<unsigned>(work.args.shape.heads),
                  static_cast<unsigned>(work.args.segments.size()));
  return Launch("RecurrentMixer, decode", kKernel,
                {.grid = grid, .block = dim3(Shape::kWarps * kWarp), .shared_bytes = kBytes},
                stream, work);
}

}  // namespace

absl::Status LaunchRecurrentDecode(const RecurrentWork& work, void* stream) {
  const auto raw = static_cast<cudaStream_t>(stream);
  return WithPaddedDim(work.args.shape.head_dim, [&](auto pad, auto exact) {
    constexpr int kPad = decltype(pad)::value;
    constexpr bool kExact = decltype(exact)::value;
    return work.args.shape.conv_taps <= 4 ? LaunchDecode<kPad, kExact, 4>(work, raw)
                                          : LaunchDecode<kPad, kExact, kTapsMax>(work, raw);
  });
}

}  // namespace morphserve::kernels::cuda
