// GEMV with kBF16 weights (gemv.cuh).
#include "kernels/cuda/gemv.cuh"

namespace morphserve::kernels::cuda {

absl::Status GemvBf16(const GemvCall& call, const GemvPlan& plan, Stream stream) {
  return Gemv<WeightFormat::kBF16>(call, plan, stream);
}

}  // namespace morphserve::kernels::cuda
