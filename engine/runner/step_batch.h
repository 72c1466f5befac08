// StepBatch is the work list of one step: which token rows of which sequences to compute, where
// their caches lie, and which rows to sample. Rows are split by layer kind from the sequences'
// plans, so one batch mixes plans. Plain values; pointers are borrowed for the step.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/cache/sequence_caches.h"
#include "engine/model/layer_plan.h"
#include "kernels/sample.h"

namespace morphserve {

// Consecutive rows of one sequence.
struct StepSegment {
  int32_t row_begin = 0;
  int32_t row_count = 0;
  int32_t position = 0;  // Of the first row.
  const SequenceCaches* caches = nullptr;
  const LayerPlan* plan = nullptr;
  int32_t emit_begin = 0;  // Into the batch's `emits`, ascending.
  int32_t emit_count = 0;
};

// The memory of every linear layer after the first `rows` rows of a segment goes to `slots` too.
struct SnapshotEmit {
  int32_t rows = 0;
  const std::vector<UnitAddress>* slots = nullptr;  // [layers]; -1 where the layer is full.
};

// One row whose logits are needed: to sample a token, or to score a known one.
struct LogitRow {
  int32_t row = 0;
  kernels::SampleArgs sample;  // `logits`, `vocab` and `piece_count` are filled by the runner.
  int32_t score_token = -1;    // >= 0: score this token instead of sampling.
};

struct StepBatch {
  std::vector<int32_t> tokens;  // [rows]
  // Empty, or [rows]: a row's token is what this logit row of the step begun before samples, and
  // `tokens` has nothing to say. Such a step has single rows that all sample.
  std::vector<int32_t> follows;
  std::vector<StepSegment> segments;
  std::vector<SnapshotEmit> emits;
  std::vector<LogitRow> logit_rows;

  int32_t rows() const { return static_cast<int32_t>(tokens.size()); }
  void Clear() {
    tokens.clear();
    follows.clear();
    segments.clear();
    emits.clear();
    logit_rows.clear();
  }
};

}  // namespace morphserve
