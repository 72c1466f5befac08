// LayerRows is what the operations of one layer are told of a step's rows. All pointers are memory
// of the backend (kernels/backend.h), valid until the next step. Plain values.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention.h"
#include "kernels/mixer_segment.h"

namespace morphserve {

// Which rows an operation treats.
struct RowSet {
  const int32_t* list = nullptr;  // Null: all rows of the step.
  int32_t count = 0;
};

// Every row is in exactly one of the two sets.
struct LayerRows {
  RowSet full;
  std::span<const kernels::AttentionSegment> attention;
  const int32_t* page_of_row = nullptr;    // [rows of the step]; -1 where the layer is linear.
  const int32_t* offset_of_row = nullptr;  // [rows of the step]
  int32_t attention_rows_max = 0;          // Of a segment.
  int32_t attention_first_chunk = 0;   // The first segment of more than one row, or their count.
  bool attention_single_rows = false;  // Whether a segment has just one.
  int32_t kv_len_max = 0;

  RowSet linear;
  std::span<const kernels::MixerSegment> mixer;
  std::span<const kernels::StateEmit> emits;
  int32_t mixer_rows_max = 0;
  int32_t mixer_first_chunk = 0;
  bool mixer_single_rows = false;
  uint8_t* nonfinite = nullptr;  // [mixer]; what the guards of the mixers fill.
};

}  // namespace morphserve
