// GEMV with kQ4 weights (gemv.cuh).
#include "kernels/cuda/gemv.cuh"

namespace morphserve::kernels::cuda {

absl::Status GemvQ4(const GemvCall& call, const GemvPlan& plan, Stream stream) {
  return Gemv<WeightFormat::kQ4>(call, plan, stream);
}

}  // namespace morphserve::kernels::cuda
