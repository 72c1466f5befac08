// Steps 1 and 2 of the recurrent mixer for the rows of a chunk, into tiles of panel_tiles.cuh.
#pragma once

#include "kernels/cuda/panel_tiles.cuh"
#include "kernels/cuda/recurrent_chunks.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace morphserve::kernels::cuda {

// A warp's share of a part (0: q, 1: k, 2: v): runs of 8 rows, whose inputs are all under way
// before the first is looked at. A lane has four elements of a row. kTurnsPairs: registers have
// room for rotations without the scratch.
template <int kPad, int kTaps, bool kTurnsPairs>
class FeatureRun {
 public:
  static constexpr int kRows = 8;
  static constexpr int kLanes = kPad / 4;                        // Of a run.
  static constexpr int kRuns = kWarp / kLanes;                   // Of the warp.
  static constexpr int kTasks = kChunkTokens / (kRows * kRuns);  // Of a part.

  __device__ FeatureRun(const RecurrentWork& work, const MixerSegment& segment, const Chunk& chunk,
                        int head, int part, int task, int lane)
      : lane_(lane),
        work_(work),
        segment_(segment),
        chunk_(chunk),
        part_(part),
        first_((task * kRuns + Run()) * kRows),
        channel_((part * work.args.shape.heads + head) * work.args.shape.head_dim + Element()) {}

  __device__ void Make(uint32_t tile, float* scratch) {
    const RecurrentMixerArgs& args = work_.args;
    Load();
    float y[kRows][4];
    if (args.shape.conv_taps > 0) {
      Round();
      LoadHistory();
      Convolve(y);
    } else {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) y[i][e] = x_[i + kTaps - 1][e];
      }
    }
    if (part_ < 2) {
      if (args.silu) Activate(y);
      if constexpr (kTurnsPairs) Pin(y);
      if (args.cos != nullptr) Rotate(y, scratch + Run() * kPad);
      if constexpr (kTurnsPairs) Pin(y);
      if (args.qk_norm != QkNorm::kNone) Norm(y);
    }
    if (chunk_.count < kChunkTokens) ZeroBehind(y);
    Store(tile, y);
  }

 private:
  static constexpr int kInputs = kRows + kTaps - 1;  // From those before the first row on.
  static_assert(kInputs <= kLanes);

  __device__ int Run() const { return lane_ / kLanes; }
  __device__ int Element() const { return lane_ % kLanes * 4; }
  __device__ int Channels() const { return 3 * work_.args.shape.heads * work_.args.shape.head_dim; }

  // Inputs that are not there (before the segment, behind the chunk) become zeros; loads go
  // somewhere in any case, so that none waits for a decision.
  __device__ void Load() {
    const RecurrentMixerArgs& args = work_.args;
    const int d = args.shape.head_dim, left = d - Element();
    const int before = first_ - (kTaps - 1);  // The first input's row of the chunk.
    const int own = before + lane_ % kLanes;
    const int own_row = static_cast<int>(RowOf(
        args.row_list, segment_, chunk_.begin + max(min(own, chunk_.count - 1), -chunk_.begin)));
    // Whether all elements of a lane are there or none, at a multiple of 16 bytes.
    const bool is_whole =
        (d | args.qkv_stride) % 4 == 0 &&
        (reinterpret_cast<uintptr_t>(args.qkv) | reinterpret_cast<uintptr_t>(args.conv)) % 16 == 0;
    const int channel = left > 0 ? channel_ : 0;
    const char* const from = reinterpret_cast<const char*>(args.qkv + channel);
    const auto stride = static_cast<uint32_t>(args.qkv_stride * sizeof(float));
    const auto input = [&](int i) {
      const auto row = static_cast<uint32_t>(__shfl_sync(~0u, own_row, Run() * kLanes + i));
      return reinterpret_cast<const float*>(from + static_cast<uint64_t>(row) * stride);
    };
    const float* const weights = args.conv + channel;
    if (is_whole) {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) LoadWhole(input(i), x_[i]);
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        if (t < args.shape.conv_taps)
          LoadWhole(weights + static_cast<int64_t>(t) * Channels(), weights_[t]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) LoadPart(input(i), left, x_[i]);
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        if (t < args.shape.conv_taps)
          LoadPart(weights + static_cast<int64_t>(t) * Channels(), left, weights_[t]);
      }
    }
    if (chunk_.begin + before < 0 || first_ + kRows > chunk_.count || left <= 0) {
#pragma unroll
      for (int i = 0; i < kInputs; ++i) {
        const int at = before + i;
        if (chunk_.begin + at >= 0 && at < chunk_.count && left > 0) continue;
#pragma unroll
        for (float& x : x_[i]) x = 0;
      }
    }
  }
  __device__ static void LoadWhole(const float* from, float (&to)[4]) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  }
  __device__ static void LoadPart(const float* from, int left, float (&to)[4]) {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = e < left ? from[e] : 0.0f;
  }

  __device__ void Round() {
    if (work_.args.shape.dtype == KvDType::kBF16) {
      RoundBy([](float& a, float& b) {
        const uint32_t pair = Pack<__nv_bfloat16>(a, b);
        a = __uint_as_float(pair << 16), b = __uint_as_float(pair & 0xffff0000);
      });
    } else if (work_.args.shape.dtype == KvDType::kF16) {
      RoundBy([](float& a, float& b) {
        const float2 pair = __half22float2(__floats2half2_rn(a, b));
        a = pair.x, b = pair.y;
      });
    }
  }
  template <typename F>
  __device__ void RoundBy(F&& round) {
#pragma unroll
    for (auto& x : x_) round(x[0], x[1]), round(x[2], x[3]);
  }

  // What came before the segment is in its slot.
  __device__ void LoadHistory() {
    const SlotShape& shape = work_.args.shape;
    const int before = chunk_.begin + first_ - (kTaps - 1), places = shape.conv_taps - 1;
    if (places <= 0 || before >= 0) return;
    const std::byte* const conv =
        InSlot<const std::byte>(work_.args.slot_base, segment_.src_slot, work_.layout.conv_offset);
#pragma unroll
    for (int i = 0; i < kTaps - 1; ++i) {
      const int position = segment_.position + before + i;
      if (before + i >= 0 || position < segment_.position - places || position < 0) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (Element() + e >= shape.head_dim) continue;
        const int64_t at = static_cast<int64_t>(position % places) * Channels() + channel_ + e;
        x_[i][e] = CacheWord::Load(shape.dtype, conv, at).Value(shape.dtype);
      }
    }
  }

  // Weights behind the last tap are zeros.
  __device__ void Convolve(float (&y)[kRows][4]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float sum = weights_[0][e] * x_[i + kTaps - 1][e];
#pragma unroll
        for (int t = 1; t < kTaps; ++t) sum = fmaf(weights_[t][e], x_[i + kTaps - 1 - t][e], sum);
        y[i][e] = sum;
      }
    }
  }

  // Keeps the compiler from mixing what comes before with what follows: that takes more registers.
  __device__ static void Pin(float (&y)[kRows][4]) {
#pragma unroll
    for (auto& row : y) PinRegisters(row);
  }

  __device__ static void Activate(float (&y)[kRows][4]) {
#pragma unroll
    for (auto& row : y) {
#pragma unroll
      for (float& x : row) x *= ApproximateSigmoid(x);
    }
  }

  // Where the rotation of the run's row `i` is; behind the chunk, that of its last row.
  __device__ int64_t RotationAt(int i) const {
    const int row = chunk_.begin + min(first_ + i, chunk_.count - 1);
    return RowOf(work_.args.row_list, segment_, row) * (work_.args.rotary_dim / 2);
  }

  // With `scratch` of a row, where pairs are not a lane's own or those of another lane.
  __device__ void Rotate(float (&y)[kRows][4], float* scratch) const {
    const RecurrentMixerArgs& args = work_.args;
    if constexpr (kTurnsPairs) {
      const bool is_whole =
          args.rotary_dim > 0 && args.rotary_dim % (args.interleaved ? 4 : 8) == 0 &&
          (reinterpret_cast<uintptr_t>(args.cos) | reinterpret_cast<uintptr_t>(args.sin)) % 16 == 0;
      if (is_whole && args.interleaved) return RotateNeighbours(y);
      if (is_whole) return RotateHalves(y);
    }
    const int e0 = Element();
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      *reinterpret_cast<float4*>(scratch + e0) = {y[i][0], y[i][1], y[i][2], y[i][3]};
      __syncwarp();  // The rows are in the scratch.
      if (first_ + i < chunk_.count) {
        const int64_t row = RowOf(args.row_list, segment_, chunk_.begin + first_ + i);
        const RowRotation rotation =
            RotationOfRow(args.cos, args.sin, args.rotary_dim, args.interleaved, row);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (e0 + e < args.shape.head_dim) y[i][e] = RotatedElement(scratch, e0 + e, rotation);
        }
      }
      __syncwarp();  // The scratch may be written again.
    }
  }

  // Element i pairs with i + rotary_dim / 2, which another lane has at the same place.
  __device__ void RotateHalves(float (&y)[kRows][4]) const {
    const RecurrentMixerArgs& args = work_.args;
    const int half = args.rotary_dim / 2, e0 = Element();
    const bool rotates = e0 < args.rotary_dim, is_second = e0 >= half;
    const int pair = !rotates ? 0 : is_second ? e0 - half : e0;
    const int other = !rotates ? lane_ : Run() * kLanes + (is_second ? e0 - half : e0 + half) / 4;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      // Loads of a few rows at a time; more would take too many registers.
      if (i % 2 == 0) asm volatile("" ::: "memory");
      const int64_t at = RotationAt(i) + pair;
      const float4 c = *reinterpret_cast<const float4*>(args.cos + at);
      const float4 s = *reinterpret_cast<const float4*>(args.sin + at);
      const float cos[4] = {c.x, c.y, c.z, c.w}, sin[4] = {s.x, s.y, s.z, s.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float of_pair = __shfl_sync(~0u, y[i][e], other);
        const float turned = fmaf(of_pair, is_second ? sin[e] : -sin[e], y[i][e] * cos[e]);
        y[i][e] = rotates ? turned : y[i][e];
      }
    }
  }

  // Element 2 i pairs with 2 i + 1.
  __device__ void RotateNeighbours(float (&y)[kRows][4]) const {
    const RecurrentMixerArgs& args = work_.args;
    const int pair = Element() < args.rotary_dim ? Element() / 2 : 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i % 2 == 0) asm volatile("" ::: "memory");
      const int64_t at = RotationAt(i) + pair;
      const float2 c = *reinterpret_cast<const float2*>(args.cos + at);
      const float2 s = *reinterpret_cast<const float2*>(args.sin + at);
      if (Element() >= args.rotary_dim) continue;
      const float a = y[i][0], b = y[i][2];
      y[i][0] = fmaf(-y[i][1], s.x, a * c.x), y[i][1] = fmaf(a, s.x, y[i][1] * c.x);
      y[i][2] = fmaf(-y[i][3], s.y, b * c.y), y[i][3] = fmaf(b, s.y, y[i][3] * c.y);
    }
  }

  __device__ void Norm(float (&y)[kRows][4]) const {
    const RecurrentMixerArgs& args = work_.args;
    float squares[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      squares[i] =
          fmaf(y[i][3], y[i][3], fmaf(y[i][2], y[i][2], fmaf(y[i][1], y[i][1], y[i][0] * y[i][0])));
    }
    const float total = SumTransposed<kRows, kLanes>(squares);
    const float own = args.qk_norm == QkNorm::kL2
                          ? rsqrtf(total + 1e-6f)
                          : rsqrtf(total / static_cast<float>(args.shape.head_dim) + args.eps);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float factor = __shfl_sync(~0u, own, Run() * kLanes + i * (kLanes / kRows));
#pragma unroll
      for (int e = 0; e < 4; ++e) y[i][e] *= factor;
    }
  }

  // Rows behind the chunk become zeros.
  __device__ void ZeroBehind(float (&y)[kRows][4]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (float& x : y[i]) x = first_ + i < chunk_.count ? x : 0.0f;
    }
  }

  __device__ void Store(uint32_t tile, const float (&y)[kRows][4]) const {
    const uint32_t at = tile + first_ * kPanelRowBytes;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(PieceAddress(at, i, Element() / 8) +
                                                            Element() % 8 * 2),
                   "r"(Pack<__nv_bfloat16>(y[i][0], y[i][1])),
                   "r"(Pack<__nv_bfloat16>(y[i][2], y[i][3]))
                   : "memory");
    }
  }

  const int lane_;
  const RecurrentWork& work_;
  const MixerSegment& segment_;
  const Chunk& chunk_;
  const int part_;
  const int first_;    // Row of the chunk.
  const int channel_;  // Of the lane's first element.
  float x_[kInputs][4];
  float weights_[kTaps][4] = {};
};

}  // namespace morphserve::kernels::cuda
