// The launchers of the window mixer's decode rows and of the attention of its chunks.
#pragma once

#include "absl/status/status.h"

namespace morphserve::kernels::cuda {

struct WindowWork;

// Segments of one row.
absl::Status LaunchWindowDecode(const WindowWork& work, void* stream);

// Segments of several rows, whose queries and keys are normed and rotated.
absl::Status LaunchWindowAttend(const WindowWork& work, void* stream);

// The same in a form for 16-bit rings, and whether the call can take it.
bool HasHalfForm(const WindowWork& work);
absl::Status LaunchWindowAttendHalf(const WindowWork& work, void* stream);

}  // namespace morphserve::kernels::cuda
