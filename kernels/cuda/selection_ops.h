// The CUDA implementations of the operations that only the selection of layers needs: mixes, norms,
// products and mixers over whole sequences in contiguous rows, and their gradients. The contracts
// are the operations' own headers (kernels/*.h); where a line there says "cuda:", that holds here.
// Each is asynchronous and takes pointers of device memory; structs, and the PackedMatrix that one
// points to, are read on the host. Zeros: FillBytes (device.h); gathering: CopyRows (ops.h).
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/activation_grad.h"
#include "kernels/common/stream.h"
#include "kernels/copy_rows.h"
#include "kernels/gate_mix.h"
#include "kernels/head_spread.h"
#include "kernels/matmul_grad.h"
#include "kernels/output_norm.h"
#include "kernels/qk_rope.h"
#include "kernels/recurrent_core.h"
#include "kernels/recurrent_features.h"
#include "kernels/rmsnorm_grad.h"
#include "kernels/scale.h"
#include "kernels/sequence_attention.h"

namespace morphserve::kernels::cuda {

absl::Status Scale(const float* from, float factor, float* to, int64_t count, Stream stream);
absl::Status GateMix(const GateMixArgs& args, Stream stream);
absl::Status GateGrad(const GateGradArgs& args, Stream stream);
absl::Status SpreadHeads(const HeadSpreadShape& shape, const float* narrow, int64_t narrow_stride,
                         float* wide, int64_t wide_stride, Stream stream);
absl::Status FoldHeads(const HeadSpreadShape& shape, const float* wide, int64_t wide_stride,
                       float* narrow, int64_t narrow_stride, Stream stream);
absl::Status SwiGluGrad(const SwiGluGradArgs& args, Stream stream);
absl::Status RmsNormGrad(const RmsNormGradArgs& args, Stream stream);
absl::Status OutputNorm(const OutputNormArgs& args, Stream stream);
absl::Status OutputNormGrad(const OutputNormGradArgs& args, Stream stream);
absl::Status QkRope(const QkRopeArgs& args, Stream stream);
absl::Status QkRopeGrad(const QkRopeGradArgs& args, Stream stream);
absl::Status RecurrentFeatures(const RecurrentFeaturesArgs& args, Stream stream);
absl::Status RecurrentFeaturesGrad(const RecurrentFeaturesGradArgs& args, Stream stream);
// Weights as UploadMatrix made them.
absl::Status MatmulGrad(const MatmulGradArgs& args, Stream stream);
absl::Status SequenceAttention(const SequenceAttentionArgs& args, Stream stream);
absl::Status SequenceAttentionGrad(const SequenceAttentionGradArgs& args, Stream stream);
absl::Status RecurrentCore(const RecurrentCoreArgs& args, Stream stream);
absl::Status RecurrentCoreGrad(const RecurrentCoreGradArgs& args, Stream stream);

// Workspaces, aligned to 64 bytes like the CPU's. Of MatmulGrad: for up to `rows_max` rows and
// matrices of up to `k_max` inputs, any number of outputs. Of the attention: as
// SequenceAttentionWorkspaceBytes; 0 without the gradient. Of the recurrence: any number of rows.
int64_t MatmulGradBytes(int32_t rows_max, int32_t k_max);
int64_t SequenceAttentionBytes(int32_t rows, int32_t tokens, int32_t heads, int32_t kv_heads,
                               int32_t head_dim, bool grad);
int64_t RecurrentCoreGradBytes(int32_t heads, int32_t head_dim);

}  // namespace morphserve::kernels::cuda
