// The unmodified model over one calibration sample: what every selector compares with. Thread rule:
// the thread that runs the list. Whatever a call is given must outlive its jobs.
#pragma once

#include <cstdint>
#include <vector>

#include "morph/calibration_data.h"
#include "morph/selection_model.h"
#include "morph/work_list.h"

namespace morphserve {

// States of the residual stream at a sample's scored positions.
struct TeacherStates {
  std::vector<float> targets;  // [layers][scored][hidden], after each mixer's residual add
  std::vector<float> last;     // [scored][hidden], after the last layer
  bool known = false;
};

// Brings the rows of x() at `rows` to `out` [rows.size(), hidden] when its turn comes.
void AddTap(WorkList* list, const SelectionModel* model, const std::vector<int32_t>* rows,
            float* out);

// Fills `states`; with `keep_inputs` the model keeps the input of every layer.
void AddTeacherPass(WorkList* list, SelectionModel* model, const CalibrationSample* sample,
                    TeacherStates* states, bool keep_inputs);

// Sum of a[i] * b[i], products and sums in double, in eight interleaved chains.
double DotOfRows(const float* a, const float* b, int64_t count);

}  // namespace morphserve
