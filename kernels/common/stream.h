// Stream is the place an operation runs: the worker pool of the CPU backend, or a CUDA stream.
// Passed by value as the last argument of every operation; it owns nothing.
#pragma once

namespace morphserve::kernels {

namespace cpu {
class ThreadPool;
}

struct Stream {
  cpu::ThreadPool* pool = nullptr;  // CPU: never null.
  void* cuda_stream = nullptr;      // CUDA: a cudaStream_t.
};

}  // namespace morphserve::kernels
