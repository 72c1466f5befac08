#include "kernels/cuda/graph.h"

#include <utility>

#include "kernels/cuda/error.h"

namespace morphserve::kernels::cuda {

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(graph_, other.graph_);
  return *this;
}

Graph::~Graph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
}

absl::Status Graph::BeginCapture(Stream stream) {
  return ErrorOf(cudaStreamBeginCapture(StreamOf(stream), cudaStreamCaptureModeThreadLocal),
                 "begin a graph");
}

absl::StatusOr<Graph> Graph::EndCapture(Stream stream) {
  cudaGraph_t recorded = nullptr;
  MS_CUDA_RETURN_IF_ERROR(cudaStreamEndCapture(StreamOf(stream), &recorded));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, recorded, 0);
  cudaGraphDestroy(recorded);
  MS_CUDA_RETURN_IF_ERROR(made);
  Graph graph;
  graph.graph_ = executable;
  return graph;
}

absl::Status Graph::Launch(Stream stream) const {
  return ErrorOf(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_), StreamOf(stream)),
                 "launch a graph");
}

}  // namespace morphserve::kernels::cuda
