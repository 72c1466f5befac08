#include "engine/runner/cuda_runner.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "engine/base/status_macros.h"
#include "kernels/cuda/graph.h"

namespace morphserve {

CudaRunner::CudaRunner(std::unique_ptr<HybridModel> model, std::byte* arena_base,
                       kernels::Stream stream, kernels::cpu::ThreadPool* pool, int32_t pieces,
                       int32_t logit_rows_max)
    : model_(std::move(model)),
      arena_base_(arena_base),
      stream_(stream),
      logit_rows_max_(logit_rows_max),
      sampler_(pool, pieces) {}

absl::Status CudaRunner::Run(const StepBatch& batch, StepResult* result) {
  result->samples.assign(batch.logit_rows.size(), {});
  StepShape shape;
  const bool decode = ShapeOfDecode(batch, model_->limits(), model_->config().layers, &shape);
  MS_RETURN_IF_ERROR(decode ? Replay(batch, shape, result) : RunEagerly(batch, result));
  MS_RETURN_IF_ERROR(model_->Finish());
  result->nonfinite = model_->nonfinite();
  return absl::OkStatus();
}

absl::Status CudaRunner::RunEagerly(const StepBatch& batch, StepResult* result) {
  MS_RETURN_IF_ERROR(model_->Forward(batch, arena_base_));
  const size_t count = batch.logit_rows.size();
  for (size_t first = 0; first < count; first += static_cast<size_t>(logit_rows_max_)) {
    const size_t block = std::min(count - first, static_cast<size_t>(logit_rows_max_));
    rows_.clear();
    for (size_t i = 0; i < block; ++i) rows_.push_back(batch.logit_rows[first + i].row);
    MS_ASSIGN_OR_RETURN(const float* logits,
                        model_->Logits(rows_.data(), static_cast<int32_t>(block)));
    MS_RETURN_IF_ERROR(Sample(batch, first, block, logits, result));
  }
  return absl::OkStatus();
}

absl::Status CudaRunner::Replay(const StepBatch& batch, const StepShape& shape,
                                StepResult* result) {
  MS_RETURN_IF_ERROR(model_->Stage(batch, arena_base_, shape.rows, shape.kv_len_max));
  StepGraphs::Entry* entry = graphs_.Find(shape, model_->stage_generation());
  if (entry->graph.empty()) MS_RETURN_IF_ERROR(Record(shape, entry));
  MS_RETURN_IF_ERROR(entry->graph.Launch(stream_));
  return Sample(batch, 0, batch.logit_rows.size(), entry->logits, result);
}

absl::Status CudaRunner::Record(const StepShape& shape, StepGraphs::Entry* entry) {
  rows_.resize(static_cast<size_t>(shape.rows));
  std::iota(rows_.begin(), rows_.end(), 0);
  MS_RETURN_IF_ERROR(kernels::cuda::Graph::BeginCapture(stream_));
  absl::Status status = model_->Enqueue();
  if (status.ok()) {
    absl::StatusOr<float*> logits = model_->Logits(rows_.data(), shape.rows);
    status = logits.status();
    if (status.ok()) entry->logits = *logits;
  }
  // A recording must be ended whatever became of it.
  absl::StatusOr<kernels::cuda::Graph> graph = kernels::cuda::Graph::EndCapture(stream_);
  MS_RETURN_IF_ERROR(status);
  MS_RETURN_IF_ERROR(graph.status());
  entry->graph = *std::move(graph);
  return absl::OkStatus();
}

absl::Status CudaRunner::Sample(const StepBatch& batch, size_t first, size_t count,
                                const float* logits, StepResult* result) {
  const int32_t vocab = model_->config().vocab;
  logits_.resize(count * static_cast<size_t>(vocab));
  MS_RETURN_IF_ERROR(
      model_->ToHost(logits_.data(), logits, static_cast<int64_t>(logits_.size() * sizeof(float))));
  sampler_.Sample(std::span(batch.logit_rows).subspan(first, count), logits_.data(), vocab,
                  std::span(result->samples).subspan(first, count));
  return absl::OkStatus();
}

}  // namespace morphserve
