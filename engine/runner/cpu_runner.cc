#include "engine/runner/cpu_runner.h"

#include <algorithm>

#include "engine/base/status_macros.h"

namespace morphserve {

CpuRunner::CpuRunner(std::unique_ptr<HybridModel> model, std::byte* arena_base,
                     kernels::cpu::ThreadPool* pool, int32_t pieces, int32_t logit_rows_max)
    : model_(std::move(model)),
      arena_base_(arena_base),
      pool_(pool),
      pieces_(pieces),
      logit_rows_max_(logit_rows_max),
      scratch_(static_cast<size_t>(pool->threads())) {}

void CpuRunner::SampleBlock(const StepBatch& batch, size_t first, size_t count, float* logits,
                            std::vector<kernels::SampleResult>* results) {
  const int32_t vocab = model_->config().vocab;
  pool_->ForEachWorker([&](int32_t worker) {
    const auto part = pool_->Part(static_cast<int64_t>(count), worker);
    kernels::SampleScratch* scratch = &scratch_[static_cast<size_t>(worker)];
    for (int64_t i = part.begin; i < part.end; ++i) {
      const LogitRow& row = batch.logit_rows[first + static_cast<size_t>(i)];
      float* row_logits = logits + i * vocab;
      kernels::SampleResult& result = (*results)[first + static_cast<size_t>(i)];
      if (row.score_token >= 0) {
        result = kernels::cpu::ScoreToken(row_logits, vocab, pieces_, row.score_token,
                                          row.sample.logprobs, scratch);
      } else {
        kernels::SampleArgs args = row.sample;
        args.logits = row_logits;
        args.vocab = vocab;
        args.piece_count = pieces_;
        result = kernels::cpu::Sample(args, scratch);
      }
    }
  });
}

absl::Status CpuRunner::Run(const StepBatch& batch, StepResult* result) {
  MS_RETURN_IF_ERROR(model_->Forward(batch, arena_base_));
  const size_t count = batch.logit_rows.size();
  result->nonfinite = model_->nonfinite();
  result->samples.assign(count, {});
  for (size_t first = 0; first < count; first += static_cast<size_t>(logit_rows_max_)) {
    const size_t block = std::min(count - first, static_cast<size_t>(logit_rows_max_));
    rows_.clear();
    for (size_t i = 0; i < block; ++i) rows_.push_back(batch.logit_rows[first + i].row);
    MS_ASSIGN_OR_RETURN(float* logits, model_->Logits(rows_.data(), static_cast<int32_t>(block)));
    SampleBlock(batch, first, block, logits, &result->samples);
  }
  return absl::OkStatus();
}

}  // namespace morphserve
