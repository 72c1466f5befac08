#include "morph/lab_pass.h"

#include <algorithm>
#include <utility>

#include "engine/base/status_macros.h"

namespace morphserve {

void LabPass::Begin(Lab& lab, StepBatch batch) {
  batch_ = std::move(batch);
  stream_.resize(static_cast<size_t>(batch_.rows()) *
                 static_cast<size_t>(lab.model->config().hidden));
  layer_ = 0;
  row_ = 0;
  nonfinite_ = false;
  busy_ = absl::ZeroDuration();
  layer_time_ = absl::ZeroDuration();
}

absl::StatusOr<bool> LabPass::Layers(Lab& lab, absl::Time until) {
  const int32_t layers = lab.model->config().layers;
  if (layer_ == layers) return false;
  const absl::Time begin = lab.clock->Now();
  int32_t count = 1;
  if (layer_time_ > absl::ZeroDuration() && begin < until) {
    const double fit = absl::FDivDuration(until - begin, layer_time_);
    count = static_cast<int32_t>(std::clamp(fit, 1.0, static_cast<double>(layers - layer_)));
  }
  MS_RETURN_IF_ERROR(
      lab.model->ForwardLayers(batch_, lab.caches->base(), layer_, layer_ + count, stream_.data()));
  for (const uint8_t bad : lab.model->nonfinite()) nonfinite_ = nonfinite_ || bad != 0;
  layer_ += count;
  const absl::Duration spent = lab.clock->Now() - begin;
  busy_ += spent;
  layer_time_ = spent / count;
  return layer_ < layers;
}

absl::StatusOr<LabPass::Block> LabPass::Logits(Lab& lab, absl::Time until) {
  Block block;
  block.first = row_;
  const int32_t most = std::min(lab.model->limits().logit_rows, batch_.rows() - row_);
  if (most == 0) return block;
  const absl::Time begin = lab.clock->Now();
  block.count = 1;
  if (row_time_ > absl::ZeroDuration() && begin < until) {
    const double fit = absl::FDivDuration(until - begin, row_time_);
    block.count = static_cast<int32_t>(std::clamp(fit, 1.0, static_cast<double>(most)));
  }
  MS_ASSIGN_OR_RETURN(
      block.logits, lab.model->LogitsOf(stream_.data() + int64_t{row_} * lab.model->config().hidden,
                                        block.count));
  row_ += block.count;
  const absl::Duration spent = lab.clock->Now() - begin;
  busy_ += spent;
  row_time_ = spent / block.count;
  return block;
}

}  // namespace morphserve
