// GEMV with kFp8 weights (gemv.cuh).
#include "kernels/cuda/gemv.cuh"

namespace morphserve::kernels::cuda {

absl::Status GemvFp8(const GemvCall& call, const GemvPlan& plan, Stream stream) {
  return Gemv<WeightFormat::kFp8>(call, plan, stream);
}

}  // namespace morphserve::kernels::cuda
