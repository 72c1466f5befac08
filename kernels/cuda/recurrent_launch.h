// The launchers of the recurrent mixer's kernels, and the sizes that they are compiled for.
#pragma once

#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"

namespace morphserve::kernels::cuda {

struct ChunkParts;
struct RecurrentWork;

// Head sizes that have kernels; others run in the next one, guarded.
constexpr int32_t PaddedDim(int32_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}

// f(the padded size, whether it is the size), both as types with a `value`.
template <typename F>
auto WithPaddedDim(int32_t head_dim, F&& f) {
  const auto with_exact = [&](auto pad) {
    return head_dim == pad.value ? f(pad, std::true_type()) : f(pad, std::false_type());
  };
  switch (PaddedDim(head_dim)) {
    case 64: return with_exact(std::integral_constant<int, 64>());
    case 128: return with_exact(std::integral_constant<int, 128>());
    default: return with_exact(std::integral_constant<int, 256>());
  }
}

// Segments of one row, from the inputs to the outputs, but without the norm over all heads.
absl::Status LaunchRecurrentDecode(const RecurrentWork& work, void* stream);
// Segments of more rows in the chunked form up to the outputs before the norm: what each chunk
// needs, and the walk over the chunks.
absl::Status LaunchRecurrentChunks(const RecurrentWork& work, const ChunkParts& parts,
                                   void* stream);
absl::Status LaunchRecurrentChunkScan(const RecurrentWork& work, const ChunkParts& parts,
                                      void* stream);
// Both in one, with norm and gate where the norm is each head's own, and whether they should be: a
// block a head fills the device, and no more of the segments may be decode rows than there is room
// for them to be long.
constexpr int64_t kManyHeads = 96;
bool ChunksAreFused(const RecurrentWork& work);
absl::Status LaunchRecurrentFused(const RecurrentWork& work, void* stream);
// And token by token: prepared q, k, v and gates, and the recurrence.
absl::Status LaunchRecurrentFeatures(const RecurrentWork& work, void* stream);
absl::Status LaunchRecurrentScan(const RecurrentWork& work, void* stream);
// What the convolution remembers of them.
absl::Status LaunchRecurrentRemember(const RecurrentWork& work, void* stream);
// Norm and gate of segments of more rows where the norm is each head's own, and of all segments
// where it is over all heads.
absl::Status LaunchRecurrentFinishHeads(const RecurrentWork& work, void* stream);
absl::Status LaunchRecurrentFinishRows(const RecurrentWork& work, void* stream);

}  // namespace morphserve::kernels::cuda
