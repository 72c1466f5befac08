// Splits the rows of a step by the kind of branch that their sequences' plans take at one layer,
// into the lists that the mixers' contracts ask for. Every row is on exactly one list. Thread rule:
// engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/model/layer_rows.h"
#include "engine/runner/step_batch.h"

namespace morphserve {

struct StepRows {
  std::vector<int32_t> full;
  std::vector<kernels::AttentionSegment> attention;
  std::vector<int32_t> page_of_row;    // [rows of the step]; -1 where the layer is linear.
  std::vector<int32_t> offset_of_row;  // [rows of the step]

  std::vector<int32_t> linear;
  std::vector<kernels::MixerSegment> mixer;
  std::vector<kernels::StateEmit> emits;
  std::vector<int32_t> batch_segment;  // Of each entry of `mixer`: its segment in the batch.
  std::vector<uint8_t> nonfinite;      // [mixer]; what the guards of the mixers fill.

  // Refills everything for `layer`.
  void Split(const StepBatch& batch, int32_t layer);
  // What was filled, in place.
  LayerRows View();
};

}  // namespace morphserve
