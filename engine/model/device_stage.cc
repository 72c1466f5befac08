#include "engine/model/device_stage.h"

#include <algorithm>
#include <cstring>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/model/host_stage.h"

namespace morphserve {
namespace {

using kernels::cuda::CopyToDevice;
using kernels::cuda::CopyToHost;

constexpr int64_t kAlignment = 64;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceStage>> DeviceStage::Create(int32_t layers,
                                                                 const ModelLimits& limits,
                                                                 kernels::Stream stream) {
  std::unique_ptr<DeviceStage> stage(new DeviceStage);
  stage->stream_ = stream;
  stage->limits_ = limits;
  stage->layers_.resize(static_cast<size_t>(layers));
  MS_ASSIGN_OR_RETURN(stage->flags_, kernels::cuda::DeviceMemory::Allocate(
                                         int64_t{layers} * std::max(limits.sequences, 1)));
  MS_ASSIGN_OR_RETURN(stage->host_flags_,
                      kernels::cuda::PinnedMemory::Allocate(stage->flags_.bytes()));
  MS_RETURN_IF_ERROR(stage->Grow(int64_t{1} << 20));
  return stage;
}

// The device is idle between steps, so nothing reads what is given back.
absl::Status DeviceStage::Grow(int64_t bytes) {
  if (bytes <= staging_.bytes()) return absl::OkStatus();
  bytes = std::max(bytes, 2 * staging_.bytes());
  MS_ASSIGN_OR_RETURN(staging_, kernels::cuda::PinnedMemory::Allocate(bytes));
  MS_ASSIGN_OR_RETURN(device_, kernels::cuda::DeviceMemory::Allocate(bytes));
  return absl::OkStatus();
}

int64_t DeviceStage::BytesNeeded(const StepBatch& batch, int32_t layers) const {
  const auto rows = static_cast<int64_t>(batch.rows());
  const auto segments = static_cast<int64_t>(batch.segments.size());
  const auto emits = static_cast<int64_t>(batch.emits.size());
  int64_t pages = 0;
  for (const StepSegment& segment : batch.segments) {
    pages += (segment.position + segment.row_count + kPageTokens - 1) / kPageTokens;
  }
  const auto per_layer =
      rows * 4 * 3 + emits * static_cast<int64_t>(sizeof(kernels::StateEmit)) + pages * 4 +
      segments *
          static_cast<int64_t>(sizeof(kernels::AttentionSegment) + sizeof(kernels::MixerSegment)) +
      8 * kAlignment + segments * kAlignment;
  // Tokens, positions, and the lists that the logits will ask for.
  return layers * per_layer + 3 * Aligned(rows * 4) + 64 * kAlignment +
         Aligned(4 * (static_cast<int64_t>(batch.logit_rows.size()) + limits_.logit_rows));
}

template <typename T>
T* DeviceStage::Stage(const T* values, size_t count) {
  const auto bytes = static_cast<int64_t>(count * sizeof(T));
  MS_CHECK(used_ + Aligned(bytes) <= staging_.bytes());
  std::byte* const there = device_.data() + used_;
  if (bytes > 0) std::memcpy(staging_.data() + used_, values, static_cast<size_t>(bytes));
  used_ += Aligned(bytes);
  return reinterpret_cast<T*>(there);
}

void DeviceStage::StageLayer(const StepBatch& batch, int32_t layer) {
  split_.Split(batch, layer);
  StagedLayer& staged = layers_[static_cast<size_t>(layer)];
  for (kernels::AttentionSegment& segment : split_.attention) {
    const auto pages = static_cast<size_t>((segment.kv_len + kPageTokens - 1) / kPageTokens);
    segment.page_table = Stage(segment.page_table, pages);
  }
  staged.rows = split_.View();
  staged.batch_segment = split_.batch_segment;
  LayerRows& rows = staged.rows;
  const auto all = static_cast<size_t>(batch.rows());
  if (rows.full.list != nullptr) rows.full.list = Stage(split_.full.data(), split_.full.size());
  if (rows.linear.list != nullptr) {
    rows.linear.list = Stage(split_.linear.data(), split_.linear.size());
  }
  if (rows.full.count > 0) {
    rows.page_of_row = Stage(split_.page_of_row.data(), all);
    rows.offset_of_row = Stage(split_.offset_of_row.data(), all);
  }
  rows.attention = {Stage(split_.attention.data(), split_.attention.size()),
                    split_.attention.size()};
  rows.mixer = {Stage(split_.mixer.data(), split_.mixer.size()), split_.mixer.size()};
  rows.emits = {Stage(split_.emits.data(), split_.emits.size()), split_.emits.size()};
  rows.nonfinite =
      reinterpret_cast<uint8_t*>(flags_.data()) + int64_t{layer} * std::max(limits_.sequences, 1);
}

absl::Status DeviceStage::Begin(const StepBatch& batch, int32_t begin, int32_t end) {
  MS_RETURN_IF_ERROR(Grow(BytesNeeded(batch, end - begin)));
  used_ = sent_ = 0;
  begin_ = begin;
  end_ = end;
  segments_ = batch.segments.size();
  FillPositions(batch, &filled_positions_);
  tokens_ = Stage(batch.tokens.data(), batch.tokens.size());
  positions_ = Stage(filled_positions_.data(), filled_positions_.size());
  for (int32_t layer = begin; layer < end; ++layer) StageLayer(batch, layer);
  MS_RETURN_IF_ERROR(Send());
  return kernels::cuda::FillBytes(flags_.data(), 0, flags_.bytes(), stream_);
}

absl::Status DeviceStage::Send() {
  const int64_t from = sent_;
  sent_ = used_;
  return CopyToDevice(device_.data() + from, staging_.data() + from, used_ - from, stream_);
}

absl::StatusOr<const int32_t*> DeviceStage::List(const int32_t* values, int32_t count) {
  const int32_t* there = Stage(values, static_cast<size_t>(count));
  MS_RETURN_IF_ERROR(Send());
  return there;
}

absl::Status DeviceStage::Finish(std::vector<uint8_t>* nonfinite) {
  MS_RETURN_IF_ERROR(CopyToHost(host_flags_.data(), flags_.data(), flags_.bytes(), stream_));
  MS_RETURN_IF_ERROR(kernels::cuda::Synchronize(stream_));
  nonfinite->assign(segments_, 0);
  const auto* flags = reinterpret_cast<const uint8_t*>(host_flags_.data());
  for (int32_t layer = begin_; layer < end_; ++layer) {
    const std::vector<int32_t>& segments = layers_[static_cast<size_t>(layer)].batch_segment;
    const uint8_t* of_layer = flags + int64_t{layer} * std::max(limits_.sequences, 1);
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
