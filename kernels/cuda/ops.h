// The CUDA implementations of the operations in kernels/*.h. Each is asynchronous: it launches into
// the stream and returns; faults of the device come out of Synchronize (device.h). Pointers as
// kernels/backend.h says.
#pragma once

#include "kernels/backend.h"

namespace morphserve::kernels::cuda {

absl::Status RmsNorm(const RmsNormArgs& args, Stream stream);

}  // namespace morphserve::kernels::cuda
