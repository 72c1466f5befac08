#include "engine/runner/host_sampler.h"

namespace morphserve {

void HostSampler::Sample(std::span<const LogitRow> rows, float* logits, int32_t vocab,
                         std::span<kernels::SampleResult> results) {
  pool_->ForEachWorker([&](int32_t worker) {
    const auto part = pool_->Part(static_cast<int64_t>(rows.size()), worker);
    kernels::SampleScratch* scratch = &scratch_[static_cast<size_t>(worker)];
    for (int64_t i = part.begin; i < part.end; ++i) {
      const LogitRow& row = rows[static_cast<size_t>(i)];
      float* row_logits = logits + i * vocab;
      kernels::SampleResult& result = results[static_cast<size_t>(i)];
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

}  // namespace morphserve
