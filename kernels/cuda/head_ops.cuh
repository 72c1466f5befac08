// What a warp does to one head of up to 256 values in shared memory: norms and rotary embedding.
#pragma once

#include <cstdint>

#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kHeadDimMax = 256;

// Cosines and sines of one row; null: nothing is rotated.
struct RowRotation {
  const float* cos;
  const float* sin;
  int rotary_dim;
  bool interleaved;
};

__device__ inline RowRotation RotationOfRow(const float* cos, const float* sin, int rotary_dim,
                                            bool interleaved, int64_t row) {
  if (cos == nullptr || rotary_dim == 0) return {nullptr, nullptr, 0, interleaved};
  return {cos + row * (rotary_dim / 2), sin + row * (rotary_dim / 2), rotary_dim, interleaved};
}

// Element i of the rotated head; direction -1 rotates back.
__device__ inline float RotatedElement(const float* head, int i, const RowRotation& rotation,
                                       float direction = 1.0f) {
  if (i >= rotation.rotary_dim) return head[i];
  const int half = rotation.rotary_dim / 2;
  const int pair = rotation.interleaved ? i / 2 : i % half;
  const bool is_second = rotation.interleaved ? i % 2 != 0 : i >= half;
  const int other = rotation.interleaved ? i ^ 1 : (is_second ? i - half : i + half);
  const float c = rotation.cos[pair], s = direction * rotation.sin[pair];
  return is_second ? head[i] * c + head[other] * s : head[i] * c - head[other] * s;
}

// Cosine and sine of the lane's elements lane, lane + 32, ... of a head: loaded ahead of the head.
template <int kElements>
struct LaneRotation {
  float cos[kElements] = {}, sin[kElements] = {};  // The sine with its sign.
  RowRotation rotation;

  __device__ static int Element(int j) { return static_cast<int>(threadIdx.x) % kWarp + j * kWarp; }
  __device__ bool IsSecond(int i) const {
    return rotation.interleaved ? i % 2 != 0 : i >= rotation.rotary_dim / 2;
  }
  __device__ explicit LaneRotation(const RowRotation& of_row, float direction = 1.0f)
      : rotation(of_row) {
    const int half = rotation.rotary_dim / 2;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      const int i = Element(j);
      if (i >= rotation.rotary_dim) continue;
      const int pair = rotation.interleaved ? i / 2 : i < half ? i : i - half;
      cos[j] = rotation.cos[pair];
      sin[j] = direction * (IsSecond(i) ? rotation.sin[pair] : -rotation.sin[pair]);
    }
  }
  // The rotated element j of the lane; the head is read by other lanes too.
  __device__ float Rotated(const float* head, int j) const {
    const int i = Element(j), half = rotation.rotary_dim / 2;
    if (i >= rotation.rotary_dim) return head[i];
    const int other = rotation.interleaved ? i ^ 1 : IsSecond(i) ? i - half : i + half;
    return head[i] * cos[j] + head[other] * sin[j];
  }
  // The head in place, by all lanes of a warp.
  __device__ void Rotate(float* head, int d) const {
    if (rotation.rotary_dim == 0) return;
    float rotated[kElements];
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (Element(j) < d) rotated[j] = Rotated(head, j);
    }
    __syncwarp();  // All of the head is read before any of it is written.
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (Element(j) < d) head[Element(j)] = rotated[j];
    }
    __syncwarp();
  }
};

__device__ inline void RotateHead(float* head, int d, const RowRotation& rotation,
                                  float direction = 1.0f) {
  LaneRotation<kHeadDimMax / kWarp>(rotation, direction).Rotate(head, d);
}

// The sum of squares of the head, on all lanes; each lane reads elements lane, lane + 32, ...
__device__ inline float SquaresOfHead(const float* head, int d) {
  float squares = 0;
  for (int i = threadIdx.x % kWarp; i < d; i += kWarp) squares += head[i] * head[i];
  return WarpSum(squares);
}

// Root-mean-square norm in place with an optional weight [d]; then the warp may read any element.
__device__ inline void NormHead(float* head, int d, const float* weight, float eps) {
  const float inverse = 1.0f / sqrtf(SquaresOfHead(head, d) / static_cast<float>(d) + eps);
  for (int i = threadIdx.x % kWarp; i < d; i += kWarp) {
    head[i] = head[i] * inverse * (weight == nullptr ? 1.0f : weight[i]);
  }
  __syncwarp();
}

}  // namespace morphserve::kernels::cuda
