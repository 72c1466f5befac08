// Memory, rows between host and backend, kept inputs, logits.
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/engine.h"
#include "morph/reasons.h"
#include "morph/selection_model.h"

namespace morphserve {
namespace {

constexpr auto kFloat = static_cast<int64_t>(sizeof(float));

}  // namespace

absl::StatusOr<BackendMemory> SelectionModel::Allocate(int64_t bytes) const {
  auto memory = BackendMemory::Allocate(
      source_.selection->on_device ? MemoryPlace::kDevice : MemoryPlace::kHost, bytes);
  if (!absl::IsResourceExhausted(memory.status())) return memory;
  return WithReason(absl::ResourceExhaustedError(
                        absl::StrFormat("%d MiB to select layers in are not free: %s", bytes >> 20,
                                        std::string(memory.status().message()))),
                    reason::kSelectionMemory);
}

absl::Status SelectionModel::Put(void* to, const void* host, int64_t bytes) const {
  return source_.selection->put(to, host, bytes, source_.stream);
}

absl::Status SelectionModel::Zero(float* rows, int64_t count) const {
  return source_.selection->zero(rows, count * kFloat, source_.stream);
}

void SelectionModel::AddKeepInput(WorkList* list, int32_t layer) {
  list->Add([this, layer]() -> absl::Status {
    if (kept_.data() == nullptr) {
      MS_ASSIGN_OR_RETURN(kept_, Allocate(KeptBytes(*source_.config, tokens_max_)));
    }
    return source_.selection->copy(Kept(layer), b_.x, tokens_ * hidden_ * kFloat, source_.stream);
  });
}

void SelectionModel::AddTakeInput(WorkList* list, int32_t layer) {
  list->Add([this, layer] {
    return source_.selection->copy(b_.x, Kept(layer), tokens_ * hidden_ * kFloat, source_.stream);
  });
}

absl::Status SelectionModel::ReadRows(const float* buffer, std::span<const int32_t> rows,
                                      float* out) const {
  const auto count = static_cast<int32_t>(rows.size());
  MS_CHECK(count <= tokens_max_);
  MS_RETURN_IF_ERROR(Put(b_.row_list, rows.data(), static_cast<int64_t>(rows.size_bytes())));
  MS_RETURN_IF_ERROR(source_.backend->copy_rows({.x = buffer,
                                                 .x_stride = hidden_,
                                                 .row_list = b_.row_list,
                                                 .rows = count,
                                                 .width = source_.config->hidden,
                                                 .y = b_.picked,
                                                 .y_stride = hidden_},
                                                source_.stream));
  return source_.selection->get(out, b_.picked, count * hidden_ * kFloat, source_.stream);
}

absl::Status SelectionModel::AddToGrad(std::span<const int32_t> rows, const float* values) const {
  // Spread over all rows first: a row that is not listed takes a row of zeros.
  std::vector<int32_t> places(static_cast<size_t>(tokens_), -1);
  for (size_t i = 0; i < rows.size(); ++i) {
    places[static_cast<size_t>(rows[i])] = static_cast<int32_t>(i);
  }
  MS_RETURN_IF_ERROR(Put(b_.row_list, places.data(), tokens_ * int64_t{sizeof(int32_t)}));
  MS_RETURN_IF_ERROR(Put(b_.picked, values, static_cast<int64_t>(rows.size()) * hidden_ * kFloat));
  MS_RETURN_IF_ERROR(source_.backend->copy_rows({.x = b_.picked,
                                                 .x_stride = hidden_,
                                                 .row_list = b_.row_list,
                                                 .rows = tokens_,
                                                 .width = source_.config->hidden,
                                                 .y = b_.dmix,
                                                 .y_stride = hidden_},
                                                source_.stream));
  return source_.selection->gate_mix({.x = b_.dx,
                                      .full = b_.dmix,
                                      .gate = 1,
                                      .y = b_.dx,
                                      .stride = hidden_,
                                      .rows = tokens_,
                                      .hidden = source_.config->hidden},
                                     source_.stream);
}

absl::Status SelectionModel::LogitsOf(const float* stream_rows, int32_t count,
                                      float* logits) const {
  MS_CHECK(count <= kLogitRows);
  const ModelConfig& c = *source_.config;
  MS_RETURN_IF_ERROR(Put(b_.logits_rows, stream_rows, count * hidden_ * kFloat));
  MS_RETURN_IF_ERROR(source_.backend->rms_norm({.x = b_.logits_rows,
                                                .x_stride = hidden_,
                                                .weight = source_.weights->output_norm.data(),
                                                .y = b_.logits_rows,
                                                .y_stride = hidden_,
                                                .rows = count,
                                                .hidden = c.hidden,
                                                .eps = c.norm_eps},
                                               source_.stream));
  const Product head = {&source_.weights->head, nullptr, b_.logits, c.vocab};
  MS_RETURN_IF_ERROR(Multiply(b_.logits_rows, hidden_, 0, count, std::span(&head, 1)));
  return source_.selection->get(logits, b_.logits, int64_t{count} * c.vocab * kFloat,
                                source_.stream);
}

}  // namespace morphserve
