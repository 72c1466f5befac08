// Makes a runner that computes at once look like a device: a step is computed when it begins, in
// the order of steps, but what it sampled is not told before End, and a step that follows gets its
// tokens from the one before it without the core's help. Two may be under way.
#pragma once

#include <deque>

#include "engine/base/check.h"
#include "engine/runner/model_runner.h"

namespace morphserve {

class LateRunner final : public ModelRunner {
 public:
  explicit LateRunner(ModelRunner* inner) : inner_(inner) {}

  absl::Status Run(const StepBatch& batch, StepResult* result) override {
    MS_CHECK(under_way_.empty());
    return inner_->Run(batch, result);
  }

  absl::Status Begin(const StepBatch& batch) override {
    MS_CHECK(under_way_.size() < 2);
    StepBatch known = batch;
    if (!batch.follows.empty()) {
      ++steps_ahead;
      MS_CHECK(batch.rows() <= rows_max);
      MS_CHECK(batch.follows.size() == batch.tokens.size() && batch.emits.empty());
      for (size_t r = 0; r < known.tokens.size(); ++r) {
        MS_CHECK(batch.tokens[r] == -1);  // The core must not know.
        known.tokens[r] = sampled_[static_cast<size_t>(batch.follows[r])];
      }
      known.follows.clear();
    }
    Step& step = under_way_.emplace_back();
    step.status = inner_->Run(known, &step.result);
    sampled_.clear();
    for (const kernels::SampleResult& sample : step.result.samples) {
      sampled_.push_back(sample.token);
    }
    return absl::OkStatus();
  }

  absl::Status End(StepResult* result) override {
    MS_CHECK(!under_way_.empty());
    const absl::Status status = under_way_.front().status;
    *result = std::move(under_way_.front().result);
    under_way_.pop_front();
    return status;
  }

  bool RunsAheadOf(const StepBatch& batch) const override { return batch.rows() <= rows_max; }
  absl::Status Health() override { return inner_->Health(); }

  int32_t steps_ahead = 0;
  int32_t rows_max = 1 << 20;  // Of a step that another may follow.

 private:
  struct Step {
    absl::Status status;
    StepResult result;
  };
  ModelRunner* const inner_;
  std::deque<Step> under_way_;
  std::vector<int32_t> sampled_;  // By the step begun last.
};

}  // namespace morphserve
