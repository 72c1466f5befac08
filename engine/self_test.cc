#include "engine/self_test.h"

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "engine/base/status_macros.h"
#include "kernels/common/types.h"

namespace morphserve {
namespace {

// Runs `tokens` from position `first` and samples greedily after the last; adds the time to `cost`.
absl::StatusOr<kernels::SampleResult> RunRows(const std::vector<int32_t>& tokens, int32_t first,
                                              const LayerPlan& plan, const SequenceCaches& caches,
                                              ModelRunner* runner, StepCost* cost,
                                              const Clock* clock) {
  StepBatch batch;
  batch.tokens.assign(tokens.begin() + first, tokens.end());
  batch.segments.push_back({.row_begin = 0,
                            .row_count = batch.rows(),
                            .position = first,
                            .caches = &caches,
                            .plan = &plan});
  LogitRow row;
  row.row = batch.rows() - 1;
  row.sample.temperature = 0;
  row.sample.logprobs = 0;
  batch.logit_rows.push_back(row);
  StepResult result;
  const absl::Time begin = clock->Now();
  MS_RETURN_IF_ERROR(runner->Run(batch, &result));
  const double ms = absl::ToDoubleMilliseconds(clock->Now() - begin);
  const bool decode = batch.rows() == 1;
  cost->Observe(decode ? 1 : 0, decode ? 0 : batch.rows(), ms);
  if (!result.samples[0].finite || result.nonfinite[0] != 0) {
    return absl::InternalError("self-test: a number is not finite");
  }
  return result.samples[0];
}

absl::Status TestPlan(const LayerPlan& plan, int32_t vocab, int32_t context, CacheManager* books,
                      ModelRunner* runner, StepCost* cost, const Clock* clock) {
  constexpr int32_t kTokens = 32;
  constexpr int32_t kSingles = 4;  // Of them, computed one by one in the second pass.
  const int32_t count = std::min(kTokens, std::min(context, kPageTokens));
  SequenceCaches caches;
  if (!books->Reserve(plan, count, &caches)) {
    return absl::ResourceExhaustedError("self-test: no free pages or slots");
  }
  const absl::Cleanup give_back = [&] { books->Release(&caches); };
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back((i * 7919 + 13) % vocab);

  // The first pass also warms caches and page tables, so it is not measured.
  StepCost unmeasured;
  MS_ASSIGN_OR_RETURN(const kernels::SampleResult warm,
                      RunRows(tokens, 0, plan, caches, runner, &unmeasured, clock));
  MS_ASSIGN_OR_RETURN(const kernels::SampleResult whole,
                      RunRows(tokens, 0, plan, caches, runner, cost, clock));
  kernels::SampleResult last = whole;
  const int32_t split = std::max(count - kSingles, 1);
  std::vector<int32_t> prefix(tokens.begin(), tokens.begin() + split);
  MS_RETURN_IF_ERROR(RunRows(prefix, 0, plan, caches, runner, &unmeasured, clock).status());
  for (int32_t i = split; i < count; ++i) {
    prefix.push_back(tokens[static_cast<size_t>(i)]);
    MS_ASSIGN_OR_RETURN(last, RunRows(prefix, i, plan, caches, runner, cost, clock));
  }
  if (warm.token != whole.token || last.token != whole.token || last.logprob != whole.logprob) {
    return absl::InternalError(
        absl::StrFormat("self-test of plan %s: token %d (%g) in one chunk, %d (%g) one by one",
                        plan.id(), whole.token, whole.logprob, last.token, last.logprob));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunSelfTest(std::span<const std::shared_ptr<const LayerPlan>> plans, int32_t vocab,
                         int32_t context, CacheManager* books, ModelRunner* runner, StepCost* cost,
                         const Clock* clock) {
  for (size_t i = 0; i < plans.size(); ++i) {
    StepCost unmeasured;
    MS_RETURN_IF_ERROR(
        TestPlan(*plans[i], vocab, context, books, runner, i == 0 ? cost : &unmeasured, clock));
  }
  return absl::OkStatus();
}

}  // namespace morphserve
