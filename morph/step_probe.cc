#include "morph/step_probe.h"

#include <algorithm>
#include <utility>

#include "engine/base/status_macros.h"

namespace morphserve {

StepProbe::StepProbe(std::shared_ptr<const LayerPlan> plan, std::vector<Step> steps,
                     UnitBytes bytes)
    : plan_(std::move(plan)), steps_(std::move(steps)), bytes_(bytes) {}

StepBatch StepProbe::MakeBatch(const Lab& lab, const Step& step) const {
  StepBatch batch;
  for (int32_t r = 0; r < step.rows; ++r) {
    batch.tokens.push_back((r * 7919 + 13) % lab.model->config().vocab);
  }
  const int32_t sequences = step.prefill ? 1 : step.rows;
  for (int32_t s = 0; s < sequences; ++s) {
    batch.segments.push_back({.row_begin = s,
                              .row_count = step.prefill ? step.rows : 1,
                              .position = step.context,
                              .caches = units_.caches(s),
                              .plan = plan_.get()});
  }
  return batch;
}

// On a device a step is short, and replayed whole: pieces of it would cost more than they are.
absl::StatusOr<bool> StepProbe::WholeStep(Lab& lab) {
  const Step& step = steps_[ms_.size()];
  StepBatch batch = MakeBatch(lab, step);
  if (!step.prefill) {
    for (int32_t r = 0; r < step.rows; ++r) {
      LogitRow row;
      row.row = r;
      row.sample.temperature = 0;
      batch.logit_rows.push_back(row);
    }
  }
  StepResult result;
  const absl::Time begin = lab.clock->Now();
  MS_RETURN_IF_ERROR(lab.runner->Run(batch, &result));
  EndRepeat(absl::ToDoubleMilliseconds(lab.clock->Now() - begin));
  return ms_.size() < steps_.size();
}

void StepProbe::EndRepeat(double ms) {
  const Step& step = steps_[ms_.size()];
  repeats_.push_back(ms);
  in_pass_ = false;
  const int32_t warm = step.warm ? 1 : 0;
  if (static_cast<int32_t>(repeats_.size()) < step.repeats + warm) return;
  std::vector<double> counted(repeats_.begin() + warm, repeats_.end());
  std::sort(counted.begin(), counted.end());
  ms_.push_back(counted[(counted.size() - 1) / 2]);
  repeats_.clear();
}

absl::StatusOr<bool> StepProbe::Piece(Lab& lab, absl::Time until) {
  if (ms_.size() == steps_.size()) return false;
  if (!taken_) {
    int32_t sequences = 1;
    int32_t length = 1;
    for (const Step& step : steps_) {
      if (!step.prefill) sequences = std::max(sequences, step.rows);
      length = std::max(length, step.context + (step.prefill ? step.rows : 1));
    }
    // A few at a time: what runs beside this should not wait for all of them.
    constexpr int32_t kAtOnce = 8;
    const int32_t some = std::min(kAtOnce, sequences - units_.count());
    MS_RETURN_IF_ERROR(units_.Take(lab, *plan_, some, length));
    taken_ = units_.count() == sequences;
    return true;
  }
  if (!filled_) {
    filled_ = !units_.Fill(lab, bytes_.page, bytes_.slot);
    return true;
  }
  if (lab.stream.cuda_stream != nullptr) return WholeStep(lab);
  if (!in_pass_) {
    pass_.Begin(lab, MakeBatch(lab, steps_[ms_.size()]));
    in_pass_ = true;
    layers_done_ = false;
  }
  if (!layers_done_) {
    MS_ASSIGN_OR_RETURN(const bool more, pass_.Layers(lab, until));
    layers_done_ = !more;
    if (more) return true;
  }
  // A prefill chunk gives logits of one row at most: not counted.
  if (!steps_[ms_.size()].prefill) {
    MS_ASSIGN_OR_RETURN(const LabPass::Block block, pass_.Logits(lab, absl::InfiniteFuture()));
    if (block.count > 0) return true;
  }
  EndRepeat(pass_.busy_ms());
  return ms_.size() < steps_.size();
}

}  // namespace morphserve
