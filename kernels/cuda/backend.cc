#include "kernels/cuda/device.h"
#include "kernels/cuda/ops.h"

namespace morphserve::kernels::cuda {

const Backend* CudaBackend() {
  static constexpr Backend kTable = {.name = "cuda",
                                     .embed = Embed,
                                     .rope_rows = RopeRows,
                                     .copy_rows = CopyRows,
                                     .matmul = Matmul,
                                     .mlp = Mlp,
                                     .rms_norm = RmsNorm,
                                     .swiglu = SwiGlu,
                                     .qk_rope_append = QkRopeAppend,
                                     .attention = PagedAttention,
                                     .low_rank = LowRank,
                                     .recurrent_mixer = RecurrentMixer,
                                     .window_mixer = WindowMixer,
                                     .matmul_bytes = MatmulBytes,
                                     .attention_bytes = AttentionBytes,
                                     .recurrent_bytes = RecurrentBytes,
                                     .window_bytes = WindowBytes};
  return &kTable;
}

}  // namespace morphserve::kernels::cuda
