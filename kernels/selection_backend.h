// SelectionBackend is the table of what the selection of layers needs of a backend beside its
// Backend (backend.h): both mixers over one whole sequence in contiguous rows, the gradients, and
// memory. Memory as there: every pointer that arguments name is memory of the backend, sums and
// workspaces included; the argument structs and PackedMatrix are read on the host during the call.
#pragma once

#include "kernels/activation_grad.h"
#include "kernels/backend.h"
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

namespace morphserve::kernels {

struct SelectionBackend {
  const char* name = "";

  // The memory is a device's, and calls only enter the stream's queue: `wait` tells that they are
  // done.
  bool on_device = false;
  // How much of a sequence a call is given, so that it is short, and yet worth its start; 0: all.
  int32_t rows = 0;             // A multiple of 64.
  int32_t product_rows = 0;     // Of the gradient of a product,
  int32_t product_outputs = 0;  // and its outputs.

  absl::Status (*gate_mix)(const GateMixArgs&, Stream) = nullptr;
  absl::Status (*gate_grad)(const GateGradArgs&, Stream) = nullptr;
  absl::Status (*scale)(const float* from, float factor, float* to, int64_t count,
                        Stream) = nullptr;
  absl::Status (*spread_heads)(const HeadSpreadShape&, const float* narrow, int64_t narrow_stride,
                               float* wide, int64_t wide_stride, Stream) = nullptr;
  absl::Status (*fold_heads)(const HeadSpreadShape&, const float* wide, int64_t wide_stride,
                             float* narrow, int64_t narrow_stride, Stream) = nullptr;
  absl::Status (*qk_rope)(const QkRopeArgs&, Stream) = nullptr;
  absl::Status (*qk_rope_grad)(const QkRopeGradArgs&, Stream) = nullptr;
  absl::Status (*sequence_attention)(const SequenceAttentionArgs&, Stream) = nullptr;
  absl::Status (*sequence_attention_grad)(const SequenceAttentionGradArgs&, Stream) = nullptr;
  absl::Status (*recurrent_features)(const RecurrentFeaturesArgs&, Stream) = nullptr;
  absl::Status (*recurrent_features_grad)(const RecurrentFeaturesGradArgs&, Stream) = nullptr;
  absl::Status (*recurrent_core)(const RecurrentCoreArgs&, Stream) = nullptr;
  absl::Status (*recurrent_core_grad)(const RecurrentCoreGradArgs&, Stream) = nullptr;
  absl::Status (*output_norm)(const OutputNormArgs&, Stream) = nullptr;
  absl::Status (*output_norm_grad)(const OutputNormGradArgs&, Stream) = nullptr;
  absl::Status (*rms_norm_grad)(const RmsNormGradArgs&, Stream) = nullptr;
  absl::Status (*swiglu_grad)(const SwiGluGradArgs&, Stream) = nullptr;
  absl::Status (*matmul_grad)(const MatmulGradArgs&, Stream) = nullptr;

  // Workspaces for calls of up to so many rows, in sequences of up to `tokens`; of a product with
  // any matrix of up to n outputs and k inputs. `threads` is the CPU's.
  int64_t (*sequence_attention_bytes)(int32_t rows, int32_t tokens, int32_t heads, int32_t kv_heads,
                                      int32_t head_dim, bool grad) = nullptr;
  int64_t (*recurrent_core_grad_bytes)(int32_t tokens, int32_t heads, int32_t head_dim,
                                       int32_t threads) = nullptr;
  int64_t (*matmul_grad_bytes)(int32_t rows, int32_t n, int32_t k, int32_t threads) = nullptr;

  // Memory of the backend and of the host, in the order of the stream; `get` waits. `put` may
  // return before the bytes are there, but has read them.
  absl::Status (*put)(void* to, const void* host, int64_t bytes, Stream) = nullptr;
  absl::Status (*get)(void* host, const void* from, int64_t bytes, Stream) = nullptr;
  absl::Status (*copy)(void* to, const void* from, int64_t bytes, Stream) = nullptr;
  absl::Status (*zero)(void* data, int64_t bytes, Stream) = nullptr;
  // Until everything in the stream is done; the first error of any of it.
  absl::Status (*wait)(Stream) = nullptr;
};

// The CPU table.
const SelectionBackend& CpuSelectionBackend();

}  // namespace morphserve::kernels
