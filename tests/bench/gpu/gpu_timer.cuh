// Times of work on the device: a graph of many launches, replayed, with events around each replay;
// the median of the replays. And what they are compared with: the bandwidth of a plain read.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/cuda/device.h"

namespace morphserve::bench {

inline void OrDie(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
  std::exit(1);
}
inline void OrDie(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, std::string(status.message()).c_str());
  std::exit(1);
}

// Seconds of one call of launch(i), i counting up: `launches` of them in a graph.
inline double SecondsOf(const std::function<void(int)>& launch, int launches,
                        kernels::Stream stream, int replays = 20) {
  const auto raw = static_cast<cudaStream_t>(stream.cuda_stream);
  launch(0);  // Loads code and libraries before the capture.
  OrDie(cudaStreamSynchronize(raw), "first launch");
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  OrDie(cudaStreamBeginCapture(raw, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < launches; ++i) launch(i);
  OrDie(cudaStreamEndCapture(raw, &graph), "capture");
  OrDie(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin, end;
  OrDie(cudaEventCreate(&begin), "event");
  OrDie(cudaEventCreate(&end), "event");
  std::vector<double> seconds;
  for (int i = 0; i < replays + 3; ++i) {
    OrDie(cudaEventRecord(begin, raw), "event");
    OrDie(cudaGraphLaunch(exec, raw), "replay");
    OrDie(cudaEventRecord(end, raw), "event");
    OrDie(cudaEventSynchronize(end), "replay");
    float ms = 0;
    OrDie(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 3) seconds.push_back(ms * 1e-3 / launches);
  }
  OrDie(cudaGraphExecDestroy(exec), "graph");
  OrDie(cudaGraphDestroy(graph), "graph");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

inline __global__ void FillRandomKernel(uint32_t* words, int64_t count, uint32_t keep,
                                        uint32_t set) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    words[i] = (static_cast<uint32_t>(z >> 32) & keep) | set;
  }
}

// Random words with the bits of `keep`, and those of `set` one.
inline void FillRandom(void* to, int64_t bytes, uint32_t keep, uint32_t set,
                       kernels::Stream stream) {
  FillRandomKernel<<<1024, 256, 0, static_cast<cudaStream_t>(stream.cuda_stream)>>>(
      static_cast<uint32_t*>(to), bytes / 4, keep, set);
  OrDie(cudaGetLastError(), "fill");
}
// Pairs of bf16 of magnitude 1/4 .. 1; f32 alike.
inline constexpr uint32_t kKeepBf16 = 0x80ff80ffu, kSetBf16 = 0x3e803e80u;
inline constexpr uint32_t kKeepF32 = 0x80ffffffu, kSetF32 = 0x3e800000u;

inline __global__ void ReadKernel(const uint4* from, int64_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    const uint4 a = __ldcs(from + i), b = __ldcs(from + i + stride),
                c = __ldcs(from + i + 2 * stride), d = __ldcs(from + i + 3 * stride);
    sum += a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
    sum += c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  if (sum == 0x12345) *sink = sum;  // The sums are used, so the loads stay.
}

// Bytes a second of a plain read of 2 GB.
inline double ReadBandwidth(kernels::Stream stream) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  auto memory = kernels::cuda::DeviceMemory::Allocate(kBytes + 64);
  OrDie(memory.status(), "memory");
  FillRandom(memory->data(), kBytes, ~0u, 0, stream);
  double best = 0;
  for (const int blocks : {132 * 4, 132 * 8, 132 * 16}) {
    const double seconds = SecondsOf(
        [&](int) {
          ReadKernel<<<blocks, 512, 0, static_cast<cudaStream_t>(stream.cuda_stream)>>>(
              reinterpret_cast<const uint4*>(memory->data()), kBytes / 16,
              reinterpret_cast<uint32_t*>(memory->data() + kBytes));
        },
        4, stream, 10);
    best = std::max(best, kBytes / seconds);
  }
  return best;
}

}  // namespace morphserve::bench
