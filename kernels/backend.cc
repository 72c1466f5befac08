#include "kernels/backend.h"

#include "kernels/cpu/dispatch.h"

namespace morphserve::kernels {

const Backend& CpuBackend() {
  static constexpr Backend kTable = {.name = "cpu",
                                     .matmul = cpu::Matmul,
                                     .rms_norm = cpu::RmsNorm,
                                     .swiglu = cpu::SwiGlu,
                                     .qk_rope_append = cpu::QkRopeAppend,
                                     .attention = cpu::PagedAttention};
  return kTable;
}

const char* CpuDispatchDescription() { return cpu::VectorTargetName(); }

}  // namespace morphserve::kernels
