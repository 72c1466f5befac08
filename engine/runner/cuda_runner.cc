#include "engine/runner/cuda_runner.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/graph.h"

namespace morphserve {

absl::StatusOr<std::unique_ptr<CudaRunner>> CudaRunner::Create(std::unique_ptr<HybridModel> model,
                                                               std::byte* arena_base,
                                                               kernels::Stream stream,
                                                               int32_t pieces) {
  std::unique_ptr<CudaRunner> runner(new CudaRunner(std::move(model), arena_base, stream));
  MS_ASSIGN_OR_RETURN(runner->sampler_, kernels::cuda::DeviceSampler::Create(
                                            {.rows_max = runner->model_->limits().logit_rows,
                                             .vocab = runner->model_->config().vocab,
                                             .piece_count = pieces}));
  return runner;
}

absl::Status CudaRunner::Run(const StepBatch& batch, StepResult* result) {
  MS_CHECK(under_way_.empty());
  MS_RETURN_IF_ERROR(Begin(batch));
  return End(result);
}

absl::Status CudaRunner::Begin(const StepBatch& batch) {
  StepShape shape;
  UnderWay step;
  if (ShapeOfDecode(batch, model_->limits(), model_->config().layers, &shape)) {
    MS_RETURN_IF_ERROR(Replay(batch, shape));
    MS_RETURN_IF_ERROR(model_->Close());
  } else {
    MS_CHECK(batch.follows.empty() && under_way_.empty());
    step.done = true;
    MS_RETURN_IF_ERROR(RunEagerly(batch, &step.result));
  }
  step.result.samples.resize(batch.logit_rows.size());
  under_way_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status CudaRunner::End(StepResult* result) {
  MS_CHECK(!under_way_.empty());
  const bool done = under_way_.front().done;
  *result = std::move(under_way_.front().result);
  under_way_.pop_front();
  if (done) return absl::OkStatus();
  MS_RETURN_IF_ERROR(model_->Finish());
  result->nonfinite = model_->nonfinite();
  Collect(0, result);
  return absl::OkStatus();
}

absl::Status CudaRunner::RunEagerly(const StepBatch& batch, StepResult* result) {
  MS_RETURN_IF_ERROR(model_->Forward(batch, arena_base_));
  const auto most = static_cast<size_t>(model_->limits().logit_rows);
  const size_t count = batch.logit_rows.size();
  result->samples.assign(count, {});
  for (size_t first = 0; first < count; first += most) {
    const size_t block = std::min(count - first, most);
    rows_.clear();
    for (size_t i = 0; i < block; ++i) rows_.push_back(batch.logit_rows[first + i].row);
    MS_ASSIGN_OR_RETURN(const float* logits,
                        model_->Logits(rows_.data(), static_cast<int32_t>(block)));
    MS_RETURN_IF_ERROR(Sample(batch, first, block, logits));
    MS_RETURN_IF_ERROR(kernels::cuda::Synchronize(stream_));
    Collect(first, result);
  }
  MS_RETURN_IF_ERROR(model_->Finish());
  result->nonfinite = model_->nonfinite();
  return absl::OkStatus();
}

absl::Status CudaRunner::Replay(const StepBatch& batch, const StepShape& shape) {
  MS_RETURN_IF_ERROR(model_->Stage(batch, arena_base_, shape.rows, shape.kv_len_max));
  StepGraphs::Entry* entry = graphs_.Find(shape, model_->stage_generation());
  if (entry->graph.empty()) MS_RETURN_IF_ERROR(Record(shape, entry));
  if (!batch.follows.empty()) MS_RETURN_IF_ERROR(model_->Follow(sampler_->tokens()));
  MS_RETURN_IF_ERROR(entry->graph.Launch(stream_));
  return Sample(batch, 0, batch.logit_rows.size(), entry->logits);
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
                                const float* logits) {
  sample_rows_.clear();
  for (size_t i = 0; i < count; ++i) {
    const LogitRow& row = batch.logit_rows[first + i];
    sample_rows_.push_back({.args = row.sample, .score_token = row.score_token});
  }
  return sampler_->Enqueue(sample_rows_, logits, model_->config().vocab, stream_);
}

void CudaRunner::Collect(size_t first, StepResult* result) {
  sampler_->Results(&sampled_);
  std::move(sampled_.begin(), sampled_.end(),
            result->samples.begin() + static_cast<std::ptrdiff_t>(first));
}

}  // namespace morphserve
