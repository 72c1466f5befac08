#include "kernels/selection_backend.h"

#include <cstring>

namespace morphserve::kernels {
namespace {

int64_t CoreGradBytes(int32_t, int32_t, int32_t head_dim, int32_t threads) {
  return RecurrentCoreGradWorkspaceBytes(head_dim, threads);
}

int64_t ProductGradBytes(int32_t, int32_t, int32_t k, int32_t threads) {
  return MatmulGradWorkspaceBytes(k, threads);
}

absl::Status Copy(void* to, const void* from, int64_t bytes, Stream) {
  std::memcpy(to, from, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::Status Zero(void* data, int64_t bytes, Stream) {
  std::memset(data, 0, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::Status Wait(Stream) { return absl::OkStatus(); }

}  // namespace

const SelectionBackend& CpuSelectionBackend() {
  static constexpr SelectionBackend kTable = {
      .name = "cpu",
      .rows = 64,
      // Unpacking weights is what a narrow block of rows would mostly do.
      .product_rows = 256,
      .product_outputs = 256,
      .gate_mix = cpu::GateMix,
      .gate_grad = cpu::GateGrad,
      .scale = cpu::Scale,
      .spread_heads = cpu::SpreadHeads,
      .fold_heads = cpu::FoldHeads,
      .qk_rope = cpu::QkRope,
      .qk_rope_grad = cpu::QkRopeGrad,
      .sequence_attention = cpu::SequenceAttention,
      .sequence_attention_grad = cpu::SequenceAttentionGrad,
      .recurrent_features = cpu::RecurrentFeatures,
      .recurrent_features_grad = cpu::RecurrentFeaturesGrad,
      .recurrent_core = cpu::RecurrentCore,
      .recurrent_core_grad = cpu::RecurrentCoreGrad,
      .output_norm = cpu::OutputNorm,
      .output_norm_grad = cpu::OutputNormGrad,
      .rms_norm_grad = cpu::RmsNormGrad,
      .swiglu_grad = cpu::SwiGluGrad,
      .matmul_grad = cpu::MatmulGrad,
      .sequence_attention_bytes = SequenceAttentionWorkspaceBytes,
      .recurrent_core_grad_bytes = CoreGradBytes,
      .matmul_grad_bytes = ProductGradBytes,
      .put = Copy,
      .get = Copy,
      .copy = Copy,
      .zero = Zero,
      .wait = Wait};
  return kTable;
}

}  // namespace morphserve::kernels
