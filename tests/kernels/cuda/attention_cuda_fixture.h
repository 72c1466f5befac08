// One sequence with a filled cache on the device and a query at every position, and what its rows
// of attention must be. Thread rule: the test's thread.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cuda/page_layout.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/kernels/kv_pages_fixture.h"
#include "tests/reference/attention_reference.h"
#include "tests/reference/mixer_reference.h"

namespace morphserve::kernels::cuda {

// Index in a page of the device; kF16 stands for both types of two bytes.
inline int64_t CudaPlaceInHead(KvDType type, bool, int32_t head_dim, int32_t offset, int32_t i) {
  switch (type) {
    case KvDType::kF32: return PlaceInHead<float>(head_dim, offset, i);
    case KvDType::kE4m3: return PlaceInHead<uint8_t>(head_dim, offset, i);
    default: return PlaceInHead<uint16_t>(head_dim, offset, i);
  }
}

struct AttentionShape {
  int32_t heads, kv_heads, dim;
};

class CudaSequence {
 public:
  CudaSequence(const AttentionShape& s, KvDType type, int32_t length, uint64_t seed,
               float q_scale = 1.0f)
      : shape_(s),
        type_(type),
        length_(length),
        pages_(type, s.kv_heads, s.dim, Pages(), CudaPlaceInHead),
        table_(pages_.Table(0, Pages())),
        device_pages_(std::vector<std::byte>(pages_.base(), pages_.base() + pages_.bytes())),
        device_table_(table_) {
    Numbers numbers(seed);
    const auto n = static_cast<size_t>(length);
    q_ = numbers.Normals(n * Width(), q_scale);
    Fill(numbers.Normals(n * KvWidth()), numbers.Normals(n * KvWidth()));
  }

  // Writes K and V of all positions; q is not changed.
  void Fill(const std::vector<float>& k, const std::vector<float>& v) {
    std::vector<int32_t> page_of_row, offset_of_row;
    for (int32_t p = 0; p < length_; ++p) {
      page_of_row.push_back(table_[static_cast<size_t>(p / kPageTokens)]);
      offset_of_row.push_back(p % kPageTokens);
    }
    const DeviceArray<float> dq(q_), dk(k), dv(v);
    const DeviceArray<int32_t> pages(page_of_row), offsets(offset_of_row);
    ASSERT_TRUE(CudaBackend()
                    ->qk_rope_append({.q = dq.data(),
                                      .q_stride = static_cast<int64_t>(Width()),
                                      .k = dk.data(),
                                      .k_stride = static_cast<int64_t>(KvWidth()),
                                      .v = dv.data(),
                                      .v_stride = static_cast<int64_t>(KvWidth()),
                                      .rows = length_,
                                      .page_of_row = pages.data(),
                                      .offset_of_row = offsets.data(),
                                      .kv_base = device_pages_.data(),
                                      .kv_dtype = type_,
                                      .heads = shape_.heads,
                                      .kv_heads = shape_.kv_heads,
                                      .head_dim = shape_.dim},
                                     {})
                    .ok());
    ASSERT_TRUE(Synchronize({}).ok());
    const std::vector<std::byte> bytes = device_pages_.Read();
    std::copy(bytes.begin(), bytes.end(), pages_.base());
    ReadCache();
  }

  size_t Width() const { return static_cast<size_t>(shape_.heads * shape_.dim); }
  size_t KvWidth() const { return static_cast<size_t>(shape_.kv_heads * shape_.dim); }
  int32_t length() const { return length_; }
  const std::vector<float>& q() const { return q_; }
  const AttentionShape& shape() const { return shape_; }
  const int32_t* device_table() const { return device_table_.data(); }
  const DeviceArray<std::byte>& device_pages() const { return device_pages_; }
  int32_t PageOf(int32_t position) const {
    return table_[static_cast<size_t>(position / kPageTokens)];
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.dim)); }

  // Arguments that still lack segments, their bounds and the workspace.
  AttentionArgs Args(const float* q, float* out, int32_t window) const {
    return {.q = q,
            .q_stride = static_cast<int64_t>(Width()),
            .out = out,
            .out_stride = static_cast<int64_t>(Width()),
            .kv_base = device_pages_.data(),
            .kv_dtype = type_,
            .heads = shape_.heads,
            .kv_heads = shape_.kv_heads,
            .head_dim = shape_.dim,
            .scale = scale(),
            .window = window,
            .segments = {}};
  }

  // Rows [begin, end) as one segment.
  std::vector<float> Run(int32_t begin, int32_t end, int32_t window) const {
    const auto row = q_.begin() + static_cast<std::ptrdiff_t>(begin) * static_cast<int>(Width());
    const DeviceArray<float> dq(
        std::vector<float>(row, row + (end - begin) * static_cast<std::ptrdiff_t>(Width())));
    const DeviceArray<float> out(dq.size());
    AttentionArgs args = Args(dq.data(), out.data(), window);
    RunSegments(&args, {{.row_count = end - begin, .kv_len = end, .page_table = device_table()}});
    return out.Read();
  }

  // As a call with exact bounds.
  static void RunSegments(AttentionArgs* args, const std::vector<AttentionSegment>& segments) {
    args->single_rows = false;
    for (const AttentionSegment& s : segments) {
      args->single_rows = args->single_rows || s.row_count == 1;
      if (args->rows_max < 2 && s.row_count < 2) ++args->first_chunk;
      args->rows_max = std::max(args->rows_max, s.row_count);
      args->kv_len_max = std::max(args->kv_len_max, s.kv_len);
    }
    const DeviceArray<AttentionSegment> device(segments);
    const DeviceArray<std::byte> workspace(static_cast<size_t>(
        CudaBackend()->attention_bytes(static_cast<int32_t>(segments.size()), args->rows_max,
                                       args->kv_len_max, args->heads, args->head_dim, 0)));
    args->segments = {device.data(), segments.size()};
    args->workspace = workspace.data();
    args->workspace_bytes = static_cast<int64_t>(workspace.size());
    const absl::Status status = CudaBackend()->attention(*args, {});
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(Synchronize({}).ok()) << Synchronize({});
  }

  // The row of heads at `position` in fp64 from the values as cached; `naive`: with the query and
  // the weights rounded to the cache type, to f16 beside e4m3, as a plain evaluation on tensor
  // cores would.
  std::vector<double> Expected(int32_t position, int32_t window, bool naive) const {
    const auto begin = static_cast<size_t>(window > 0 ? std::max(0, position - window + 1) : 0);
    const auto end = static_cast<size_t>(position) + 1;
    std::vector<double> out;
    for (int32_t head = 0; head < shape_.heads; ++head) {
      const auto kv_head = static_cast<size_t>(head / (shape_.heads / shape_.kv_heads));
      const float* const row =
          q_.data() + static_cast<size_t>(position) * Width() + head * shape_.dim;
      const std::vector<double> q(row, row + shape_.dim);
      const auto o = naive ? NaiveRow(q, k_[kv_head], v_[kv_head], begin, end)
                           : reference::AttentionRow(q, k_[kv_head], v_[kv_head], begin, end,
                                                     static_cast<double>(scale()));
      out.insert(out.end(), o.begin(), o.end());
    }
    return out;
  }

 private:
  int32_t Pages() const { return (length_ + kPageTokens - 1) / kPageTokens; }

  // [position][element] of a kv head.
  using Rows = std::vector<std::vector<double>>;

  // What the pages hold, in fp64.
  void ReadCache() {
    k_.assign(static_cast<size_t>(shape_.kv_heads), {});
    v_ = k_;
    for (int32_t head = 0; head < shape_.kv_heads; ++head) {
      const auto h = static_cast<size_t>(head);
      for (int32_t p = 0; p < length_; ++p) {
        const int32_t address = table_[static_cast<size_t>(p / kPageTokens)];
        k_[h].emplace_back();
        v_[h].emplace_back();
        for (int32_t i = 0; i < shape_.dim; ++i) {
          k_[h].back().push_back(pages_.K(address, head, p % kPageTokens, i));
          v_[h].back().push_back(pages_.V(address, head, p % kPageTokens, i));
        }
      }
    }
  }

  std::vector<double> NaiveRow(std::vector<double> q, const Rows& k, const Rows& v, size_t begin,
                               size_t end) const {
    const KvDType factors = type_ == KvDType::kE4m3 ? KvDType::kF16 : type_;
    for (double& x : q) x = reference::RoundToCache(factors, x);
    std::vector<double> scores;
    for (size_t p = begin; p < end; ++p) {
      double dot = 0;
      for (size_t i = 0; i < q.size(); ++i) dot += q[i] * k[p][i];
      scores.push_back(dot * static_cast<double>(scale()));
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    std::vector<double> out(q.size(), 0.0);
    double sum = 0;
    for (size_t p = begin; p < end; ++p) {
      const double weight = std::exp(scores[p - begin] - largest);
      sum += weight;
      const double rounded = reference::RoundToCache(factors, weight);
      for (size_t i = 0; i < q.size(); ++i) out[i] += rounded * v[p][i];
    }
    for (double& o : out) o /= sum;
    return out;
  }

  AttentionShape shape_;
  KvDType type_;
  int32_t length_;
  KvPages pages_;
  std::vector<int32_t> table_;
  DeviceArray<std::byte> device_pages_;
  DeviceArray<int32_t> device_table_;
  std::vector<float> q_;
  std::vector<Rows> k_, v_;  // Of each kv head.
};

}  // namespace morphserve::kernels::cuda
