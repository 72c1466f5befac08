// Splits the rows of a step by the kind of branch that their sequences' plans take at one layer,
// into the lists that the mixers' contracts ask for. Every row is on exactly one list. Thread rule:
// engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/runner/step_batch.h"
#include "kernels/attention.h"
#include "kernels/mixer_segment.h"

namespace morphserve {

// Which rows an operation treats: null when it is all of them.
struct RowList {
  std::vector<int32_t> rows;
  bool all = false;

  int32_t count() const { return static_cast<int32_t>(rows.size()); }
  const int32_t* list() const { return all ? nullptr : rows.data(); }
};

struct StepRows {
  RowList full;
  std::vector<kernels::AttentionSegment> attention;
  std::vector<int32_t> page_of_row;    // [rows of the step]; -1 where the layer is linear.
  std::vector<int32_t> offset_of_row;  // [rows of the step]

  RowList linear;
  std::vector<kernels::MixerSegment> mixer;
  std::vector<kernels::StateEmit> emits;
  std::vector<int32_t> batch_segment;  // Of each entry of `mixer`: its segment in the batch.
  std::vector<uint8_t> nonfinite;      // [mixer]; what the guards of the mixers fill.

  // Refills everything for `layer`.
  void Split(const StepBatch& batch, int32_t layer);
};

}  // namespace morphserve
