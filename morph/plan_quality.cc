#include "morph/plan_quality.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"

namespace morphserve {

absl::StatusOr<std::vector<EvaluationSet>> MakeEvaluationSets(CalibrationData* data,
                                                              const EvaluationOptions& options) {
  std::vector<EvaluationSet> sets;
  for (const int32_t tokens : options.contexts) {
    EvaluationSet passkey = {.name = absl::StrFormat("passkey_%d", tokens), .samples = {}};
    EvaluationSet pairs = {.name = absl::StrFormat("key_value_%d", tokens), .samples = {}};
    EvaluationSet plain = {.name = absl::StrFormat("plain_%d", tokens), .samples = {}};
    for (int32_t row = 0; row < options.rows; ++row) {
      MS_ASSIGN_OR_RETURN(CalibrationSample hidden, data->Passkey({.tokens = tokens}));
      MS_ASSIGN_OR_RETURN(CalibrationSample pair, data->KeyValue(tokens));
      CalibrationSample text = data->PlainText(tokens);
      for (CalibrationSample* sample : {&hidden, &pair, &text}) {
        ThinScored(sample, options.scored_max);
      }
      passkey.samples.push_back(std::move(hidden));
      pairs.samples.push_back(std::move(pair));
      plain.samples.push_back(std::move(text));
    }
    for (EvaluationSet* set : {&passkey, &pairs, &plain}) sets.push_back(std::move(*set));
  }
  return sets;
}

double SetQuality::perplexity() const { return std::exp(totals.nll / Count()); }
double SetQuality::teacher_perplexity() const { return std::exp(totals.teacher_nll / Count()); }

PlanQuality::PlanQuality(SelectionModel* model, std::span<const EvaluationSet> sets)
    : model_(model), sets_(sets), distance_(model), teachers_(sets.size()) {
  for (size_t i = 0; i < sets.size(); ++i) teachers_[i].resize(sets[i].samples.size());
}

void PlanQuality::AddPlan(WorkList* list, std::vector<int32_t> full,
                          std::vector<SetQuality>* result) {
  result->assign(sets_.size(), {});
  for (size_t set = 0; set < sets_.size(); ++set) {
    (*result)[set].name = sets_[set].name;
    for (size_t i = 0; i < sets_[set].samples.size(); ++i) {
      list->Add([=, this] {
        AddSample(list, full, &sets_[set].samples[i], &teachers_[set][i], &(*result)[set]);
        return absl::OkStatus();
      });
    }
  }
}

void PlanQuality::AddSample(WorkList* list, const std::vector<int32_t>& full,
                            const CalibrationSample* sample, TeacherStates* teacher,
                            SetQuality* quality) {
  const ModelConfig& config = *model_->source().config;
  last_.resize(sample->scored.size() * static_cast<size_t>(config.hidden));
  right_.clear();
  if (!teacher->known) {
    AddTeacherPass(list, model_, sample, teacher, /*keep_inputs=*/false);
    list->Add([teacher] {
      teacher->targets = {};
      return absl::OkStatus();
    });
  }
  model_->AddEmbed(list, sample->tokens);
  for (int32_t l = 0; l < config.layers; ++l) {
    const bool keep = std::binary_search(full.begin(), full.end(), l);
    model_->AddMixers(list, l, {.full = keep, .linear = !keep});
    model_->AddMix(list, keep ? 1.0f : 0.0f);
    model_->AddMlp(list, l);
  }
  AddTap(list, model_, &sample->scored, last_.data());
  distance_.AddCompare(list, sample, teacher->last.data(), last_.data(), &quality->totals, &right_);
  list->Add([this, sample, quality] {
    for (size_t i = 0; i < sample->depth.size(); ++i) {
      const int32_t bin =
          std::clamp(static_cast<int32_t>(sample->depth[i] * kDepthBins), 0, kDepthBins - 1);
      quality->right_by_depth[bin] += right_[i];
      ++quality->count_by_depth[bin];
    }
    return absl::OkStatus();
  });
}

}  // namespace morphserve
