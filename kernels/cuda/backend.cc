#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {

const Backend* CudaBackend() {
  static constexpr Backend kTable = {.name = "cuda",
                                     .embed = Embed,
                                     .rope_rows = RopeRows,
                                     .copy_rows = CopyRows,
                                     .matmul = Matmul,
                                     .rms_norm = RmsNorm,
                                     .swiglu = SwiGlu,
                                     .low_rank = LowRank,
                                     .matmul_bytes = MatmulBytes};
  return &kTable;
}

}  // namespace morphserve::kernels::cuda
