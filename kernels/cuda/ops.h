// The CUDA implementations of the operations in kernels/*.h. Each is asynchronous: it launches into
// the stream and returns; faults of the device come out of Synchronize (device.h). Pointers as
// kernels/backend.h says. Lists and segments are not seen by the host, so of what they hold only
// sizes are checked.
//
// Pages and slots have the sizes of kernels/qk_rope_append.h and kernels/slot_layout.h, but their
// contents are in an order of this backend's own: of pages see page_layout.h, of states and rings
// recurrent_steps.cuh and window_mixer.cu.
#pragma once

#include "kernels/backend.h"

namespace morphserve::kernels::cuda {

absl::Status Embed(const EmbedArgs& args, Stream stream);
absl::Status RopeRows(const RopeRowsArgs& args, Stream stream);
absl::Status CopyRows(const CopyRowsArgs& args, Stream stream);
// Weights as UploadMatrix made them. Up to 64 rows x enters exactly or nearly so (gemv.h), and the
// launch does not depend on the row list: it can be captured in a graph. More rows need the
// workspace and cuBLASLt, which also take some calls of 9 rows and more without a list; x is then
// rounded to bf16.
absl::Status Matmul(const MatmulArgs& args, Stream stream);
int64_t MatmulBytes(int32_t rows, int32_t k);  // k 0, a rank that a branch lacks: 0.
// Where Matmul takes the large product for all three matrices, neither normed nor gated rows are
// written as f32; otherwise two calls of Matmul.
absl::Status Mlp(const MlpArgs& args, Stream stream);
absl::Status RmsNorm(const RmsNormArgs& args, Stream stream);
absl::Status SwiGlu(const SwiGluArgs& args, Stream stream);
absl::Status LowRank(const LowRankArgs& args, Stream stream);
absl::Status QkRopeAppend(const QkRopeAppendArgs& args, Stream stream);
// What it refuses.
absl::Status CheckAppend(const QkRopeAppendArgs& args);
absl::Status PagedAttention(const AttentionArgs& args, Stream stream);
// Both may read states and rings while kernels before them in the stream still run: between two
// calls on the same slot there is a copy, as of a step's lists, or the stream is waited for.
absl::Status RecurrentMixer(const RecurrentMixerArgs& args, Stream stream);
absl::Status WindowMixer(const WindowMixerArgs& args, Stream stream);

// Workspaces, as in kernels/backend.h. `rows_max` of RecurrentBytes also bounds the places
// (row_begin + row_count) of a call's segments.
int64_t AttentionBytes(int32_t segments_max, int32_t rows_max, int32_t kv_len_max, int32_t heads,
                       int32_t head_dim, int32_t threads);
int64_t RecurrentBytes(int32_t rows_max, int32_t heads, int32_t head_dim, int32_t threads);
int64_t WindowBytes(int32_t segments_max, int32_t rows_max, const SlotShape& shape,
                    int32_t threads);

}  // namespace morphserve::kernels::cuda
