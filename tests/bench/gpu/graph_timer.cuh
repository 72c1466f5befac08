// Time of launches on the device as serving makes them: captured in a graph, replayed after a
// warm-up, the median of many replays by events. And random data without the host. Thread rule: the
// bench's thread.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::bench {

inline void Require(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(code));
  std::exit(1);
}
inline void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

// Device memory for the length of the program's part that needs it.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(count) {
    Require(cudaMalloc(&data_, static_cast<size_t>(count) * sizeof(T)), "memory");
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(static_cast<int64_t>(values.size())) {
    Require(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
            "copy");
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }
  T* get() const { return static_cast<T*>(data_); }
  int64_t count() const { return count_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

 private:
  void* data_ = nullptr;
  int64_t count_;
};

// Values of about normal distribution and scale, of any type that a float converts to.
template <typename T>
__global__ void FillNormalKernel(T* to, int64_t count, float scale, uint32_t seed) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint64_t z = (static_cast<uint64_t>(i) + seed) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    const float sum = static_cast<float>(z & 0xffff) + static_cast<float>(z >> 16 & 0xffff) +
                      static_cast<float>(z >> 32 & 0xffff) + static_cast<float>(z >> 48);
    to[i] = static_cast<T>((sum / 32768.0f - 4.0f) * 0.8660254f * scale);
  }
}
template <typename T>
void FillNormal(T* to, int64_t count, float scale, uint32_t seed) {
  FillNormalKernel<<<1024, 256>>>(to, count, scale, seed);
  Require(cudaDeviceSynchronize(), "fill");
}

// Microseconds of one launch: `launch(i, stream)` for i = 0 .. launches - 1 makes up the graph.
template <typename F>
double MicrosecondsOf(int launches, F&& launch) {
  constexpr int kWarmUps = 3, kReplays = 9;
  cudaStream_t stream;
  Require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  launch(0, kernels::Stream{.cuda_stream = stream});  // Kernels are loaded outside the capture.
  Require(cudaStreamSynchronize(stream), "first launch");
  Require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < launches; ++i) launch(i, kernels::Stream{.cuda_stream = stream});
  Require(cudaStreamEndCapture(stream, &graph), "capture");
  Require(cudaGraphInstantiate(&exec, graph, 0), "graph");
  std::vector<float> times;
  cudaEvent_t begin, end;
  Require(cudaEventCreate(&begin), "event");
  Require(cudaEventCreate(&end), "event");
  for (int i = 0; i < kWarmUps + kReplays; ++i) {
    Require(cudaEventRecord(begin, stream), "event");
    Require(cudaGraphLaunch(exec, stream), "replay");
    Require(cudaEventRecord(end, stream), "event");
    Require(cudaEventSynchronize(end), "replay");
    float ms = 0;
    Require(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= kWarmUps) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]) * 1e3 / launches;
}

}  // namespace morphserve::bench
