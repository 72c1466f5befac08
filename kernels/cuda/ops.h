// The CUDA implementations of the operations in kernels/*.h. Each is asynchronous: it launches into
// the stream and returns; faults of the device come out of Synchronize (device.h). Pointers as
// kernels/backend.h says.
#pragma once

#include "kernels/backend.h"

namespace morphserve::kernels::cuda {

absl::Status Embed(const EmbedArgs& args, Stream stream);
absl::Status RopeRows(const RopeRowsArgs& args, Stream stream);
absl::Status CopyRows(const CopyRowsArgs& args, Stream stream);
// Weights as UploadMatrix made them. Up to 64 rows x enters exactly or nearly so (gemv.h), and the
// launch does not depend on the row list: it can be captured in a graph. More rows need the
// workspace and cuBLASLt; x is rounded to bf16.
absl::Status Matmul(const MatmulArgs& args, Stream stream);
int64_t MatmulBytes(int32_t rows, int32_t k);
absl::Status RmsNorm(const RmsNormArgs& args, Stream stream);
absl::Status SwiGlu(const SwiGluArgs& args, Stream stream);
absl::Status LowRank(const LowRankArgs& args, Stream stream);

}  // namespace morphserve::kernels::cuda
