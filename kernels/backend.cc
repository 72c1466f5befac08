#include "kernels/backend.h"

#include <string>

#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/gemm_target.h"

namespace morphserve::kernels {

const Backend& CpuBackend() {
  static constexpr Backend kTable = {.name = "cpu",
                                     .embed = cpu::Embed,
                                     .rope_rows = cpu::RopeRows,
                                     .copy_rows = cpu::CopyRows,
                                     .matmul = cpu::Matmul,
                                     .mlp = cpu::Mlp,
                                     .rms_norm = cpu::RmsNorm,
                                     .swiglu = cpu::SwiGlu,
                                     .qk_rope_append = cpu::QkRopeAppend,
                                     .attention = cpu::PagedAttention,
                                     .low_rank = cpu::LowRank,
                                     .recurrent_mixer = cpu::RecurrentMixer,
                                     .window_mixer = cpu::WindowMixer,
                                     .matmul_bytes = MatmulWorkspaceBytes,
                                     .attention_bytes = AttentionWorkspaceBytes,
                                     .recurrent_bytes = RecurrentWorkspaceBytes,
                                     .window_bytes = WindowWorkspaceBytes};
  return kTable;
}

const char* CpuDispatchDescription() {
  // Never destroyed: other static objects may log at exit.
  static const std::string& text =
      *new std::string(std::string(cpu::VectorTargetName()) + " vectors, " +
                       cpu::GemmTargetName(cpu::BestGemmTarget()) + " mat-mul");
  return text.c_str();
}

}  // namespace morphserve::kernels
