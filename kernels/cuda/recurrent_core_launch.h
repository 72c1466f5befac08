// What the recurrence over a sequence and its gradient share on the host: the check, and what a
// replay of rows leaves for the gradient.
#pragma once

#include <type_traits>

#include "absl/status/status.h"
#include "kernels/common/stream.h"
#include "kernels/cuda/host_device.h"
#include "kernels/recurrent_core.h"

namespace morphserve::kernels::cuda {

// Of a group of rows, padded to `padded` values and keys: per row and head the state after its
// decay (S') and the gradient of the state after the row (dS), both [value][key], and e and du.
struct ReplayBuffers {
  float* kept = nullptr;
  float* slopes = nullptr;
  float* errors = nullptr;
  float* dus = nullptr;
  int32_t padded = 0;
  int32_t heads = 0;
  int32_t first_row = 0;

  MS_HOST_DEVICE int64_t Place(int row, int head) const {
    return int64_t{row - first_row} * heads + head;
  }
  MS_HOST_DEVICE float* StateAt(int row, int head) const {
    return kept + Place(row, head) * padded * padded;
  }
  MS_HOST_DEVICE float* SlopeAt(int row, int head) const {
    return slopes + Place(row, head) * padded * padded;
  }
  MS_HOST_DEVICE float* ErrorAt(int row, int head) const {
    return errors + Place(row, head) * padded;
  }
  MS_HOST_DEVICE float* DuAt(int row, int head) const { return dus + Place(row, head) * padded; }
};

absl::Status CheckRecurrentCore(const RecurrentCoreShape& shape);

// Fills `kept` and `errors` for the rows of `rows`, whole blocks of 64.
absl::Status ReplayRecurrentCore(const RecurrentCoreGradArgs& args, const RecurrentCoreShape& rows,
                                 const ReplayBuffers& buffers, Stream stream);

// Keys of a lane for a head size, as a type.
template <typename F>
absl::Status WithKeys(int32_t head_dim, F&& f) {
  if (head_dim <= 32) return f(std::integral_constant<int, 4>());
  if (head_dim <= 64) return f(std::integral_constant<int, 8>());
  if (head_dim <= 128) return f(std::integral_constant<int, 16>());
  return f(std::integral_constant<int, 32>());
}

}  // namespace morphserve::kernels::cuda
