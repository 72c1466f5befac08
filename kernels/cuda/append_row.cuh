// What a warp does with one head of a row that is appended: norm and rotation of q or k, and the
// places in the page. For the kernel that only appends, and for the one that attends right away.
#pragma once

#include "kernels/cuda/cache_types.cuh"
#include "kernels/cuda/head_ops.cuh"
#include "kernels/cuda/page_layout.h"
#include "kernels/qk_rope_append.h"

namespace morphserve::kernels::cuda {

// Brings the head at `from` into shared memory and norms it there; `norm` null: as it is.
__device__ inline void LoadHead(const QkRopeAppendArgs& args, const float* from, const float* norm,
                                float* values) {
  for (int i = threadIdx.x % kWarp; i < args.head_dim; i += kWarp) values[i] = from[i];
  __syncwarp();
  if (norm != nullptr) NormHead(values, args.head_dim, norm, args.norm_eps);
}

__device__ inline RowRotation RotationOf(const QkRopeAppendArgs& args, int64_t row) {
  return RotationOfRow(args.cos, args.sin, args.rotary_dim, args.interleaved, row);
}

// The row's k of one head, loaded by LoadHead and not yet rotated, into its place in the page.
template <typename T>
__device__ inline void AppendKey(const QkRopeAppendArgs& args, int64_t row, int head,
                                 const float* values) {
  const int d = args.head_dim, position = args.offset_of_row[row];
  const RowRotation rotation = RotationOf(args, row);
  T* const to = KeysOfPage<T>(args.kv_base, args.page_of_row[row], head, d);
  for (int i = threadIdx.x % kWarp; i < d; i += kWarp) {
    to[PlaceInHead<T>(d, position, i)] = FromFloat<T>(RotatedElement(values, i, rotation));
  }
}

template <typename T>
__device__ inline void AppendValue(const QkRopeAppendArgs& args, int64_t row, int head) {
  const int d = args.head_dim, position = args.offset_of_row[row];
  const float* const v = args.v + row * args.v_stride + static_cast<int64_t>(head) * d;
  T* const to = ValuesOfPage<T>(args.kv_base, args.page_of_row[row], head, d, args.kv_heads);
  for (int i = threadIdx.x % kWarp; i < d; i += kWarp) {
    to[PlaceInHead<T>(d, position, i)] = FromFloat<T>(v[i]);
  }
}

}  // namespace morphserve::kernels::cuda
