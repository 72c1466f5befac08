#include "morph/layer_sweep.h"

#include <algorithm>
#include <utility>

#include "morph/flop_count.h"

namespace morphserve {
namespace {

std::vector<double> Rise(const std::vector<PredictionTotals>& totals) {
  std::vector<double> rise;
  for (const PredictionTotals& t : totals) {
    rise.push_back((t.nll - t.teacher_nll) / static_cast<double>(std::max<int64_t>(1, t.count)));
  }
  return rise;
}

}  // namespace

InteractionMatrix SweepTotals::MeanInteraction() const {
  InteractionMatrix mean(q.layers());
  for (int32_t m = 0; m < q.layers(); ++m) {
    for (int32_t n = 0; n < q.layers(); ++n) mean.at(m, n) = q.at(m, n) / std::max(1, samples);
  }
  return mean;
}

std::vector<double> SweepTotals::MeanDistance() const {
  std::vector<double> mean = distance;
  for (double& value : mean) value /= std::max(1, samples);
  return mean;
}

std::vector<double> SweepTotals::RecallKl() const {
  std::vector<double> mean;
  for (const PredictionTotals& t : recall) {
    mean.push_back(t.kl / static_cast<double>(std::max<int64_t>(1, t.count)));
  }
  return mean;
}

std::vector<double> SweepTotals::RecallRise() const { return Rise(recall); }
std::vector<double> SweepTotals::PlainRise() const { return Rise(plain); }

LayerSweep::LayerSweep(SelectionModel* model, float step)
    : model_(model),
      step_(step),
      layers_(model->source().config->layers),
      hidden_(model->source().config->hidden),
      distance_(model),
      deltas_(static_cast<size_t>(layers_)),
      totals_(layers_),
      sample_totals_(layers_) {}

LayerSweep::LayerSweep(SelectionModel* model, SweepTotals totals) : LayerSweep(model) {
  totals_ = std::move(totals);
}

int64_t LayerSweep::Bytes(const ModelConfig& config, int32_t tokens, int32_t scored) {
  const int64_t layers = config.layers;
  const int64_t rows = (layers * (layers + 1) / 2 + layers + 2) * scored;
  return SelectionModel::KeptBytes(config, tokens) + 4 * rows * config.hidden +
         LogitDistance::Bytes(config);
}

void LayerSweep::AddSample(WorkList* list, const CalibrationSample* sample, bool plain) {
  const ModelConfig& config = *model_->source().config;
  const auto tokens = static_cast<int32_t>(sample->tokens.size());
  const size_t tap = sample->scored.size() * static_cast<size_t>(hidden_);
  last_.resize(tap);
  sample_totals_ = SweepTotals(layers_);
  AddTeacherPass(list, model_, sample, &teacher_, /*keep_inputs=*/true);
  flops_ += layers_ * (MixerFlops(config, model_->source().branches->header.config, tokens,
                                  {.full = true, .linear = false}) +
                       MlpFlops(config, tokens));
  for (int32_t m = 0; m < layers_; ++m) {  // Unfolded one by one: each is thousands of jobs.
    list->Add([this, list, sample, m, plain] {
      AddLayer(list, sample, m, plain);
      return absl::OkStatus();
    });
  }
  list->Add([this, plain] {
    if (!plain) ++totals_.samples;
    for (int32_t m = 0; m < layers_; ++m) {
      const auto at = static_cast<size_t>(m);
      totals_.distance[at] += sample_totals_.distance[at];
      totals_.recall[at].Add(sample_totals_.recall[at]);
      totals_.plain[at].Add(sample_totals_.plain[at]);
      for (int32_t n = 0; n < layers_; ++n) totals_.q.at(m, n) += sample_totals_.q.at(m, n);
    }
    return absl::OkStatus();
  });
}

void LayerSweep::AddLayer(WorkList* list, const CalibrationSample* sample, int32_t layer,
                          bool plain) {
  const ModelConfig& config = *model_->source().config;
  const BranchesConfig& branches = model_->source().branches->header.config;
  const auto tokens = static_cast<int32_t>(sample->tokens.size());
  const size_t tap = sample->scored.size() * static_cast<size_t>(hidden_);
  const auto at = static_cast<size_t>(layer);
  if (!plain) deltas_[at].resize(static_cast<size_t>(layers_ - layer) * tap);
  model_->AddTakeInput(list, layer);
  for (int32_t l = layer; l < layers_; ++l) {
    const float gate = l == layer ? 1 - step_ : 1;
    const Mixers mixers = {.full = gate > 0, .linear = gate < 1};
    model_->AddMixers(list, l, mixers);
    model_->AddMix(list, gate);
    flops_ += MixerFlops(config, branches, tokens, mixers) + MlpFlops(config, tokens);
    if (!plain) {
      float* const delta = Delta(layer) + static_cast<size_t>(l - layer) * tap;
      AddTap(list, model_, &sample->scored, delta);
      list->Add([this, delta, tap, l] {
        const float* const target = teacher_.targets.data() + static_cast<size_t>(l) * tap;
        for (size_t i = 0; i < tap; ++i) delta[i] = (delta[i] - target[i]) / step_;
        return absl::OkStatus();
      });
    }
    model_->AddMlp(list, l);
  }
  AddTap(list, model_, &sample->scored, last_.data());
  distance_.AddCompare(list, sample, teacher_.last.data(), last_.data(),
                       plain ? &sample_totals_.plain[at] : &sample_totals_.recall[at], nullptr);
  flops_ += 2 * LogitFlops(config, static_cast<int64_t>(sample->scored.size()));
  if (plain) return;
  for (int32_t n = 0; n <= layer; ++n) {  // States before `layer` did not change under it.
    list->Add([this, layer, n, tap, scored = static_cast<double>(sample->scored.size())] {
      const float* const mine = Delta(layer);
      const float* const other = Delta(n) + static_cast<size_t>(layer - n) * tap;
      const auto count = static_cast<int64_t>(tap);
      const double product = DotOfRows(mine, other, count * (layers_ - layer));
      sample_totals_.q.at(layer, n) = product / (layers_ * scored);
      sample_totals_.q.at(n, layer) = sample_totals_.q.at(layer, n);
      if (n == layer) {
        sample_totals_.distance[static_cast<size_t>(layer)] = DotOfRows(mine, mine, count) / scored;
      }
      return absl::OkStatus();
    });
  }
}

}  // namespace morphserve
