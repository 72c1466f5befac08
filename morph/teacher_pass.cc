#include "morph/teacher_pass.h"

#include <algorithm>
#include <cstring>

namespace morphserve {

void AddTap(WorkList* list, const SelectionModel* model, const std::vector<int32_t>* rows,
            float* out) {
  list->Add([model, rows, out] {
    const int64_t hidden = model->source().config->hidden;
    float* to = out;
    for (const int32_t row : *rows) {
      to = std::copy_n(model->x() + row * hidden, hidden, to);
    }
    return absl::OkStatus();
  });
}

void AddSaveStream(WorkList* list, const SelectionModel* model, float* stream) {
  list->Add([model, stream] {
    const int64_t count = int64_t{model->tokens()} * model->source().config->hidden;
    std::copy_n(model->x(), count, stream);
    return absl::OkStatus();
  });
}

void AddRestoreStream(WorkList* list, const SelectionModel* model, const float* stream) {
  list->Add([model, stream] {
    const int64_t count = int64_t{model->tokens()} * model->source().config->hidden;
    std::copy_n(stream, count, model->x());
    return absl::OkStatus();
  });
}

void AddTeacherPass(WorkList* list, SelectionModel* model, const CalibrationSample* sample,
                    TeacherStates* states, std::vector<float>* inputs) {
  const int32_t layers = model->source().config->layers;
  const auto hidden = static_cast<size_t>(model->source().config->hidden);
  const size_t stream = sample->tokens.size() * hidden;
  const size_t tap = sample->scored.size() * hidden;
  states->targets.resize(static_cast<size_t>(layers) * tap);
  states->last.resize(tap);
  if (inputs != nullptr) inputs->resize(static_cast<size_t>(layers) * stream);
  model->AddEmbed(list, sample->tokens);
  for (int32_t l = 0; l < layers; ++l) {
    const auto at = static_cast<size_t>(l);
    if (inputs != nullptr) AddSaveStream(list, model, inputs->data() + at * stream);
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
