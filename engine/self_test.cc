#include "engine/self_test.h"

#include <algorithm>
#include <cmath>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "engine/base/status_macros.h"
#include "kernels/common/types.h"

namespace morphserve {
namespace {

// Two orders of sums in bf16 with f32 accumulation differ by less, by a wide margin.
constexpr float kCloseLogprob = 0.25f;

struct Answer {
  int32_t token = -1;
  float logprob = 0;
  float scored = 0;  // Log-probability of token 0.
};

// Runs `tokens` from position `first` and samples greedily after the last; adds the time to `cost`.
absl::StatusOr<Answer> RunRows(const std::vector<int32_t>& tokens, int32_t first,
                               const LayerPlan& plan, const SequenceCaches& caches,
                               ModelRunner* runner, StepCost* cost, const Clock* clock) {
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
  row.score_token = 0;  // The same token whatever was sampled.
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
  return Answer{.token = result.samples[0].token,
                .logprob = result.samples[0].logprob,
                .scored = result.samples[1].logprob};
}

bool Agree(const Answer& a, const Answer& b, bool exact) {
  if (!exact) return std::abs(a.scored - b.scored) <= kCloseLogprob;
  return a.token == b.token && a.logprob == b.logprob && a.scored == b.scored;
}

absl::Status TestPlan(const LayerPlan& plan, int32_t vocab, int32_t context, CacheManager* books,
                      ModelRunner* runner, bool exact, StepCost* cost, const Clock* clock) {
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
  MS_ASSIGN_OR_RETURN(const Answer warm,
                      RunRows(tokens, 0, plan, caches, runner, &unmeasured, clock));
  MS_ASSIGN_OR_RETURN(const Answer whole, RunRows(tokens, 0, plan, caches, runner, cost, clock));
  Answer last = whole;
  const int32_t split = std::max(count - kSingles, 1);
  std::vector<int32_t> prefix(tokens.begin(), tokens.begin() + split);
  MS_RETURN_IF_ERROR(RunRows(prefix, 0, plan, caches, runner, &unmeasured, clock).status());
  for (int32_t i = split; i < count; ++i) {
    prefix.push_back(tokens[static_cast<size_t>(i)]);
    MS_ASSIGN_OR_RETURN(last, RunRows(prefix, i, plan, caches, runner, cost, clock));
  }
  if (!Agree(warm, whole, exact) || !Agree(last, whole, exact)) {
    return absl::InternalError(absl::StrFormat(
        "self-test of plan %s: token %d (%g) in one chunk, %d (%g) one by one; token 0 has "
        "%g and %g",
        plan.id(), whole.token, whole.logprob, last.token, last.logprob, whole.scored,
        last.scored));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunSelfTest(std::span<const std::shared_ptr<const LayerPlan>> plans, int32_t vocab,
                         int32_t context, CacheManager* books, ModelRunner* runner, bool exact,
                         StepCost* cost, const Clock* clock) {
  for (size_t i = 0; i < plans.size(); ++i) {
    StepCost unmeasured;
    MS_RETURN_IF_ERROR(TestPlan(*plans[i], vocab, context, books, runner, exact,
                                i == 0 ? cost : &unmeasured, clock));
  }
  return absl::OkStatus();
}

}  // namespace morphserve
