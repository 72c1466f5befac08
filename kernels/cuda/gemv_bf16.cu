// GEMV with kBF16 weights (gemv.cuh).
#include "kernels/cuda/gemv.cuh"

namespace morphserve::kernels::cuda {

absl::Status GemvBf16(const MatmulArgs& args, const GemvPlan& plan, Stream stream) {
  return Gemv<WeightFormat::kBF16>(args, plan, stream);
}

}  // namespace morphserve::kernels::cuda
