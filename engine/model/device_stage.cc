#include "engine/model/device_stage.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/model/host_stage.h"
#include "kernels/cuda/sample.h"

namespace morphserve {
namespace {

using kernels::cuda::CopyToDevice;
using kernels::cuda::CopyToHost;

constexpr int64_t kAlignment = 64;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t Pages(int32_t kv_len) { return (kv_len + kPageTokens - 1) / kPageTokens; }

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceStage>> DeviceStage::Create(int32_t layers,
                                                                 const ModelLimits& limits,
                                                                 kernels::Stream stream) {
  std::unique_ptr<DeviceStage> stage(new DeviceStage);
  stage->stream_ = stream;
  stage->sequences_ = std::max(limits.sequences, 1);
  stage->logit_rows_ = limits.logit_rows;
  MS_ASSIGN_OR_RETURN(stage->flags_,
                      kernels::cuda::DeviceMemory::Allocate(int64_t{layers} * stage->sequences_));
  for (Step& step : stage->steps_) {
    step.layers.resize(static_cast<size_t>(layers));
    MS_ASSIGN_OR_RETURN(step.flags, kernels::cuda::PinnedMemory::Allocate(stage->flags_.bytes()));
    MS_ASSIGN_OR_RETURN(step.done, kernels::cuda::Event::Create());
  }
  MS_RETURN_IF_ERROR(stage->Grow(int64_t{4} << 20));
  return stage;
}

// Room for the step begun last. Its own staging memory is idle; the device's may be read by the
// step before.
absl::Status DeviceStage::Grow(int64_t bytes) {
  if (bytes > device_.bytes()) {
    bytes = std::max(bytes, 2 * device_.bytes());
    MS_RETURN_IF_ERROR(kernels::cuda::Synchronize(stream_));
    MS_ASSIGN_OR_RETURN(device_, kernels::cuda::DeviceMemory::Allocate(bytes));
    ++generation_;
  }
  if (step_->staging.bytes() >= device_.bytes()) return absl::OkStatus();
  MS_ASSIGN_OR_RETURN(step_->staging, kernels::cuda::PinnedMemory::Allocate(device_.bytes()));
  return absl::OkStatus();
}

int64_t DeviceStage::BytesNeeded(const StepBatch& batch, int32_t layers) const {
  const auto rows = std::max<int64_t>(batch.rows(), padded_);
  const auto segments = std::max<int64_t>(static_cast<int64_t>(batch.segments.size()), padded_);
  const auto emits = static_cast<int64_t>(batch.emits.size());
  int64_t tables = 0;
  for (const StepSegment& segment : batch.segments) {
    tables += Aligned(Pages(segment.position + segment.row_count) * 4);
  }
  const auto per_layer =
      4 * Aligned(rows * 4) +
      Aligned(segments * static_cast<int64_t>(sizeof(kernels::MixerSegment))) +
      Aligned(segments * static_cast<int64_t>(sizeof(kernels::AttentionSegment))) +
      Aligned(emits * static_cast<int64_t>(sizeof(kernels::StateEmit))) + tables;
  const auto logits = static_cast<int64_t>(batch.logit_rows.size()) * 4 + 64 * kAlignment;
  return layers * per_layer + 3 * Aligned(rows * 4) + Aligned(logits + int64_t{logit_rows_} * 4);
}

template <typename T>
T* DeviceStage::Reserve(size_t count, T** here) {
  const auto bytes = Aligned(static_cast<int64_t>(count * sizeof(T)));
  MS_CHECK(used_ + bytes <= step_->staging.bytes());
  *here = reinterpret_cast<T*>(step_->staging.data() + used_);
  T* const there = reinterpret_cast<T*>(device_.data() + used_);
  used_ += bytes;
  return there;
}

template <typename T>
T* DeviceStage::Put(const std::vector<T>& values, const T& padding) {
  const size_t count = std::max(values.size(), static_cast<size_t>(padded_));
  T* here = nullptr;
  T* there = Reserve(count, &here);
  std::copy(values.begin(), values.end(), here);
  std::fill(here + values.size(), here + count, padding);
  return there;
}

// Everything whose place does not depend on how long sequences are.
void DeviceStage::StageLists(const StepBatch& batch, int32_t layer) {
  StagedLayer& staged = step_->layers[static_cast<size_t>(layer)];
  staged.split.Split(batch, layer);
  staged.rows = staged.split.View();
  LayerRows& rows = staged.rows;
  const bool mixed = rows.full.count > 0 && rows.linear.count > 0;
  const StepRows& split = staged.split;
  if (mixed) {
    rows.full.list = Put(split.full, -1);
    rows.linear.list = Put(split.linear, -1);
  }
  if (rows.full.count > 0) {
    rows.page_of_row = Put(split.page_of_row, -1);
    rows.offset_of_row = Put(split.offset_of_row, 0);
    const size_t count = std::max(split.attention.size(), static_cast<size_t>(padded_));
    const kernels::AttentionSegment* there = Reserve(count, &staged.attention);
    rows.attention = {there, count};
  }
  if (rows.linear.count > 0) {
    const kernels::MixerSegment* there = Put(split.mixer, {});
    rows.mixer = {there, std::max(split.mixer.size(), static_cast<size_t>(padded_))};
    // A padded step has none.
    if (!split.emits.empty()) rows.emits = {Put(split.emits, {}), split.emits.size()};
    rows.nonfinite = reinterpret_cast<uint8_t*>(flags_.data()) + int64_t{layer} * sequences_;
  }
  if (padded_ == 0) return;
  if (rows.full.count > 0) rows.full.count = padded_;
  if (rows.linear.count > 0) rows.linear.count = padded_;
}

void DeviceStage::StagePageTables(int32_t layer) {
  StagedLayer& staged = step_->layers[static_cast<size_t>(layer)];
  if (staged.rows.full.count == 0) return;
  size_t at = 0;
  for (kernels::AttentionSegment segment : staged.split.attention) {
    int32_t* here = nullptr;
    const auto pages = static_cast<size_t>(Pages(segment.kv_len));
    const int32_t* there = Reserve(pages, &here);
    std::copy_n(segment.page_table, pages, here);
    segment.page_table = there;
    staged.attention[at++] = segment;
  }
  std::fill(staged.attention + at, staged.attention + staged.rows.attention.size(),
            kernels::AttentionSegment{});
}

absl::Status DeviceStage::Begin(const StepBatch& batch, int32_t begin, int32_t end,
                                int32_t padded_rows) {
  MS_CHECK(padded_rows == 0 ? batch.follows.empty() : batch.emits.empty());
  if (step_->closed) step_ = Other();
  MS_CHECK(!step_->closed);  // At most two are under way.
  padded_ = padded_rows;
  MS_RETURN_IF_ERROR(Grow(BytesNeeded(batch, end - begin)));
  used_ = sent_ = 0;
  step_->begin = begin;
  step_->end = end;
  step_->segments = batch.segments.size();
  FillPositions(batch, &filled_positions_);
  tokens_ = Put(batch.tokens, -1);
  positions_ = Put(filled_positions_, 0);
  if (padded_ > 0) follows_ = Put(batch.follows, -1);
  for (int32_t layer = begin; layer < end; ++layer) StageLists(batch, layer);
  for (int32_t layer = begin; layer < end; ++layer) StagePageTables(layer);
  MS_RETURN_IF_ERROR(Send());
  return kernels::cuda::FillBytes(flags_.data(), 0, flags_.bytes(), stream_);
}

absl::Status DeviceStage::Send() {
  const int64_t from = sent_;
  sent_ = used_;
  return CopyToDevice(device_.data() + from, step_->staging.data() + from, used_ - from, stream_);
}

absl::StatusOr<const int32_t*> DeviceStage::List(const int32_t* values, int32_t count) {
  MS_CHECK(padded_ == 0);  // A recorded step asks for all of its rows, in order: no list.
  int32_t* here = nullptr;
  const int32_t* there = Reserve(static_cast<size_t>(count), &here);
  std::copy_n(values, count, here);
  MS_RETURN_IF_ERROR(Send());
  return there;
}

absl::Status DeviceStage::Follow(const int32_t* sampled) {
  MS_CHECK(padded_ > 0);
  return kernels::cuda::FollowTokens(sampled, follows_, padded_, tokens_, stream_);
}

absl::Status DeviceStage::Close() {
  MS_RETURN_IF_ERROR(CopyToHost(step_->flags.data(), flags_.data(), flags_.bytes(), stream_));
  MS_RETURN_IF_ERROR(step_->done.Record(stream_));
  step_->closed = true;
  return absl::OkStatus();
}

absl::Status DeviceStage::Finish(std::vector<uint8_t>* nonfinite) {
  Step* step = Other();
  if (!step->closed) step = step_;
  if (!step->closed) MS_RETURN_IF_ERROR(Close());
  step->closed = false;
  MS_RETURN_IF_ERROR(step->done.Synchronize());
  nonfinite->assign(step->segments, 0);
  const auto* flags = reinterpret_cast<const uint8_t*>(step->flags.data());
  for (int32_t layer = step->begin; layer < step->end; ++layer) {
    const auto& segments = step->layers[static_cast<size_t>(layer)].split.batch_segment;
    const uint8_t* of_layer = flags + int64_t{layer} * sequences_;
    for (size_t i = 0; i < segments.size(); ++i) {
      if (of_layer[i] != 0) (*nonfinite)[static_cast<size_t>(segments[i])] = 1;
    }
  }
  return absl::OkStatus();
}

absl::Status DeviceStage::Put(void* backend, const void* host, int64_t bytes) {
  return CopyToDevice(backend, host, bytes, stream_);
}

absl::Status DeviceStage::Get(void* host, const void* backend, int64_t bytes) {
  MS_RETURN_IF_ERROR(CopyToHost(host, backend, bytes, stream_));
  return kernels::cuda::Synchronize(stream_);
}

}  // namespace morphserve
