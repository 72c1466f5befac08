#include "engine/runner/cpu_runner.h"

#include <algorithm>
#include <span>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace morphserve {

CpuRunner::CpuRunner(std::unique_ptr<HybridModel> model, std::byte* arena_base,
                     kernels::cpu::ThreadPool* pool, int32_t pieces, int32_t logit_rows_max)
    : model_(std::move(model)),
      arena_base_(arena_base),
      logit_rows_max_(logit_rows_max),
      sampler_(pool, pieces) {}

absl::Status CpuRunner::Run(const StepBatch& batch, StepResult* result) {
  MS_CHECK(batch.follows.empty());  // Nothing is under way that it could follow.
  MS_RETURN_IF_ERROR(model_->Forward(batch, arena_base_));
  const size_t count = batch.logit_rows.size();
  result->samples.assign(count, {});
  for (size_t first = 0; first < count; first += static_cast<size_t>(logit_rows_max_)) {
    const size_t block = std::min(count - first, static_cast<size_t>(logit_rows_max_));
    rows_.clear();
    for (size_t i = 0; i < block; ++i) rows_.push_back(batch.logit_rows[first + i].row);
    MS_ASSIGN_OR_RETURN(float* logits, model_->Logits(rows_.data(), static_cast<int32_t>(block)));
    sampler_.Sample(std::span(batch.logit_rows).subspan(first, block), logits,
                    model_->config().vocab, std::span(result->samples).subspan(first, block));
  }
  MS_RETURN_IF_ERROR(model_->Finish());
  result->nonfinite = model_->nonfinite();
  return absl::OkStatus();
}

}  // namespace morphserve
