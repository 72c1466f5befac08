// Backend is the table of a backend's operations. The engine picks one table at start-up; callers
// hold no #ifdef and no virtual call per element.
#pragma once

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/low_rank.h"
#include "kernels/qk_rope_append.h"
#include "kernels/recurrent_mixer.h"
#include "kernels/rmsnorm.h"
#include "kernels/window_mixer.h"

namespace morphserve::kernels {

struct Backend {
  const char* name = "";
  absl::Status (*matmul)(const MatmulArgs&, Stream) = nullptr;
  absl::Status (*rms_norm)(const RmsNormArgs&, Stream) = nullptr;
  absl::Status (*swiglu)(const SwiGluArgs&, Stream) = nullptr;
  absl::Status (*qk_rope_append)(const QkRopeAppendArgs&, Stream) = nullptr;
  absl::Status (*attention)(const AttentionArgs&, Stream) = nullptr;
  absl::Status (*low_rank)(const LowRankArgs&, Stream) = nullptr;
  absl::Status (*recurrent_mixer)(const RecurrentMixerArgs&, Stream) = nullptr;
  absl::Status (*window_mixer)(const WindowMixerArgs&, Stream) = nullptr;
};

// The CPU table. Never null.
const Backend& CpuBackend();

// What run-time dispatch chose on this machine, for the log: "AVX3 vectors, AMX mat-mul".
const char* CpuDispatchDescription();

}  // namespace morphserve::kernels
