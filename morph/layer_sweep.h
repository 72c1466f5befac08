// LayerSweep makes one layer at a time linear and runs the rest of the model on: from the changes
// of all later states at the scored positions it accumulates the interaction matrix Q, from the
// predictions the divergence and the rise of the loss that each layer costs alone. Forward passes
// only. One sample at a time. Thread rule: the thread that runs the list. Ownership: borrows the
// model.
#pragma once

#include <cstdint>
#include <vector>

#include "morph/calibration_data.h"
#include "morph/interaction.h"
#include "morph/logit_distance.h"
#include "morph/selection_model.h"
#include "morph/teacher_pass.h"
#include "morph/work_list.h"

namespace morphserve {

// Sums over samples; the means are what callers want.
struct SweepTotals {
  explicit SweepTotals(int32_t layers)
      : q(layers),
        distance(static_cast<size_t>(layers)),
        recall(static_cast<size_t>(layers)),
        plain(static_cast<size_t>(layers)) {}

  int32_t samples = 0;           // Recall samples, which alone enter q and distance.
  InteractionMatrix q;           // Of each sample, 1 / (layers scored) sum <delta_m, delta_n>
  std::vector<double> distance;  // Of each sample, mean |linear - full|^2 on the teacher's input
  std::vector<PredictionTotals> recall;  // [layer made linear]
  std::vector<PredictionTotals> plain;   // The same on plain text.

  InteractionMatrix MeanInteraction() const;
  std::vector<double> MeanDistance() const;
  std::vector<double> RecallKl() const;
  std::vector<double> RecallRise() const;  // Of the loss.
  std::vector<double> PlainRise() const;
};

class LayerSweep {
 public:
  // A layer's gate goes to 1 - step: 1 is the true linear layer, small steps give the tangent that
  // the gradient of the gates near 1 follows.
  explicit LayerSweep(SelectionModel* model, float step = 1);
  // Goes on from stored totals, with steps of 1.
  LayerSweep(SelectionModel* model, SweepTotals totals);

  // Bytes beside the model's for samples of such a size, inputs that the model keeps among them.
  static int64_t Bytes(const ModelConfig& config, int32_t tokens, int32_t scored);

  // The jobs of one sample; the totals change when the last of them has run.
  void AddSample(WorkList* list, const CalibrationSample* sample, bool plain);

  const SweepTotals& totals() const { return totals_; }
  double flops() const { return flops_; }

 private:
  void AddLayer(WorkList* list, const CalibrationSample* sample, int32_t layer, bool plain);
  // Where layer m's changes of states m, m + 1, ... begin in deltas_.
  float* Delta(int32_t layer) { return deltas_[static_cast<size_t>(layer)].data(); }

  SelectionModel* const model_;
  const float step_ = 1;
  const int32_t layers_;
  const int64_t hidden_;
  LogitDistance distance_;
  TeacherStates teacher_;
  std::vector<std::vector<float>> deltas_;  // [layer m][state l >= m][scored][hidden]
  std::vector<float> last_;                 // [scored][hidden]
  SweepTotals totals_;
  SweepTotals sample_totals_;
  double flops_ = 0;
};

}  // namespace morphserve
