// The queries of a block of decode attention, as the tensor core takes them, and the row that it
// appends (kernels/qk_rope_append.h): to the bit as append_row.cuh does it, but all heads are asked
// for at once, as soon as the kernels ahead are done, and what those do not write before.
#pragma once

#include "kernels/cuda/append_row.cuh"
#include "kernels/cuda/bulk_prefetch.cuh"
#include "kernels/cuda/decode_parts.cuh"

namespace morphserve::kernels::cuda {

// The new row's k and v of one head, as its page will hold them.
template <typename T, int kDim>
struct NewRow {
  T key[kDim];
  T value[kDim];
};

template <typename T, int kDim>
struct DecodeQueries {
  using Factor = typename FactorOf<T>::Type;
  static constexpr int kHeads = kTileHeads + 2;  // Queries, key, value.
  static constexpr int kStride = kDim + 8;       // Eight rows of terms meet no bank twice.
  float heads[kHeads][kDim];
  float norms[2][kDim];                              // Of queries and keys.
  alignas(16) Factor terms[2][kTileHeads][kStride];  // Rounded values, and their rests.

  // Operand A of step k: values in the upper rows, rests in the lower ones.
  __device__ void LoadA(uint32_t (&a)[4], int k) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    LoadMatrices(a, SharedAddress(&terms[lane / 8 % 2][lane % 8][k * 16 + lane / 16 * 8]));
  }
};

// By the four warps, of which each takes every fourth of the heads.
template <typename T, int kDim>
class QueryPreparer {
 public:
  static constexpr int kElements = kDim / kWarp;
  using Queries = DecodeQueries<T, kDim>;

  // While kernels ahead may still be under way. `append.q` null: queries are as they are.
  __device__ QueryPreparer(const AttentionArgs& args, const QkRopeAppendArgs& append,
                           const DecodeWork& work, Queries* queries)
      : append_(append),
        work_(work),
        queries_(queries),
        q_(args.q + work.row * args.q_stride + int64_t{work.head} * kDim),
        items_(work.count + (append.q != nullptr && work.last() ? 2 : 0)) {
    const auto thread = static_cast<int>(threadIdx.x);
    constexpr int kThreads = kDecodeWarps * kWarp;
    uint32_t* const terms = reinterpret_cast<uint32_t*>(queries->terms);
    for (int i = thread; i < static_cast<int>(sizeof(queries->terms) / 4); i += kThreads) {
      if (i * 2 / Queries::kStride % kTileHeads >= work.count) terms[i] = 0;
    }
    if (append.q == nullptr) return;
    for (int i = thread; i < 2 * kDim; i += kThreads) {
      const float* const norm = i < kDim ? append.q_norm : append.k_norm;
      if (norm != nullptr) queries->norms[0][i] = norm[i % kDim];
    }
    if (items_ > work.count) {
      page_ = append.page_of_row[work.row];
      position_ = append.offset_of_row[work.row];
    }
    const RowRotation rotation = RotationOf(append, work.row);
    if (thread != 0 || rotation.rotary_dim == 0) return;
    // Only brought near: kernels ahead may still write them.
    PrefetchToL2(rotation.cos, rotation.rotary_dim / 2 * int64_t{sizeof(float)});
    PrefetchToL2(rotation.sin, rotation.rotary_dim / 2 * int64_t{sizeof(float)});
  }

  // After a barrier and when they are done; another barrier follows.
  __device__ void Run(NewRow<T, kDim>* added) const {
    const int warp = threadIdx.x / kWarp;
    float x[kRounds][kElements];
#pragma unroll
    for (int n = 0; n < kRounds; ++n) {
      const int item = warp + n * kDecodeWarps;
      if (item >= items_) continue;
      const float* const from = Source(item);
#pragma unroll
      for (int j = 0; j < kElements; ++j) x[n][j] = from[Element(j)];
    }
    const LaneRotation<kElements> rotation(append_.q == nullptr ? RowRotation{}
                                                                : RotationOf(append_, work_.row));
#pragma unroll
    for (int n = 0; n < kRounds; ++n) {
      const int item = warp + n * kDecodeWarps;
      if (item >= items_) continue;
#pragma unroll
      for (int j = 0; j < kElements; ++j) queries_->heads[item][Element(j)] = x[n][j];
    }
#pragma unroll 1
    for (int item = warp; item < items_; item += kDecodeWarps) Finish(item, rotation, added);
  }

 private:
  static constexpr int kRounds = (Queries::kHeads + kDecodeWarps - 1) / kDecodeWarps;

  __device__ static int Element(int j) { return static_cast<int>(threadIdx.x) % kWarp + j * kWarp; }
  __device__ const float* Source(int item) const {
    if (item < work_.count) return q_ + item * kDim;
    const int64_t at = int64_t{work_.kv_head} * kDim;
    return item == work_.count ? append_.k + work_.row * append_.k_stride + at
                               : append_.v + work_.row * append_.v_stride + at;
  }

  // Norms and rotates a query or the key, and puts the item where it belongs.
  __device__ void Finish(int item, const LaneRotation<kElements>& rotation,
                         NewRow<T, kDim>* added) const {
    float* const head = queries_->heads[item];
    const bool is_query = item < work_.count;
    const bool is_value = item > work_.count;
    float x[kElements];
#pragma unroll
    for (int j = 0; j < kElements; ++j) x[j] = head[Element(j)];
    const float* const norm = is_query ? append_.q_norm : append_.k_norm;
    if (norm != nullptr && !is_value) {
      float squares = 0;
#pragma unroll
      for (int j = 0; j < kElements; ++j) squares += x[j] * x[j];
      const float inverse =
          1.0f / sqrtf(WarpSum(squares) / static_cast<float>(kDim) + append_.norm_eps);
      const float* const weights = queries_->norms[is_query ? 0 : 1];
#pragma unroll
      for (int j = 0; j < kElements; ++j) {
        x[j] = x[j] * inverse * weights[Element(j)];
        head[Element(j)] = x[j];
      }
    }
    if (!is_value) {
      __syncwarp();  // The head is whole: lanes read each other's elements.
#pragma unroll
      for (int j = 0; j < kElements; ++j) x[j] = rotation.Rotated(head, j);
    }
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int i = Element(j);
      if (is_query) {
        using Factor = typename Queries::Factor;
        const auto rounded = FromFloat<Factor>(x[j]);
        const int at = KvOperands<T>::QueryPlace(i);
        queries_->terms[0][item][at] = rounded;
        queries_->terms[1][item][at] = FromFloat<Factor>(x[j] - ToFloat(rounded));
      } else {
        const T rounded = FromFloat<T>(x[j]);
        (is_value ? added->value : added->key)[i] = rounded;
        Place(is_value)[PlaceInHead<T>(kDim, position_, i)] = rounded;
      }
    }
  }
  __device__ T* Place(bool is_value) const {
    return KeysOfPage<T>(append_.kv_base, page_, work_.kv_head + (is_value ? append_.kv_heads : 0),
                         kDim);
  }

  const QkRopeAppendArgs& append_;
  const DecodeWork& work_;
  Queries* const queries_;
  const float* const q_;
  const int items_;
  int32_t page_ = 0, position_ = 0;
};

}  // namespace morphserve::kernels::cuda
