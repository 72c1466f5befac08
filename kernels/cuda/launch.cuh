// Launches of the kernels of a step, one after the other in a stream, so that each begins while the
// one before it ends (programmatic dependent launch; captured graphs keep it). Launch() lets a
// kernel start when every block of its predecessor has called LetNextStart or has left. In return
// every kernel that is launched so calls WaitForEarlier in each of its blocks, also in blocks with
// nothing to do: what is launched next waits for this kernel alone, and relies on it for all that
// came before. Until then it may only read what no kernel of the step before it writes, such as
// weights, lists that were copied to the device, states and caches of earlier steps and its own
// arguments, and writes nothing but shared memory. (A step begins with copies of its lists, which
// wait for all of the step before.)
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/error.h"

namespace morphserve::kernels::cuda {

// Returns when all earlier kernels of the stream are done and what they wrote can be read.
__device__ inline void WaitForEarlier() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// The next kernel may take what room this one leaves. Early is good: it waits by itself.
__device__ inline void LetNextStart() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Both, for kernels with nothing to do before.
__device__ inline void BeginStep() {
  LetNextStart();
  WaitForEarlier();
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  dim3 cluster = 1;  // Blocks of a cluster.
};

// `what` names the kernel in an error.
template <typename... Parameters, typename... Arguments>
absl::Status Launch(const char* what, void (*kernel)(Parameters...), const LaunchShape& shape,
                    cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {shape.cluster.x, shape.cluster.y, shape.cluster.z};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster.x * shape.cluster.y * shape.cluster.z > 1 ? 2 : 1;
  return ErrorOf(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), what);
}

}  // namespace morphserve::kernels::cuda
