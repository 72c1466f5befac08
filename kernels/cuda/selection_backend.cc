#include "kernels/selection_backend.h"

#include "kernels/cuda/device.h"
#include "kernels/cuda/selection_ops.h"

namespace morphserve::kernels::cuda {
namespace {

int64_t CoreGradBytes(int32_t, int32_t heads, int32_t head_dim, int32_t) {
  return RecurrentCoreGradBytes(heads, head_dim);
}

int64_t ProductGradBytes(int32_t rows, int32_t, int32_t k, int32_t) {
  return MatmulGradBytes(rows, k);
}

absl::Status Get(void* host, const void* from, int64_t bytes, Stream stream) {
  if (absl::Status status = CopyToHost(host, from, bytes, stream); !status.ok()) return status;
  return Synchronize(stream);
}

absl::Status Zero(void* data, int64_t bytes, Stream stream) {
  return FillBytes(data, 0, bytes, stream);
}

}  // namespace

// A call over a whole sequence takes less than a millisecond, and launches are what costs.
const SelectionBackend* CudaSelectionBackend() {
  static constexpr SelectionBackend kTable = {
      .name = "cuda",
      .on_device = true,
      .gate_mix = GateMix,
      .gate_grad = GateGrad,
      .scale = Scale,
      .spread_heads = SpreadHeads,
      .fold_heads = FoldHeads,
      .qk_rope = QkRope,
      .qk_rope_grad = QkRopeGrad,
      .sequence_attention = SequenceAttention,
      .sequence_attention_grad = SequenceAttentionGrad,
      .recurrent_features = RecurrentFeatures,
      .recurrent_features_grad = RecurrentFeaturesGrad,
      .recurrent_core = RecurrentCore,
      .recurrent_core_grad = RecurrentCoreGrad,
      .output_norm = OutputNorm,
      .output_norm_grad = OutputNormGrad,
      .rms_norm_grad = RmsNormGrad,
      .swiglu_grad = SwiGluGrad,
      .matmul_grad = MatmulGrad,
      .sequence_attention_bytes = SequenceAttentionBytes,
      .recurrent_core_grad_bytes = CoreGradBytes,
      .matmul_grad_bytes = ProductGradBytes,
      .put = CopyToDevice,
      .get = Get,
      .copy = CopyOnDevice,
      .zero = Zero,
      .wait = Synchronize};
  return &kTable;
}

}  // namespace morphserve::kernels::cuda
