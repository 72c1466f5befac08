// Norm, rotation and append of rows. Heads of 64, 128 and 256 are taken a few at a time by a warp
// that holds them in registers, others one at a time. Pages as page_layout.h.
// Floor: the bytes of q, k (read and written) and v (read) and of the pages' places.
#include "absl/strings/str_format.h"
#include "kernels/cuda/append_row.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kHeadsPerBlock = 8;

template <typename T>
__global__ void QkRopeAppendKernel(const QkRopeAppendArgs args) {
  __shared__ float shared[kHeadsPerBlock][kHeadDimMax];
  BeginStep();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int d = args.head_dim;
  const auto place = static_cast<int>(blockIdx.x);
  const int64_t row = args.row_list == nullptr ? place : args.row_list[place];
  if (row < 0) return;
  const int index = blockIdx.y * kHeadsPerBlock + warp;
  if (args.page_of_row[row] == -1 || index >= args.heads + 2 * args.kv_heads) return;
  const bool is_q = index < args.heads, is_v = index >= args.heads + args.kv_heads;
  const int head = is_q ? index : (index - args.heads) % args.kv_heads;
  if (is_v) return AppendValue<T>(args, row, head);
  float* const x = (is_q ? args.q + row * args.q_stride : args.k + row * args.k_stride) +
                   static_cast<int64_t>(head) * d;
  float* const values = shared[warp];
  LoadHead(args, x, is_q ? args.q_norm : args.k_norm, values);
  if (!is_q) AppendKey<T>(args, row, head, values);
  const RowRotation rotation = RotationOf(args, row);
  for (int i = lane; i < d; i += kWarp) x[i] = RotatedElement(values, i, rotation);
}

// Elements beside each other, moved at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Piece {
  T v[kCount];
};
template <int kCount>
__device__ inline Piece<float, kCount> LoadPiece(const float* from) {
  return *reinterpret_cast<const Piece<float, kCount>*>(from);
}

// Some heads of kElements * 32 of one row, for a warp: a lane has whole pieces of each.
template <typename T, int kElements>
class HeadsOfRow {
 public:
  static constexpr int kDim = kElements * kWarp;
  static constexpr int kPiece = kElements < 4 ? kElements : 4;
  static constexpr int kPieces = kElements / kPiece;    // Of a lane.
  static constexpr int kHeads = kElements > 4 ? 2 : 4;  // Of a warp.
  static constexpr int kWarps = 4;
  struct alignas(16) Shared {
    float loaded[kDim];
    float normed[kDim];
  };

  __device__ HeadsOfRow(const QkRopeAppendArgs& args, int64_t row, int page, int position,
                        Shared* shared)
      : args_(args), row_(row), page_(page), position_(position), shared_(shared) {}

  __device__ void Run(int first) {
    const int end = args_.heads + 2 * args_.kv_heads;
    Floats x[kHeads][kPieces];
#pragma unroll
    for (int n = 0; n < kHeads; ++n) {
      if (first + n >= end) continue;
      const float* const from = Source(first + n);
#pragma unroll
      for (int p = 0; p < kPieces; ++p) x[n][p] = LoadPiece<kPiece>(from + Element(p));
    }
    LoadRotation(RotationOf(args_, row_));
#pragma unroll
    for (int n = 0; n < kHeads; ++n) {
      const int index = first + n;
      if (index >= end) continue;
      if (index < args_.heads + args_.kv_heads) {
        Norm(index < args_.heads ? args_.q_norm : args_.k_norm, x[n]);
        Rotate(x[n]);
        float* const to = Source(index);
#pragma unroll
        for (int p = 0; p < kPieces; ++p) *reinterpret_cast<Floats*>(to + Element(p)) = x[n][p];
      }
      if (index >= args_.heads) Append(index - args_.heads, x[n]);
    }
  }

 private:
  using Floats = Piece<float, kPiece>;

  __device__ static int Element(int p) {
    return (static_cast<int>(threadIdx.x) % kWarp + p * kWarp) * kPiece;
  }
  // Heads of q, k and v, one after the other; those of v are only read.
  __device__ float* Source(int index) const {
    if (index < args_.heads) return args_.q + row_ * args_.q_stride + index * kDim;
    const int head = index - args_.heads;
    if (head < args_.kv_heads) return args_.k + row_ * args_.k_stride + head * kDim;
    return const_cast<float*>(args_.v) + row_ * args_.v_stride + (head - args_.kv_heads) * kDim;
  }

  __device__ void LoadRotation(const RowRotation& rotation) {
    rotary_ = rotation.rotary_dim;
    interleaved_ = rotation.interleaved;
    const int half = rotary_ / 2;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int i = Element(p);
      if (i >= rotary_) continue;
      if (interleaved_) {
        const auto c = LoadPiece<kPiece / 2>(rotation.cos + i / 2);
        const auto s = LoadPiece<kPiece / 2>(rotation.sin + i / 2);
#pragma unroll
        for (int e = 0; e < kPiece; ++e) {
          cos_[p].v[e] = c.v[e / 2];
          sin_[p].v[e] = e % 2 == 0 ? -s.v[e / 2] : s.v[e / 2];
        }
        continue;
      }
      const bool is_second = i >= half;
      other_[p] = is_second ? i - half : i + half;
      cos_[p] = LoadPiece<kPiece>(rotation.cos + (is_second ? i - half : i));
      sin_[p] = LoadPiece<kPiece>(rotation.sin + (is_second ? i - half : i));
#pragma unroll
      for (int e = 0; e < kPiece; ++e) sin_[p].v[e] = is_second ? sin_[p].v[e] : -sin_[p].v[e];
    }
  }

  // Sums squares in the order of NormHead, that results have its bits.
  __device__ void Norm(const float* norm, Floats (&x)[kPieces]) const {
    if (norm == nullptr) return;
    Floats weights[kPieces];
    __syncwarp();  // All of the head before is read.
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      weights[p] = LoadPiece<kPiece>(norm + Element(p));
      *reinterpret_cast<Floats*>(shared_->loaded + Element(p)) = x[p];
    }
    __syncwarp();  // The head is whole.
    const float inverse =
        1.0f /
        sqrtf(SquaresOfHead(shared_->loaded, kDim) / static_cast<float>(kDim) + args_.norm_eps);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
#pragma unroll
      for (int e = 0; e < kPiece; ++e) x[p].v[e] = x[p].v[e] * inverse * weights[p].v[e];
    }
  }

  __device__ void Rotate(Floats (&x)[kPieces]) const {
    Floats other[kPieces];
    if (!interleaved_) {
      __syncwarp();  // All of the head before is read.
#pragma unroll
      for (int p = 0; p < kPieces; ++p) {
        *reinterpret_cast<Floats*>(shared_->normed + Element(p)) = x[p];
      }
      __syncwarp();  // The head is whole.
    }
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      if (Element(p) >= rotary_) continue;
      if (interleaved_) {
#pragma unroll
        for (int e = 0; e < kPiece; ++e) other[p].v[e] = x[p].v[e ^ 1];
      } else {
        other[p] = LoadPiece<kPiece>(shared_->normed + other_[p]);
      }
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {  // As RotatedElement rounds.
        x[p].v[e] = fmaf(x[p].v[e], cos_[p].v[e], other[p].v[e] * sin_[p].v[e]);
      }
    }
  }

  // Heads of a page: keys, then values.
  __device__ void Append(int head, const Floats (&x)[kPieces]) const {
    T* const to = KeysOfPage<T>(args_.kv_base, page_, head, kDim);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      Piece<T, kPiece> rounded;
#pragma unroll
      for (int e = 0; e < kPiece; ++e) rounded.v[e] = FromFloat<T>(x[p].v[e]);
      *reinterpret_cast<Piece<T, kPiece>*>(to + PlaceInHead<T>(kDim, position_, Element(p))) =
          rounded;
    }
  }

  const QkRopeAppendArgs& args_;
  const int64_t row_;
  const int page_, position_;
  Shared* const shared_;
  Floats cos_[kPieces], sin_[kPieces];  // The sine with its sign.
  int other_[kPieces];                  // What is rotated with a piece.
  int rotary_ = 0;
  bool interleaved_ = false;
};

template <typename T, int kElements>
__global__ void __launch_bounds__(HeadsOfRow<T, kElements>::kWarps* kWarp)
    QkRopeAppendHeadsKernel(const QkRopeAppendArgs args) {
  using Heads = HeadsOfRow<T, kElements>;
  __shared__ typename Heads::Shared shared[Heads::kWarps];
  LetNextStart();
  // Lists are of the step: no kernel of it writes them.
  const auto place = static_cast<int>(blockIdx.x);
  const int64_t row = args.row_list == nullptr ? place : args.row_list[place];
  const int page = row < 0 ? -1 : args.page_of_row[row];
  const int position = page == -1 ? 0 : args.offset_of_row[row];
  WaitForEarlier();
  if (page == -1) return;
  const int warp = threadIdx.x / kWarp;
  const int first = (static_cast<int>(blockIdx.y) * Heads::kWarps + warp) * Heads::kHeads;
  Heads(args, row, page, position, &shared[warp]).Run(first);
}

template <typename T, int kElements>
absl::Status AppendHeads(const QkRopeAppendArgs& args, Stream stream) {
  using Heads = HeadsOfRow<T, kElements>;
  constexpr int kOfBlock = Heads::kWarps * Heads::kHeads;
  const int heads = args.heads + 2 * args.kv_heads;
  return Launch("QkRopeAppend", QkRopeAppendHeadsKernel<T, kElements>,
                {.grid = dim3(static_cast<unsigned>(args.rows),
                              static_cast<unsigned>((heads + kOfBlock - 1) / kOfBlock)),
                 .block = Heads::kWarps * kWarp},
                StreamOf(stream), args);
}

// Rows, heads and angles are whole pieces, and none is rotated in part.
bool InPieces(const QkRopeAppendArgs& args) {
  constexpr uintptr_t kBytes = 16;
  for (const float* from : {static_cast<const float*>(args.q), static_cast<const float*>(args.k),
                            args.v, args.q_norm, args.k_norm, args.cos, args.sin}) {
    if (reinterpret_cast<uintptr_t>(from) % kBytes != 0) return false;
  }
  return args.q_stride % 4 == 0 && args.k_stride % 4 == 0 && args.v_stride % 4 == 0 &&
         args.rotary_dim % 8 == 0;
}

template <typename T>
absl::Status AppendRows(const QkRopeAppendArgs& args, Stream stream) {
  switch (InPieces(args) ? args.head_dim : 0) {
    case 64: return AppendHeads<T, 2>(args, stream);
    case 128: return AppendHeads<T, 4>(args, stream);
    case 256: return AppendHeads<T, 8>(args, stream);
    default: break;
  }
  const auto blocks =
      static_cast<unsigned>((args.heads + 2 * args.kv_heads + kHeadsPerBlock - 1) / kHeadsPerBlock);
  return Launch(
      "QkRopeAppend", QkRopeAppendKernel<T>,
      {.grid = dim3(static_cast<unsigned>(args.rows), blocks), .block = kHeadsPerBlock * kWarp},
      StreamOf(stream), args);
}

}  // namespace

absl::Status CheckAppend(const QkRopeAppendArgs& args) {
  if (args.rows < 0 || args.head_dim < 1 || args.head_dim > kHeadDimMax || args.rotary_dim < 0 ||
      args.rotary_dim > args.head_dim || args.rotary_dim % 2 != 0 || args.kv_heads < 1 ||
      args.heads < 1 || args.heads % args.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("QkRopeAppend: rows %d, head_dim %d, rotary_dim %d, heads %d/%d", args.rows,
                        args.head_dim, args.rotary_dim, args.heads, args.kv_heads));
  }
  if (args.rows == 0) return absl::OkStatus();
  if (args.q == nullptr || args.k == nullptr || args.v == nullptr || args.page_of_row == nullptr ||
      args.offset_of_row == nullptr || args.kv_base == nullptr ||
      (args.rotary_dim > 0 && (args.cos == nullptr || args.sin == nullptr))) {
    return absl::InvalidArgumentError("QkRopeAppend: an input or the pages are missing");
  }
  return absl::OkStatus();
}

absl::Status QkRopeAppend(const QkRopeAppendArgs& args, Stream stream) {
  const absl::Status status = CheckAppend(args);
  if (!status.ok() || args.rows == 0) return status;
  absl::Status launched;
  WithPageType(args.kv_dtype,
               [&](auto type) { launched = AppendRows<decltype(type)>(args, stream); });
  return launched;
}

}  // namespace morphserve::kernels::cuda
