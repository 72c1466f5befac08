#include "kernels/qk_rope_append.h"

#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/qk_rope_append.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/cache_types-inl.h"
#include "kernels/cpu/head_ops-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// Rounds the row's k and v to the cache type and puts them into place `offset` of its page.
template <class T>
HWY_INLINE void AppendRow(const QkRopeAppendArgs& args, const float* k, const float* v,
                          std::byte* page, size_t offset) {
  const auto dim = static_cast<size_t>(args.head_dim);
  const auto kv_heads = static_cast<size_t>(args.kv_heads);
  constexpr auto kTokens = static_cast<size_t>(kPageTokens);
  T* const k_page = reinterpret_cast<T*>(page);         // [kv_heads][d][64]
  T* const v_page = k_page + kv_heads * dim * kTokens;  // [kv_heads][64][d]
  T narrow[256];
  for (size_t head = 0; head < kv_heads; ++head) {
    Narrow(k + head * dim, dim, narrow);
    T* const column = k_page + head * dim * kTokens + offset;
    for (size_t i = 0; i < dim; ++i) column[i * kTokens] = narrow[i];
    Narrow(v + head * dim, dim, v_page + (head * kTokens + offset) * dim);
  }
}

void QkRopeAppendRow(const QkRopeAppendArgs& args, int32_t row) {
  const int32_t page = args.page_of_row[row];
  if (page < 0) return;
  const auto dim = static_cast<size_t>(args.head_dim);
  const auto pairs = static_cast<size_t>(args.rotary_dim / 2);
  const float* const cos = args.cos + static_cast<size_t>(row) * pairs;
  const float* const sin = args.sin + static_cast<size_t>(row) * pairs;
  const auto prepare = [&](float* heads, int32_t count, const float* norm) HWY_ATTR {
    for (float* head = heads; head != heads + static_cast<size_t>(count) * dim; head += dim) {
      if (norm != nullptr) NormHead(head, norm, dim, args.norm_eps);
      RotateHead(head, cos, sin, pairs, args.interleaved);
    }
  };
  float* const k = args.k + row * args.k_stride;
  prepare(args.q + row * args.q_stride, args.heads, args.q_norm);
  prepare(k, args.kv_heads, args.k_norm);
  const float* const v = args.v + row * args.v_stride;
  std::byte* const destination = args.kv_base + page * kArenaUnitBytes;
  const auto offset = static_cast<size_t>(args.offset_of_row[row]);
  switch (args.kv_dtype) {
    case KvDType::kF32: AppendRow<float>(args, k, v, destination, offset); break;
    case KvDType::kF16: AppendRow<hwy::float16_t>(args, k, v, destination, offset); break;
    case KvDType::kBF16: AppendRow<hwy::bfloat16_t>(args, k, v, destination, offset); break;
    case KvDType::kE4m3: break;  // Refused before.
  }
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(QkRopeAppendRow);

constexpr int32_t kHeadDimMax = 256;
// Below this many rows a barrier costs more than it saves.
constexpr int32_t kInlineRows = 2;

absl::Status Check(const QkRopeAppendArgs& args) {
  if (args.rows < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d is negative", args.rows));
  }
  if (args.kv_dtype == KvDType::kE4m3) {
    return absl::InvalidArgumentError("pages of e4m3 are not supported on the CPU");
  }
  if (args.head_dim < 1 || args.head_dim > kHeadDimMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("head_dim %d is outside 1..%d", args.head_dim, kHeadDimMax));
  }
  if (args.rotary_dim < 0 || args.rotary_dim > args.head_dim || args.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "rotary_dim %d is not an even number in 0..%d", args.rotary_dim, args.head_dim));
  }
  if (args.kv_heads < 1 || args.heads < 1 || args.heads % args.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("heads %d is not a multiple of kv_heads %d", args.heads, args.kv_heads));
  }
  for (int32_t r = 0; r < args.rows; ++r) {
    const int32_t row = args.row_list == nullptr ? r : args.row_list[r];
    if (row < 0 || args.page_of_row[row] < 0) continue;
    if (args.offset_of_row[row] < 0 || args.offset_of_row[row] >= kPageTokens) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "offset %d of row %d is outside 0..%d", args.offset_of_row[row], row, kPageTokens - 1));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status QkRopeAppend(const QkRopeAppendArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  const auto row_kernel = HWY_DYNAMIC_DISPATCH(QkRopeAppendRow);
  const auto work = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t row = args.row_list == nullptr ? static_cast<int32_t>(r) : args.row_list[r];
      if (row >= 0) row_kernel(args, row);
    }
  };
  if (args.rows <= kInlineRows) {
    work(0, args.rows);
    return absl::OkStatus();
  }
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.rows, worker);
    work(part.begin, part.end);
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
