#include "engine/model/host_stage.h"

#include <cstring>

#include "engine/base/check.h"

namespace morphserve {

void FillPositions(const StepBatch& batch, std::vector<int32_t>* positions) {
  positions->assign(static_cast<size_t>(batch.rows()), 0);
  for (const StepSegment& segment : batch.segments) {
    for (int32_t r = 0; r < segment.row_count; ++r) {
      (*positions)[static_cast<size_t>(segment.row_begin + r)] = segment.position + r;
    }
  }
}

absl::Status HostStage::Begin(const StepBatch& batch, int32_t, int32_t, int32_t padded_rows) {
  MS_CHECK(padded_rows == 0);
  batch_ = &batch;
  FillPositions(batch, &positions_);
  nonfinite_.assign(batch.segments.size(), 0);
  rows_.mixer.clear();
  return absl::OkStatus();
}

LayerRows HostStage::Layer(int32_t layer) {
  CollectGuards();
  rows_.Split(*batch_, layer);
  return rows_.View();
}

// Guards are collected over all layers: which segments saw a value that is not finite.
void HostStage::CollectGuards() {
  for (size_t i = 0; i < rows_.mixer.size(); ++i) {
    if (rows_.nonfinite[i] != 0) nonfinite_[static_cast<size_t>(rows_.batch_segment[i])] = 1;
  }
}

absl::Status HostStage::Finish(std::vector<uint8_t>* nonfinite) {
  CollectGuards();
  *nonfinite = nonfinite_;
  return absl::OkStatus();
}

absl::Status HostStage::Put(void* backend, const void* host, int64_t bytes) {
  std::memcpy(backend, host, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

absl::Status HostStage::Get(void* host, const void* backend, int64_t bytes) {
  std::memcpy(host, backend, static_cast<size_t>(bytes));
  return absl::OkStatus();
}

}  // namespace morphserve
