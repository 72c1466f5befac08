// Graph is a recorded sequence of launches that starts again with one call: a decode step is some
// hundred small kernels, whose launches one by one would take longer than they run. What they read
// and write is fixed by address; the contents may differ in every replay. Thread rule: that of the
// stream it was recorded in. Source: CUDA C++ Programming Guide, stream capture.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels::cuda {

class Graph {
 public:
  Graph() = default;
  Graph(Graph&& other) noexcept { *this = static_cast<Graph&&>(other); }
  Graph& operator=(Graph&& other) noexcept;
  ~Graph();

  // From here on launches into the stream are recorded and not run.
  static absl::Status BeginCapture(Stream stream);
  // Always ends the recording, also after a failed launch.
  static absl::StatusOr<Graph> EndCapture(Stream stream);
  absl::Status Launch(Stream stream) const;
  bool empty() const { return graph_ == nullptr; }

 private:
  void* graph_ = nullptr;  // A cudaGraphExec_t.
};

}  // namespace morphserve::kernels::cuda
