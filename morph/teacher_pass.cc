#include "morph/teacher_pass.h"

namespace morphserve {

void AddTap(WorkList* list, const SelectionModel* model, const std::vector<int32_t>* rows,
            float* out) {
  list->Add([model, rows, out] { return model->ReadRows(model->x(), *rows, out); });
}

void AddTeacherPass(WorkList* list, SelectionModel* model, const CalibrationSample* sample,
                    TeacherStates* states, bool keep_inputs) {
  const int32_t layers = model->source().config->layers;
  const auto hidden = static_cast<size_t>(model->source().config->hidden);
  const size_t tap = sample->scored.size() * hidden;
  states->targets.resize(static_cast<size_t>(layers) * tap);
  states->last.resize(tap);
  model->AddEmbed(list, sample->tokens);
  for (int32_t l = 0; l < layers; ++l) {
    const auto at = static_cast<size_t>(l);
    if (keep_inputs) model->AddKeepInput(list, l);
    model->AddMixers(list, l, {.full = true, .linear = false});
    model->AddMix(list, 1);
    AddTap(list, model, &sample->scored, states->targets.data() + at * tap);
    model->AddMlp(list, l);
  }
  AddTap(list, model, &sample->scored, states->last.data());
  list->Add([states] {
    states->known = true;
    return absl::OkStatus();
  });
}

double DotOfRows(const float* a, const float* b, int64_t count) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int64_t j = 0; j < 8; ++j) {
      sums[j] += static_cast<double>(a[i + j]) * static_cast<double>(b[i + j]);
    }
  }
  for (int64_t j = 0; i < count; ++i, ++j) {
    sums[j] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

}  // namespace morphserve
