// GEMV with kQ8 weights (gemv.cuh).
#include "kernels/cuda/gemv.cuh"

namespace morphserve::kernels::cuda {

absl::Status GemvQ8(const MatmulArgs& args, const GemvPlan& plan, Stream stream) {
  return Gemv<WeightFormat::kQ8>(args, plan, stream);
}

}  // namespace morphserve::kernels::cuda
