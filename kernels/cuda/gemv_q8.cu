// GEMV with kQ8 weights (gemv.cuh).
#include "kernels/cuda/gemv.cuh"

namespace morphserve::kernels::cuda {

absl::Status GemvQ8(const GemvCall& call, const GemvPlan& plan, Stream stream) {
  return Gemv<WeightFormat::kQ8>(call, plan, stream);
}

}  // namespace morphserve::kernels::cuda
