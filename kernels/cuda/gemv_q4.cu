// GEMV with kQ4 weights (gemv.cuh).
#include "kernels/cuda/gemv.cuh"

namespace morphserve::kernels::cuda {

absl::Status GemvQ4(const MatmulArgs& args, const GemvPlan& plan, Stream stream) {
  return Gemv<WeightFormat::kQ4>(args, plan, stream);
}

}  // namespace morphserve::kernels::cuda
