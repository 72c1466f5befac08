#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {

const Backend* CudaBackend() {
  static constexpr Backend kTable = {.name = "cuda", .rms_norm = RmsNorm};
  return &kTable;
}

}  // namespace morphserve::kernels::cuda
