// StepBatch is the work list of one step: which token rows of which sequences to compute, where
// their caches lie, and which rows to sample. Rows are split by layer kind from the sequences'
// plans, so one batch mixes plans. Plain values; pointers are borrowed for the step.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/cache/unit_pool.h"
#include "engine/model/layer_plan.h"
#include "kernels/sample.h"

namespace morphserve {

// Where one sequence's caches lie: a page table for every full layer, a slot for every linear one.
struct SequenceCaches {
  std::vector<std::vector<UnitAddress>> pages;  // [layers][pages]; empty where the layer is linear.
  std::vector<UnitAddress> slots;               // [layers]; -1 where the layer is full.
};

// Consecutive rows of one sequence.
struct StepSegment {
  int32_t row_begin = 0;
  int32_t row_count = 0;
  int32_t position = 0;  // Of the first row.
  const SequenceCaches* caches = nullptr;
  const LayerPlan* plan = nullptr;
};

// One row whose logits are needed: to sample a token, or to score a known one.
struct LogitRow {
  int32_t row = 0;
  kernels::SampleArgs sample;  // `logits`, `vocab` and `piece_count` are filled by the runner.
  int32_t score_token = -1;    // >= 0: score this token instead of sampling.
};

struct PageCopy {
  UnitAddress from = 0;
  UnitAddress to = 0;
};

struct StepBatch {
  std::vector<int32_t> tokens;  // [rows]
  std::vector<StepSegment> segments;
  std::vector<LogitRow> logit_rows;

  int32_t rows() const { return static_cast<int32_t>(tokens.size()); }
  void Clear() {
    tokens.clear();
    segments.clear();
    logit_rows.clear();
  }
};

}  // namespace morphserve
