// CUDA's error codes as statuses, for the sources of this folder.
#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels::cuda {

// OK, RESOURCE_EXHAUSTED when memory is short, else INTERNAL. `what` is a clause for people.
absl::Status ErrorOf(cudaError_t code, const char* what);

inline cudaStream_t StreamOf(Stream stream) {
  return static_cast<cudaStream_t>(stream.cuda_stream);
}

// The error of the launch just made, for the end of a launcher.
inline absl::Status LaunchStatus(const char* kernel) { return ErrorOf(cudaGetLastError(), kernel); }

}  // namespace morphserve::kernels::cuda

#define MS_CUDA_RETURN_IF_ERROR(call)                                                      \
  do {                                                                                     \
    const absl::Status ms_cuda_status = ::morphserve::kernels::cuda::ErrorOf(call, #call); \
    if (!ms_cuda_status.ok()) return ms_cuda_status;                                       \
  } while (false)
