// AlignmentLoss is what flashmorph minimises: the squared distance, at the scored positions,
// between a stream in which every layer mixes its two branches under a gate and the unmodified
// model's stream, with its gradient with respect to every gate. Layer inputs are kept, each layer
// is computed again on the way back; the teacher's states are computed once a sample. At gates of 1
// the loss and its gradient are zero exactly. Thread rule: the thread that runs the list.
// Ownership: borrows model and samples.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "morph/calibration_data.h"
#include "morph/selection_model.h"
#include "morph/teacher_pass.h"
#include "morph/work_list.h"

namespace morphserve {

// Which states count, and how errors travel.
enum class GateReading : uint8_t {
  kTeacherStream,  // The mixed stream against the teacher's, after every mixer: joint.
  kLastLayer,      // The same after the last mixer only.
  kLocal,          // Every layer on the teacher's input: separable, a check rather than a method.
};

struct AlignmentResult {
  double loss = 0;
  std::vector<double> gradient;  // [layers]
};

class AlignmentLoss {
 public:
  // `model` must allow gradients.
  AlignmentLoss(SelectionModel* model, std::span<const CalibrationSample> samples,
                GateReading reading);

  // Adds the jobs that compute loss and gradient at `gates` on sample `index`.
  void AddEvaluate(WorkList* list, int32_t index, std::vector<float> gates,
                   AlignmentResult* result);

  // FLOPs of everything run so far.
  double flops() const { return flops_; }

 private:
  void AddForward(WorkList* list, const CalibrationSample& sample);
  void AddBackward(WorkList* list, int32_t layer, const CalibrationSample& sample,
                   AlignmentResult* result);
  void AddSeed(WorkList* list, int32_t layer, const CalibrationSample& sample);
  void AddLocal(WorkList* list, int32_t index, AlignmentResult* result);
  double Weight(int32_t layer, const CalibrationSample& sample) const;

  SelectionModel* const model_;
  const std::span<const CalibrationSample> samples_;
  const GateReading reading_;
  const int32_t layers_;
  const int64_t hidden_;
  std::vector<TeacherStates> teachers_;
  std::vector<std::vector<double>> distances_;  // kLocal: of each sample, [layers]
  std::vector<float> apart_;                    // [layers][scored][hidden]: mixed - teacher
  std::vector<float> gates_;
  double flops_ = 0;
};

}  // namespace morphserve
