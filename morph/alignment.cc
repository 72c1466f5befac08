#include "morph/alignment.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "morph/flop_count.h"

namespace morphserve {

AlignmentLoss::AlignmentLoss(SelectionModel* model, std::span<const CalibrationSample> samples,
                             GateReading reading)
    : model_(model),
      samples_(samples),
      reading_(reading),
      layers_(model->source().config->layers),
      hidden_(model->source().config->hidden),
      teachers_(samples.size()),
      distances_(samples.size()) {}

double AlignmentLoss::Weight(int32_t layer, const CalibrationSample& sample) const {
  const auto scored = static_cast<double>(sample.scored.size());
  if (reading_ == GateReading::kLastLayer) return layer == layers_ - 1 ? 1 / scored : 0;
  return 1 / (layers_ * scored);
}

void AlignmentLoss::AddEvaluate(WorkList* list, int32_t index, std::vector<float> gates,
                                AlignmentResult* result) {
  MS_CHECK(gates.size() == static_cast<size_t>(layers_));
  const auto at = static_cast<size_t>(index);
  const CalibrationSample& sample = samples_[at];
  MS_CHECK(!sample.scored.empty());
  gates_ = std::move(gates);
  result->loss = 0;
  result->gradient.assign(static_cast<size_t>(layers_), 0);
  const ModelConfig& config = *model_->source().config;
  const BranchesConfig& branches = model_->source().branches->header.config;
  const auto tokens = static_cast<int32_t>(sample.tokens.size());
  if (reading_ == GateReading::kLocal) {
    AddLocal(list, index, result);
    return;
  }
  if (!teachers_[at].known) {
    AddTeacherPass(list, model_, &sample, &teachers_[at], /*keep_inputs=*/false);
    flops_ += layers_ * (MixerFlops(config, branches, tokens, {.full = true, .linear = false}) +
                         MlpFlops(config, tokens));
  }
  AddForward(list, sample);
  list->Add([this, &sample, result, at] {  // Loss, and the seeds of the gradient.
    const size_t tap = sample.scored.size() * static_cast<size_t>(hidden_);
    for (size_t i = 0; i < apart_.size(); ++i) apart_[i] -= teachers_[at].targets[i];
    for (int32_t l = 0; l < layers_; ++l) {
      const float* const apart = apart_.data() + static_cast<size_t>(l) * tap;
      result->loss += Weight(l, sample) * DotOfRows(apart, apart, static_cast<int64_t>(tap));
    }
    return absl::OkStatus();
  });
  model_->AddZeroGrad(list);
  for (int32_t l = layers_ - 1; l >= 0; --l) AddBackward(list, l, sample, result);
}

void AlignmentLoss::AddForward(WorkList* list, const CalibrationSample& sample) {
  const ModelConfig& config = *model_->source().config;
  const BranchesConfig& branches = model_->source().branches->header.config;
  const auto tokens = static_cast<int32_t>(sample.tokens.size());
  const size_t tap = sample.scored.size() * static_cast<size_t>(hidden_);
  apart_.resize(static_cast<size_t>(layers_) * tap);
  model_->AddEmbed(list, sample.tokens);
  for (int32_t l = 0; l < layers_; ++l) {
    const auto at = static_cast<size_t>(l);
    const float gate = gates_[at];
    const Mixers mixers = {.full = gate > 0, .linear = gate < 1};
    model_->AddKeepInput(list, l);
    model_->AddMixers(list, l, mixers);
    model_->AddMix(list, gate);
    AddTap(list, model_, &sample.scored, apart_.data() + at * tap);
    flops_ += MixerFlops(config, branches, tokens, mixers);
    if (l == layers_ - 1) break;  // Nothing looks at the last MLP.
    model_->AddMlp(list, l);
    flops_ += MlpFlops(config, tokens);
  }
}

// dx += the loss's own gradient at the state after this layer's mixer.
void AlignmentLoss::AddSeed(WorkList* list, int32_t layer, const CalibrationSample& sample) {
  list->Add([this, layer, &sample] {
    const size_t tap = sample.scored.size() * static_cast<size_t>(hidden_);
    const float* const apart = apart_.data() + static_cast<size_t>(layer) * tap;
    const auto factor = static_cast<float>(2 * Weight(layer, sample));
    std::vector<float> seeds(tap);
    for (size_t i = 0; i < tap; ++i) seeds[i] = factor * apart[i];
    return model_->AddToGrad(sample.scored, seeds.data());
  });
}

void AlignmentLoss::AddBackward(WorkList* list, int32_t layer, const CalibrationSample& sample,
                                AlignmentResult* result) {
  const ModelConfig& config = *model_->source().config;
  const BranchesConfig& branches = model_->source().branches->header.config;
  const auto tokens = static_cast<int32_t>(sample.tokens.size());
  const auto at = static_cast<size_t>(layer);
  const float gate = gates_[at];
  model_->AddTakeInput(list, layer);
  model_->AddMixers(list, layer, {.full = true, .linear = true});
  flops_ += MixerFlops(config, branches, tokens, {.full = true, .linear = true});
  if (layer < layers_ - 1) {
    model_->AddMix(list, gate);
    model_->AddMlpGrad(list, layer);
    flops_ += MlpFlops(config, tokens) * 5 / 3;  // Two products again, three back.
  }
  AddSeed(list, layer, sample);
  model_->AddGateGrad(list, &result->gradient[at]);
  if (layer == 0) return;  // Nothing looks at the embedding's gradient.
  model_->AddMixerGrad(list, layer, gate);
  flops_ += MixerGradFlops(config, branches, tokens, {.full = gate > 0, .linear = gate < 1});
}

// Loss (1 - a)^2 distance / layers of each layer alone, distance taken once a sample.
void AlignmentLoss::AddLocal(WorkList* list, int32_t index, AlignmentResult* result) {
  const auto at = static_cast<size_t>(index);
  const CalibrationSample& sample = samples_[at];
  std::vector<double>& distances = distances_[at];
  if (distances.empty()) {
    const ModelConfig& config = *model_->source().config;
    const BranchesConfig& branches = model_->source().branches->header.config;
    const auto tokens = static_cast<int32_t>(sample.tokens.size());
    distances.assign(static_cast<size_t>(layers_), 0);
    model_->AddEmbed(list, sample.tokens);
    for (int32_t l = 0; l < layers_; ++l) {
      model_->AddMixers(list, l, {.full = true, .linear = true});
      list->Add([this, &sample, out = &distances[static_cast<size_t>(l)]]() -> absl::Status {
        const auto scored = static_cast<double>(sample.scored.size());
        std::vector<float> full(sample.scored.size() * static_cast<size_t>(hidden_));
        std::vector<float> apart(full.size());
        MS_RETURN_IF_ERROR(model_->ReadRows(model_->full(), sample.scored, full.data()));
        MS_RETURN_IF_ERROR(model_->ReadRows(model_->linear(), sample.scored, apart.data()));
        for (size_t i = 0; i < apart.size(); ++i) apart[i] -= full[i];
        for (size_t row = 0; row < apart.size(); row += static_cast<size_t>(hidden_)) {
          *out += DotOfRows(apart.data() + row, apart.data() + row, hidden_) / scored;
        }
        return absl::OkStatus();
      });
      model_->AddMix(list, 1);
      model_->AddMlp(list, l);
      flops_ += MixerFlops(config, branches, tokens, {.full = true, .linear = true}) +
                MlpFlops(config, tokens);
    }
  }
  list->Add([this, &distances, result] {
    for (size_t l = 0; l < distances.size(); ++l) {
      const double b = 1 - static_cast<double>(gates_[l]);
      result->loss += b * b * distances[l] / layers_;
      result->gradient[l] = -2 * b * distances[l] / layers_;
    }
    return absl::OkStatus();
  });
}

}  // namespace morphserve
