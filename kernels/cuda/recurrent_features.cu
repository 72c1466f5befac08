// What surrounds the recurrence of chunks: convolution, activation, rotation, norms and gates
// before it, one warp a row and head; what the convolution remembers; norm and gate of the outputs.
#include "kernels/cuda/alignment.h"
#include "kernels/cuda/error.h"
#include "kernels/cuda/recurrent_launch.h"
#include "kernels/cuda/recurrent_steps.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kRowsPerBlock = 8;
constexpr int kThreads = kRowsPerBlock * kWarp;

// Block (8 rows, head, segment).
template <typename T>
__global__ void FeaturesKernel(const RecurrentWork work, int padded) {
  __shared__ float shared[kRowsPerBlock][kHeadDimMax];
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.z];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int r = static_cast<int>(blockIdx.x) * kRowsPerBlock + warp;
  if (segment.row_count < 2 || IsPadding(segment) || r >= segment.row_count) return;
  const int head = static_cast<int>(blockIdx.y), d = args.shape.head_dim;
  const int64_t row = RowOf(args.row_list, segment, r);
  const int64_t place = segment.row_begin + r;
  float* const x = shared[warp];
  for (int part = 0; part < 3; ++part) {
    const int64_t first = (static_cast<int64_t>(part) * args.shape.heads + head) * d;
    for (int i = lane; i < d; i += kWarp) x[i] = Convolved<T>(work, segment, r, first + i);
    __syncwarp();
    if (part < 2) PrepareHead(args, x, row);
    float* const to =
        work.features +
        ((static_cast<int64_t>(part) * args.shape.heads + head) * work.places + place) * padded;
    for (int i = lane; i < padded; i += kWarp) to[i] = i < d ? x[i] : 0.0f;
    __syncwarp();  // x is read before the next part is written.
  }
  if (lane == 0) work.gates[head * work.places + place] = GatesOf(args, row, head);
}

// Block (256 channels, segment).
template <typename T>
__global__ void RememberKernel(const RecurrentWork work) {
  const MixerSegment segment = work.args.segments[blockIdx.y];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t channels = int64_t{3} * work.args.shape.heads * work.args.shape.head_dim;
  if (segment.row_count < 2 || IsPadding(segment) || c >= channels) return;
  RememberInputs<T>(work, segment, c);
}

// Block (rows, head, segment), some lanes of a warp a row: norm over the head; zeros for padding.
template <int kPad, bool kWhole>
__global__ void FinishHeadsKernel(const RecurrentWork work) {
  using Rows = StateRows<kPad>;
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.z];
  const int warp = static_cast<int>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  const int r = warp * Rows::kRowsAtOnce + Rows::Group();
  // Lanes whose row there is not work on the last one, as all of a warp sum together.
  if (segment.row_count < 2 || warp * Rows::kRowsAtOnce >= segment.row_count) return;
  const int64_t row = RowOf(args.row_list, segment, min(r, segment.row_count - 1));
  const int d = args.shape.head_dim;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * d;
  const int64_t own = max(row, int64_t{0});
  float* const out = args.out + own * args.out_stride + first;
  const float* const gates = args.z + own * args.z_stride + first;
  float4 o[Rows::kVectors], z[Rows::kVectors];
  float squares[1] = {0};
#pragma unroll
  for (int v = 0; v < Rows::kVectors; ++v) {
    const bool is_there = Rows::Key(v) < d && !IsPadding(segment);
    o[v] = is_there ? LoadKeysOf<kWhole>(out, Rows::Key(v), d) : float4{};
    z[v] = is_there ? LoadKeysOf<kWhole>(gates, Rows::Key(v), d) : float4{};
    squares[0] = Dot(o[v], o[v], squares[0]);
  }
  const float total = SumTransposed<1, Rows::kLanes>(squares);
  if (row < 0 || r >= segment.row_count) return;
  const float inverse = 1.0f / sqrtf(total / static_cast<float>(d) + args.eps);
  float zero = 0;  // While all is finite.
#pragma unroll
  for (int v = 0; v < Rows::kVectors; ++v) {
    const int key = Rows::Key(v);
    if (key >= d) continue;
    const float4 w = LoadKeysOf<kWhole>(args.norm_weight + first, key, d);
    const OutputGate gate = args.output_gate;
    if (!IsPadding(segment)) {
      o[v] = {Finished(gate, o[v].x, inverse, w.x, z[v].x),
              Finished(gate, o[v].y, inverse, w.y, z[v].y),
              Finished(gate, o[v].z, inverse, w.z, z[v].z),
              Finished(gate, o[v].w, inverse, w.w, z[v].w)};
    }
    zero = SameIfFinite(o[v], zero);
    StoreKeysOf<kWhole>(out, key, d, o[v]);
  }
  if (zero != 0 && args.nonfinite != nullptr) args.nonfinite[blockIdx.z] = 1;
}

// Block (row, segment): norm over all heads, of decode rows too.
__global__ void FinishRowsKernel(const RecurrentWork work) {
  __shared__ float shared[kWarp + 1];
  const RecurrentMixerArgs& args = work.args;
  const MixerSegment segment = args.segments[blockIdx.y];
  const int r = static_cast<int>(blockIdx.x);
  if (r >= segment.row_count) return;
  const int64_t row = RowOf(args.row_list, segment, r);
  if (row < 0) return;
  const int width = args.shape.heads * args.shape.head_dim;
  float* const out = args.out + row * args.out_stride;
  if (IsPadding(segment)) {
    for (int i = threadIdx.x; i < width; i += kThreads) out[i] = 0;
    return;
  }
  float squares = 0;
  for (int i = threadIdx.x; i < width; i += kThreads) squares += out[i] * out[i];
  const float mean = BlockSum(squares, shared) / static_cast<float>(width);
  const float inverse = 1.0f / sqrtf(mean + args.eps);
  for (int i = threadIdx.x; i < width; i += kThreads) {
    out[i] = Finished(args, row, i, out[i], inverse);
    if (!isfinite(out[i]) && args.nonfinite != nullptr) args.nonfinite[blockIdx.y] = 1;
  }
}

// `rows_of_warp` rows of a warp at a time.
dim3 RowBlocks(const RecurrentWork& work, int rows_of_warp = 1) {
  const int rows = kRowsPerBlock * rows_of_warp;
  return dim3(static_cast<unsigned>((work.args.rows_max + rows - 1) / rows),
              static_cast<unsigned>(work.args.shape.heads),
              static_cast<unsigned>(work.args.segments.size()));
}

// Whether every head of a row, and its gate and weights, is whole fours at multiples of 16 bytes.
bool HasWholeHeads(const RecurrentMixerArgs& args) {
  return HasWholeFours(args.out, args.out_stride) && HasWholeFours(args.z, args.z_stride) &&
         HasWholeFours(args.norm_weight, args.shape.head_dim);
}

}  // namespace

absl::Status LaunchRecurrentFeatures(const RecurrentWork& work, void* stream) {
  WithSlotType(work.args.shape.dtype, [&](auto type) {
    FeaturesKernel<decltype(type)>
        <<<RowBlocks(work), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            work, PaddedDim(work.args.shape.head_dim));
  });
  return LaunchStatus("RecurrentMixer, features");
}

absl::Status LaunchRecurrentRemember(const RecurrentWork& work, void* stream) {
  if (work.args.shape.conv_taps <= 1) return absl::OkStatus();
  const int channels = 3 * work.args.shape.heads * work.args.shape.head_dim;
  const dim3 grid(static_cast<unsigned>((channels + kThreads - 1) / kThreads),
                  static_cast<unsigned>(work.args.segments.size()));
  WithSlotType(work.args.shape.dtype, [&](auto type) {
    RememberKernel<decltype(type)><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  });
  return LaunchStatus("RecurrentMixer, inputs");
}

absl::Status LaunchRecurrentFinishHeads(const RecurrentWork& work, void* stream) {
  return WithPaddedDim(work.args.shape.head_dim, [&](auto pad, auto) {
    constexpr int kPad = decltype(pad)::value;
    const auto kernel =
        HasWholeHeads(work.args) ? FinishHeadsKernel<kPad, true> : FinishHeadsKernel<kPad, false>;
    kernel<<<RowBlocks(work, StateRows<kPad>::kRowsAtOnce), kThreads, 0,
             static_cast<cudaStream_t>(stream)>>>(work);
    return LaunchStatus("RecurrentMixer, outputs");
  });
}

absl::Status LaunchRecurrentFinishRows(const RecurrentWork& work, void* stream) {
  const dim3 grid(static_cast<unsigned>(work.args.rows_max),
                  static_cast<unsigned>(work.args.segments.size()));
  FinishRowsKernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(work);
  return LaunchStatus("RecurrentMixer, outputs");
}

}  // namespace morphserve::kernels::cuda
