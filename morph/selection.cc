#include "morph/selection.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "morph/flop_count.h"
#include "morph/interaction.h"
#include "morph/ranking.h"

namespace morphserve {
namespace {

absl::Status CheckOptions(const SelectionOptions& o, const SelectionData& data, int32_t layers) {
  if (data.recall.empty()) return absl::InvalidArgumentError("a selection needs a recall sample");
  for (const auto* samples : {&data.recall, &data.plain}) {
    for (const CalibrationSample& sample : *samples) {
      if (sample.tokens.size() < 2 || sample.scored.empty()) {
        return absl::InvalidArgumentError("a calibration sample scores no position");
      }
    }
  }
  if (o.gates && (o.steps < 1 || !(o.rate > 0) || !(o.rate_end > 0) || !(o.lambda >= 0) ||
                  !(o.mean_gate > 0 && o.mean_gate < 1))) {
    return absl::InvalidArgumentError(
        absl::StrFormat("gate search of %d steps at rate %g to %g, lambda %g, mean gate %g",
                        o.steps, o.rate, o.rate_end, o.lambda, o.mean_gate));
  }
  if (o.watched_k < 0 || o.watched_k > layers) {
    return absl::InvalidArgumentError(
        absl::StrFormat("watched top set of %d layers; the model has %d", o.watched_k, layers));
  }
  return absl::OkStatus();
}

int32_t LongestSample(const SelectionData& data) {
  size_t longest = 0;
  for (const auto* samples : {&data.recall, &data.plain}) {
    for (const CalibrationSample& sample : *samples) {
      longest = std::max(longest, sample.tokens.size());
    }
  }
  return static_cast<int32_t>(longest);
}

std::vector<std::vector<int32_t>> SetsOfOrder(const std::vector<int32_t>& order) {
  std::vector<std::vector<int32_t>> sets;
  for (size_t k = 0; k <= order.size(); ++k) {
    sets.push_back(TopLayers(order, static_cast<int32_t>(k)));
  }
  return sets;
}

// The gates that Q predicts, at the lambda that gives them this mean, with the gradient there.
GateScores InteractionGates(const InteractionMatrix& q, double mean_gate) {
  const double lambda = LambdaForMeanGate(q, mean_gate);
  GateScores out = {.gates = SolveGates(q, lambda), .mean_gradient = {}, .distance = {}};
  for (int32_t m = 0; m < q.layers(); ++m) {
    double gradient = lambda;
    for (int32_t n = 0; n < q.layers(); ++n) {
      gradient -= 2 * q.at(m, n) * (1 - out.gates[static_cast<size_t>(n)]);
    }
    out.mean_gradient.push_back(gradient);
  }
  return out;
}

GateOptimizerOptions OptimizerOptions(const SelectionOptions& o, int32_t layers) {
  return {.layers = layers,
          .steps = o.steps,
          .rate = o.rate,
          .rate_end = o.rate_end,
          .watched_k = o.watched_k};
}

}  // namespace

const char* SelectionPhaseName(SelectionPhase phase) {
  switch (phase) {
    case SelectionPhase::kSweep: return "sweep";
    case SelectionPhase::kPlainSweep: return "plain_sweep";
    case SelectionPhase::kGates: return "gates";
    case SelectionPhase::kDone: return "done";
  }
  return "?";
}

absl::StatusOr<SelectionData> MakeSelectionData(const Tokenizer* tokenizer, std::string_view text,
                                                const SelectionOptions& options) {
  MS_ASSIGN_OR_RETURN(CalibrationData source,
                      CalibrationData::Create(tokenizer, text, options.seed));
  SelectionData data;
  for (int32_t i = 0; i < options.samples; ++i) {
    MS_ASSIGN_OR_RETURN(CalibrationSample sample, source.Passkey({.tokens = options.tokens}));
    ThinScored(&sample, options.scored_max);
    data.recall.push_back(std::move(sample));
  }
  for (int32_t i = 0; i < options.plain_samples; ++i) {
    CalibrationSample sample = source.PlainText(std::max(2, options.plain_tokens));
    ThinScored(&sample, options.scored_max);
    data.plain.push_back(std::move(sample));
  }
  return data;
}

int64_t LayerSelection::Bytes(const SelectionSource& source, const SelectionOptions& o) {
  const ModelConfig& c = *source.config;
  const int32_t tokens = std::max(o.tokens, o.plain_samples > 0 ? o.plain_tokens : 0);
  int64_t bytes = SelectionModel::Bytes(source, tokens, o.gates, o.block_rows) +
                  LayerSweep::Bytes(c, tokens, o.scored_max);
  if (o.gates) {  // Teachers of every sample, differences.
    const int64_t rows = (int64_t{o.samples} + 1) * (c.layers + 1) * o.scored_max;
    bytes += 4 * rows * c.hidden;
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<LayerSelection>> LayerSelection::Create(
    const SelectionSource& source, SelectionData data, const SelectionOptions& options,
    const Clock* clock) {
  const int32_t layers = source.config->layers;
  MS_RETURN_IF_ERROR(CheckOptions(options, data, layers));
  std::unique_ptr<LayerSelection> selection(new LayerSelection(std::move(data), options, clock));
  MS_ASSIGN_OR_RETURN(selection->model_,
                      SelectionModel::Create(source, LongestSample(selection->data_), options.gates,
                                             options.block_rows));
  selection->slices_ = WorkSlices(source);
  selection->sweep_ = std::make_unique<LayerSweep>(selection->model_.get());
  selection->progress_.units = static_cast<int32_t>(selection->data_.recall.size());
  if (!options.checkpoint.empty()) MS_RETURN_IF_ERROR(selection->Resume());
  return selection;
}

absl::StatusOr<bool> LayerSelection::RunSlice(absl::Time until) {
  while (progress_.phase != SelectionPhase::kDone) {
    if (cancelled_.load(std::memory_order_relaxed)) {
      list_.Clear();
      return absl::CancelledError("selection was cancelled");
    }
    if (list_.empty()) {
      if (unit_open_) MS_RETURN_IF_ERROR(FinishUnit());
      AddNextUnit();
      continue;
    }
    const absl::Time started = clock_->Now();
    MS_RETURN_IF_ERROR(slices_.Run(&list_, *clock_, until));
    const absl::Time now = clock_->Now();
    cost().seconds += absl::ToDoubleSeconds(now - started);
    if (now >= until) return true;
  }
  return false;
}

// Moves on to the first phase with something left, and adds its next sample or step.
void LayerSelection::AddNextUnit() {
  const auto unit = static_cast<size_t>(progress_.unit);
  switch (progress_.phase) {
    case SelectionPhase::kSweep:
    case SelectionPhase::kPlainSweep: {
      const bool plain = progress_.phase == SelectionPhase::kPlainSweep;
      const std::vector<CalibrationSample>& samples = plain ? data_.plain : data_.recall;
      if (unit < samples.size()) {
        sweep_->AddSample(&list_, &samples[unit], plain);
        cost().tokens += static_cast<int64_t>(samples[unit].tokens.size());
        unit_open_ = true;
        return;
      }
      progress_.unit = 0;
      progress_.phase = plain ? SelectionPhase::kGates : SelectionPhase::kPlainSweep;
      progress_.units =
          plain ? (options_.gates ? options_.steps : 0) : static_cast<int32_t>(data_.plain.size());
      return;
    }
    case SelectionPhase::kGates:
      if (options_.gates && loss_ == nullptr) StartGates();
      if (options_.gates && !optimizer_->done()) {
        AddGateStep();
        unit_open_ = true;
        return;
      }
      Report();
      progress_.phase = SelectionPhase::kDone;
      progress_.fraction = 1;
      if (on_progress_) on_progress_(progress_);
      return;
    case SelectionPhase::kDone: return;
  }
}

void LayerSelection::StartGates() {
  const int32_t layers = model_->source().config->layers;
  loss_ = std::make_unique<AlignmentLoss>(model_.get(), data_.recall, options_.reading);
  if (optimizer_ != nullptr) return;  // Resumed.
  optimizer_ = std::make_unique<GateOptimizer>(OptimizerOptions(options_, layers));
  lambda_ = options_.lambda > 0
                ? options_.lambda
                : LambdaForMeanGate(sweep_->totals().MeanInteraction(), options_.mean_gate);
}

// The sample of a step follows from seed and step alone, so that a resumed search draws the same.
void LayerSelection::AddGateStep() {
  const auto step = static_cast<uint64_t>(optimizer_->state().step);
  RandomBits random(options_.seed * 0x9E3779B97F4A7C15u + step);
  const auto index = static_cast<int32_t>(random.Below(static_cast<int64_t>(data_.recall.size())));
  cost().tokens += static_cast<int64_t>(data_.recall[static_cast<size_t>(index)].tokens.size());
  loss_->AddEvaluate(&list_, index, optimizer_->gates(), &step_);
}

absl::Status LayerSelection::FinishUnit() {
  unit_open_ = false;
  if (progress_.phase == SelectionPhase::kGates) {
    std::vector<double> gradient = step_.gradient;
    for (double& value : gradient) value += lambda_;
    optimizer_->Step(gradient);
    progress_.loss = step_.loss;
    const std::vector<float>& gates = optimizer_->gates();
    progress_.mean_gate =
        std::accumulate(gates.begin(), gates.end(), 0.0) / static_cast<double>(gates.size());
  }
  ++progress_.unit;
  const double flops = sweep_->flops() + (loss_ == nullptr ? 0 : loss_->flops());
  cost().flops += flops - counted_flops_;
  counted_flops_ = flops;
  const double done = costs_[0].flops + costs_[1].flops + costs_[2].flops;
  progress_.fraction = std::min(1.0, done / PlannedFlops());
  if (!options_.checkpoint.empty()) {
    // A full disk costs the way back, not the work.
    const absl::Status saved = Save();
    if (!saved.ok() && !save_failed_) {
      MS_LOG(WARNING) << options_.checkpoint << ": " << saved.message();
    }
    save_failed_ = !saved.ok();
  }
  if (on_progress_) on_progress_(progress_);
  return absl::OkStatus();
}

double LayerSelection::PlannedFlops() const {
  const ModelConfig& config = *model_->source().config;
  const BranchesConfig& branches = model_->source().branches->header.config;
  const double layers = config.layers;
  double planned = 0;
  double gates = 0;
  const auto forward = [&](const CalibrationSample& sample, Mixers mixers) {
    const auto tokens = static_cast<int32_t>(sample.tokens.size());
    return layers * (MixerFlops(config, branches, tokens, mixers) + MlpFlops(config, tokens));
  };
  for (const auto* samples : {&data_.recall, &data_.plain}) {
    for (const CalibrationSample& sample : *samples) {
      const auto scored = static_cast<int64_t>(sample.scored.size());
      planned += forward(sample, {.full = true, .linear = false}) * (1 + (layers + 1) / 2) +
                 layers * 2 * LogitFlops(config, scored);
    }
  }
  for (const CalibrationSample& sample : data_.recall) {
    const auto tokens = static_cast<int32_t>(sample.tokens.size());
    gates += 2.5 * forward(sample, {.full = true, .linear = true}) +
             layers * MixerGradFlops(config, branches, tokens, {.full = true, .linear = true});
  }
  if (options_.gates) {
    planned += options_.steps * gates / static_cast<double>(data_.recall.size());
  }
  return planned;
}

void LayerSelection::Report() {
  const SweepTotals& totals = sweep_->totals();
  const int32_t layers = model_->source().config->layers;
  SelectionReport& r = report_;
  r.layers = layers;
  r.context = LongestSample({.recall = data_.recall, .plain = {}});
  r.samples = static_cast<int32_t>(data_.recall.size());
  r.seed = options_.seed;
  r.lambda = lambda_;
  r.loss = progress_.loss;
  r.q = totals.MeanInteraction();
  r.distance = totals.MeanDistance();
  const auto add = [&](std::string name, std::vector<int32_t> order, std::vector<double> scores,
                       std::vector<std::vector<int32_t>> sets, std::vector<SelectionPhase> phases) {
    SelectorResult result = {.selector = std::move(name),
                             .order = std::move(order),
                             .scores = std::move(scores),
                             .sets = std::move(sets)};
    for (const SelectionPhase phase : phases) {
      const PhaseCost& spent = costs_[static_cast<size_t>(phase)];
      result.seconds += spent.seconds;
      result.flops += spent.flops;
      result.tokens += spent.tokens;
    }
    r.selectors.push_back(std::move(result));
  };
  const auto by_score = [&](std::string name, std::vector<double> scores,
                            std::vector<SelectionPhase> phases) {
    std::vector<int32_t> order = OrderByScore(scores);
    std::vector<std::vector<int32_t>> sets = SetsOfOrder(order);
    add(std::move(name), std::move(order), std::move(scores), std::move(sets), std::move(phases));
  };
  using Phase = SelectionPhase;
  if (options_.gates) {
    r.gate_steps = optimizer_->state().step;
    const std::vector<float>& gates = optimizer_->gates();
    GateScores scores = {.gates = {gates.begin(), gates.end()},
                         .mean_gradient = optimizer_->MeanGradient(),
                         .distance = r.distance};
    const std::vector<int32_t> order = OrderByGates(scores);
    add("flashmorph", order, scores.gates, SetsOfOrder(order), {Phase::kSweep, Phase::kGates});
  }
  add("interaction", GreedyOrder(r.q), {}, BestFullSets(r.q), {Phase::kSweep});
  GateScores boxed = InteractionGates(r.q, options_.mean_gate);
  boxed.distance = r.distance;
  const std::vector<int32_t> boxed_order = OrderByGates(boxed);
  add("interaction_gates", boxed_order, boxed.gates, SetsOfOrder(boxed_order), {Phase::kSweep});
  by_score("local_kl", totals.RecallKl(), {Phase::kSweep});
  if (!data_.plain.empty()) {
    by_score("halo", HaloScores(totals.RecallRise(), totals.PlainRise()),
             {Phase::kSweep, Phase::kPlainSweep});
  }
  std::vector<std::vector<int32_t>> uniform;
  for (int32_t k = 0; k <= layers; ++k) uniform.push_back(UniformSet(layers, k));
  add("uniform", {}, {}, std::move(uniform), {});
  const std::vector<int32_t> random = RandomOrder(layers, options_.seed);
  add("random", random, {}, SetsOfOrder(random), {});
}

}  // namespace morphserve
