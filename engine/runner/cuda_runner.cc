#include "engine/runner/cuda_runner.h"

#include <algorithm>
#include <span>
#include <utility>

#include "engine/base/status_macros.h"
#include "kernels/cuda/device.h"

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
  MS_RETURN_IF_ERROR(model_->Forward(batch, arena_base_));
  const size_t count = batch.logit_rows.size();
  const int32_t vocab = model_->config().vocab;
  result->samples.assign(count, {});
  for (size_t first = 0; first < count; first += static_cast<size_t>(logit_rows_max_)) {
    const size_t block = std::min(count - first, static_cast<size_t>(logit_rows_max_));
    rows_.clear();
    for (size_t i = 0; i < block; ++i) rows_.push_back(batch.logit_rows[first + i].row);
    MS_ASSIGN_OR_RETURN(const float* logits,
                        model_->Logits(rows_.data(), static_cast<int32_t>(block)));
    logits_.resize(block * static_cast<size_t>(vocab));
    MS_RETURN_IF_ERROR(model_->ToHost(logits_.data(), logits,
                                      static_cast<int64_t>(logits_.size() * sizeof(float))));
    sampler_.Sample(std::span(batch.logit_rows).subspan(first, block), logits_.data(), vocab,
                    std::span(result->samples).subspan(first, block));
  }
  MS_RETURN_IF_ERROR(model_->Finish());
  result->nonfinite = model_->nonfinite();
  return absl::OkStatus();
}

}  // namespace morphserve
