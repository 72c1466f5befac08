// How far a changed model's predictions are from the unmodified model's at the same positions, from
// rows of their last residual streams: Kullback-Leibler divergence, losses, right answers. Thread
// rule: the thread that runs the list.
#pragma once

#include <cstdint>
#include <vector>

#include "morph/calibration_data.h"
#include "morph/selection_model.h"
#include "morph/work_list.h"

namespace morphserve {

// Sums over positions.
struct PredictionTotals {
  int64_t count = 0;
  double kl = 0;   // KL(teacher || student), nats.
  double nll = 0;  // Of the student, of the true next token.
  double teacher_nll = 0;
  int64_t right = 0;  // The student's best token is the true next one.
  int64_t teacher_right = 0;
  int64_t agree = 0;  // Both have the same best token.

  void Add(const PredictionTotals& more);
};

class LogitDistance {
 public:
  // Holds two blocks of logits.
  explicit LogitDistance(SelectionModel* model);
  static int64_t Bytes(const ModelConfig& config);

  // Compares rows [sample.scored, hidden] of both streams when its turn comes. `per_position`
  // (may be null) gets 1 for each position whose student is right, else 0.
  void AddCompare(WorkList* list, const CalibrationSample* sample, const float* teacher,
                  const float* student, PredictionTotals* totals,
                  std::vector<uint8_t>* per_position);

 private:
  SelectionModel* const model_;
  std::vector<float> teacher_logits_, student_logits_;  // [block, vocab]
};

}  // namespace morphserve
