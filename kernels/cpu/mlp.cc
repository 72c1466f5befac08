#include "kernels/mlp.h"

#include "kernels/common/mlp_stages.h"

namespace morphserve::kernels::cpu {

absl::Status Mlp(const MlpArgs& args, Stream stream) {
  if (absl::Status status = CheckMlp(args); !status.ok()) return status;
  return MlpInStages(MlpProducts(args), stream, Matmul);
}

}  // namespace morphserve::kernels::cpu
