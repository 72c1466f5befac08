#include "engine/runner/step_graphs.h"

#include <algorithm>
#include <bit>

namespace morphserve {
namespace {

constexpr size_t kGraphsMax = 64;
constexpr int32_t kLeastContext = 1024;

// 1, 2, 4, 8, then multiples of 8 to 64, then of 32: at most an eighth of a larger step is padding.
int32_t PaddedRows(int32_t rows) {
  if (rows <= 8) return static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)));
  const int32_t step = rows <= 64 ? 8 : 32;
  return (rows + step - 1) / step * step;
}

int32_t RowsMax(const ModelLimits& limits) {
  return std::min({limits.sequences, limits.logit_rows, limits.rows});
}

}  // namespace

bool IsDecode(const StepBatch& batch, const ModelLimits& limits) {
  const int32_t rows = batch.rows();
  const auto count = static_cast<size_t>(rows);
  if (rows == 0 || rows > RowsMax(limits) || batch.segments.size() != count ||
      batch.logit_rows.size() != count || !batch.emits.empty()) {
    return false;
  }
  int32_t next = 0;
  return std::all_of(batch.logit_rows.begin(), batch.logit_rows.end(),
                     [&](const LogitRow& row) { return row.row == next++; });
}

bool ShapeOfDecode(const StepBatch& batch, const ModelLimits& limits, int32_t layers,
                   StepShape* shape) {
  if (!IsDecode(batch, limits)) return false;
  const int32_t rows = batch.rows(), most = RowsMax(limits);
  int32_t kv_len = 1;
  shape->kinds.assign(static_cast<size_t>(layers), 0);
  for (size_t i = 0; i < static_cast<size_t>(rows); ++i) {
    const StepSegment& segment = batch.segments[i];
    kv_len = std::max(kv_len, segment.position + segment.row_count);
    for (int32_t l = 0; l < layers; ++l) {
      uint8_t& kinds = shape->kinds[static_cast<size_t>(l)];
      kinds = static_cast<uint8_t>(kinds | (segment.plan->kind(l) == LayerKind::kFull ? 1 : 2));
    }
  }
  shape->rows = std::min(PaddedRows(rows), most);
  shape->kv_len_max = std::min(
      limits.context,
      static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(std::max(kv_len, kLeastContext)))));
  return true;
}

StepGraphs::Entry* StepGraphs::Find(const StepShape& shape, int64_t generation) {
  if (generation != generation_) entries_.clear();
  generation_ = generation;
  if (entries_.size() >= kGraphsMax && !entries_.contains(shape)) {
    entries_.erase(std::min_element(
        entries_.begin(), entries_.end(),
        [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
  }
  Entry* entry = &entries_[shape];
  entry->used = ++uses_;
  return entry;
}

}  // namespace morphserve
