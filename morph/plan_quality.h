// PlanQuality measures what a set of full layers does to a model, by true forward passes of the
// hybrid: divergence from the full model, perplexity, and the share of right answers, by evaluation
// set and by where in the text the answer lies. Thread rule: the thread that runs the list.
// Ownership: borrows model and sets.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "morph/calibration_data.h"
#include "morph/logit_distance.h"
#include "morph/selection_model.h"
#include "morph/teacher_pass.h"
#include "morph/work_list.h"

namespace morphserve {

struct EvaluationSet {
  std::string name;  // passkey_1024, key_value_1024, plain_1024
  std::vector<CalibrationSample> samples;
};

struct EvaluationOptions {
  std::vector<int32_t> contexts = {1024};
  int32_t rows = 4;          // Samples of a set.
  int32_t scored_max = 320;  // Of a sample.
};

// Passkeys, key-value look-ups and plain text at every context.
absl::StatusOr<std::vector<EvaluationSet>> MakeEvaluationSets(CalibrationData* data,
                                                              const EvaluationOptions& options);

inline constexpr int32_t kDepthBins = 10;

struct SetQuality {
  std::string name;
  PredictionTotals totals;
  // Right answers and all answers by tenths of the text; empty totals where nothing has a depth.
  int64_t right_by_depth[kDepthBins] = {};
  int64_t count_by_depth[kDepthBins] = {};

  double kl() const { return totals.kl / Count(); }
  double perplexity() const;
  double accuracy() const { return static_cast<double>(totals.right) / Count(); }
  double teacher_perplexity() const;
  double teacher_accuracy() const { return static_cast<double>(totals.teacher_right) / Count(); }

 private:
  double Count() const { return static_cast<double>(totals.count > 0 ? totals.count : 1); }
};

class PlanQuality {
 public:
  PlanQuality(SelectionModel* model, std::span<const EvaluationSet> sets);

  // Adds the jobs that measure the plan whose full layers are `full`, sorted. `result` gets one
  // entry a set. One plan at a time.
  void AddPlan(WorkList* list, std::vector<int32_t> full, std::vector<SetQuality>* result);

 private:
  void AddSample(WorkList* list, const std::vector<int32_t>& full, const CalibrationSample* sample,
                 TeacherStates* teacher, SetQuality* quality);

  SelectionModel* const model_;
  const std::span<const EvaluationSet> sets_;
  LogitDistance distance_;
  std::vector<std::vector<TeacherStates>> teachers_;  // [set][sample]; only `last` is kept.
  std::vector<float> last_;
  std::vector<uint8_t> right_;
};

}  // namespace morphserve
