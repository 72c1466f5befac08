// Backend is the table of a backend's operations. The engine picks one table at start-up; callers
// hold no #ifdef and no virtual call per element.
//
// Memory: every pointer that an operation's arguments name, the data of spans of segments and emits
// included, is memory of the backend: the process's own on the CPU, device memory on CUDA. The
// argument structs themselves, spans of parts (MatmulPart, LowRankPart) and the PackedMatrix that
// parts point to are read on the host during the call. So a CUDA operation never looks at lists and
// segments on the host: their sizes and the `*_max` bounds in the arguments size its launch, and
// entries that say so (row -1, row_count 0) do nothing. A captured graph may be replayed with other
// contents of the same lists.
#pragma once

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/copy_rows.h"
#include "kernels/embed.h"
#include "kernels/gemm.h"
#include "kernels/low_rank.h"
#include "kernels/mlp.h"
#include "kernels/qk_rope_append.h"
#include "kernels/recurrent_mixer.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope_rows.h"
#include "kernels/window_mixer.h"

namespace morphserve::kernels {

struct Backend {
  const char* name = "";
  absl::Status (*embed)(const EmbedArgs&, Stream) = nullptr;
  absl::Status (*rope_rows)(const RopeRowsArgs&, Stream) = nullptr;
  absl::Status (*copy_rows)(const CopyRowsArgs&, Stream) = nullptr;
  absl::Status (*matmul)(const MatmulArgs&, Stream) = nullptr;
  absl::Status (*mlp)(const MlpArgs&, Stream) = nullptr;
  absl::Status (*rms_norm)(const RmsNormArgs&, Stream) = nullptr;
  absl::Status (*swiglu)(const SwiGluArgs&, Stream) = nullptr;
  absl::Status (*qk_rope_append)(const QkRopeAppendArgs&, Stream) = nullptr;
  absl::Status (*attention)(const AttentionArgs&, Stream) = nullptr;
  absl::Status (*low_rank)(const LowRankArgs&, Stream) = nullptr;
  absl::Status (*recurrent_mixer)(const RecurrentMixerArgs&, Stream) = nullptr;
  absl::Status (*window_mixer)(const WindowMixerArgs&, Stream) = nullptr;

  // Workspaces; the arguments as in the functions of the operations' headers. `threads` is the
  // CPU's.
  int64_t (*matmul_bytes)(int32_t rows, int32_t k) = nullptr;
  int64_t (*attention_bytes)(int32_t segments_max, int32_t rows_max, int32_t kv_len_max,
                             int32_t heads, int32_t head_dim, int32_t threads) = nullptr;
  int64_t (*recurrent_bytes)(int32_t rows_max, int32_t heads, int32_t head_dim,
                             int32_t threads) = nullptr;
  int64_t (*window_bytes)(int32_t segments_max, int32_t rows_max, const SlotShape& shape,
                          int32_t threads) = nullptr;
};

// The CPU table. Never null.
const Backend& CpuBackend();

// What run-time dispatch chose on this machine, for the log: "AVX3 vectors, AMX mat-mul".
const char* CpuDispatchDescription();

}  // namespace morphserve::kernels
