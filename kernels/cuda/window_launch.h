// The launcher of the window mixer's decode rows.
#pragma once

#include "absl/status/status.h"

namespace morphserve::kernels::cuda {

struct WindowWork;

// Segments of one row.
absl::Status LaunchWindowDecode(const WindowWork& work, void* stream);

}  // namespace morphserve::kernels::cuda
