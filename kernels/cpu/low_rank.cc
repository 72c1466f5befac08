#include "kernels/low_rank.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/low_rank_block.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/packed_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/low_rank.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/cache_types-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

// Rows whose sums are in registers at one time.
constexpr size_t kSumRows = HWY_TARGET == HWY_AVX3 ? 8 : 4;
constexpr size_t kPanel = kPanelOutputs;
constexpr size_t kPanelVectors = kPanel / hn::MaxLanes(FullTag());

// sums[r][16] = sum over k of x[r][k] * w[k][16], one FMA chain each, k ascending.
template <size_t kRows, class T>
HWY_INLINE void PanelSums(const T* HWY_RESTRICT w, size_t depth, const float* const* x,
                          float* HWY_RESTRICT out) {
  const FullTag d;
  const size_t n = hn::Lanes(d);
  hn::Vec<FullTag> sums[kRows][kPanelVectors];
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kPanelVectors; ++v) sums[r][v] = hn::Zero(d);
  }
  for (size_t i = 0; i < depth; ++i) {
    hn::Vec<FullTag> line[kPanelVectors];
#pragma GCC unroll 4
    for (size_t v = 0; v < kPanelVectors; ++v) line[v] = LoadWide(d, w + i * kPanel + v * n);
#pragma GCC unroll 8
    for (size_t r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, x[r][i]);
#pragma GCC unroll 4
      for (size_t v = 0; v < kPanelVectors; ++v) {
        sums[r][v] = hn::MulAdd(factor, line[v], sums[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t v = 0; v < kPanelVectors; ++v) hn::Store(sums[r][v], d, out + r * kPanel + v * n);
  }
}

template <class T>
HWY_INLINE void BlockSums(const T* w, size_t depth, const float* const* x, size_t rows,
                          float* out) {
  size_t r = 0;
  for (; r + kSumRows <= rows; r += kSumRows) {
    PanelSums<kSumRows>(w, depth, x + r, out + r * kPanel);
  }
  for (; r < rows; ++r) PanelSums<1>(w, depth, x + r, out + r * kPanel);
}

// The base's elements for the panel's outputs, each head of the base going to several heads of y.
HWY_INLINE void Spread(const LowRankPart& part, const LowRankBlock& block, const float* base,
                       float* to) {
  if (part.base_width == part.n) {
    std::copy_n(base + block.first, block.outputs, to);
    return;
  }
  const int32_t dim = part.head_dim;
  const int32_t group = part.n / part.base_width;
  int32_t head = block.first / dim;
  int32_t element = block.first % dim;
  for (int32_t done = 0; done < block.outputs; ++head, element = 0) {
    const int32_t count = std::min(dim - element, block.outputs - done);
    std::copy_n(base + head / group * dim + element, count, to + done);
    done += count;
  }
}

void LowRankPanel(const LowRankPart& part, const LowRankBlock& block) {
  HWY_ALIGN float sums[kLowRankRows * kPanel];
  const auto rows = static_cast<size_t>(block.rows);
  const auto outputs = static_cast<size_t>(block.outputs);
  if (part.weights != nullptr) {
    const auto depth = static_cast<size_t>(part.weights->k);
    const std::byte* const panel =
        part.weights->data +
        block.first / kPanelOutputs * PanelBytes(part.weights->format, part.weights->k);
    switch (part.weights->format) {
      case WeightFormat::kF16:
        BlockSums(reinterpret_cast<const hwy::float16_t*>(panel), depth, block.x, rows, sums);
        break;
      case WeightFormat::kBF16:
        BlockSums(reinterpret_cast<const hwy::bfloat16_t*>(panel), depth, block.x, rows, sums);
        break;
      default: BlockSums(reinterpret_cast<const float*>(panel), depth, block.x, rows, sums); break;
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    float* const row = sums + r * kPanel;
    float* const y = block.y[r];
    float spread[kPanel];
    const float* base = part.accumulate ? y : nullptr;
    if (block.base[r] != nullptr) {
      Spread(part, block, block.base[r], spread);
      base = spread;
    }
    if (part.weights == nullptr) {
      std::copy_n(base, outputs, y);
      continue;
    }
    ForEachVector(outputs, [&](auto d, size_t i) HWY_ATTR {
      auto sum = hn::LoadU(d, row + i);
      if (part.bias != nullptr) sum = hn::Add(sum, hn::LoadU(d, part.bias + block.first + i));
      if (base != nullptr) sum = hn::Add(hn::LoadU(d, base + i), sum);
      hn::StoreU(sum, d, y + i);
    });
  }
}

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels::cpu {
namespace {

HWY_EXPORT(LowRankPanel);

// Below this many products a barrier costs more than it saves.
constexpr int64_t kInlineProducts = 16384;

absl::Status CheckWeights(const LowRankPart& part, int64_t x_stride) {
  const PackedMatrix& w = *part.weights;
  if (!IsFloatFormat(w.format) || w.format == WeightFormat::kFp8) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s factors are not supported", WeightFormatName(w.format)));
  }
  if (w.data == nullptr || w.k < 1 || w.n != part.n) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the factor is %d x %d for %d outputs", w.n, w.k, part.n));
  }
  if (part.x_column < 0 || int64_t{part.x_column} + w.k > x_stride) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "columns %d..%d are outside a row of %d", part.x_column, part.x_column + w.k, x_stride));
  }
  return absl::OkStatus();
}

absl::Status CheckPart(const LowRankPart& part, int64_t x_stride) {
  if (part.n < 1 || part.y == nullptr || part.y_stride < part.n) {
    return absl::InvalidArgumentError(
        absl::StrFormat("output stride is %d for %d outputs", part.y_stride, part.n));
  }
  if (part.weights == nullptr) {
    if (part.base == nullptr || part.bias != nullptr) {
      return absl::InvalidArgumentError("a part without a factor needs a base and takes no bias");
    }
  } else if (absl::Status status = CheckWeights(part, x_stride); !status.ok()) {
    return status;
  }
  if (part.base == nullptr) return absl::OkStatus();
  if (part.accumulate) return absl::InvalidArgumentError("a part has a base and accumulates");
  if (part.base_width < 1 || part.n % part.base_width != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d outputs are no multiple of base width %d", part.n, part.base_width));
  }
  if (part.base_width < part.n && (part.head_dim < 1 || part.base_width % part.head_dim != 0)) {
    return absl::InvalidArgumentError(absl::StrFormat("base width %d is no multiple of head_dim %d",
                                                      part.base_width, part.head_dim));
  }
  return absl::OkStatus();
}

absl::Status Check(const LowRankArgs& args) {
  if (args.rows < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("rows %d is negative", args.rows));
  }
  for (const LowRankPart& part : args.parts) {
    if (absl::Status status = CheckPart(part, args.x_stride); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// The listed rows of the block at place `begin`, without those that are skipped.
LowRankBlock MakeBlock(const LowRankArgs& args, const LowRankPart& part, int64_t panel,
                       int32_t begin) {
  LowRankBlock block;
  block.first = static_cast<int32_t>(panel * kPanelOutputs);
  block.outputs = std::min(kPanelOutputs, part.n - block.first);
  const int32_t end = std::min(begin + kLowRankRows, args.rows);
  for (int32_t r = begin; r < end; ++r) {
    const int64_t row = args.row_list == nullptr ? r : args.row_list[r];
    if (row < 0) continue;
    block.x[block.rows] = args.x + row * args.x_stride + part.x_column;
    block.base[block.rows] = part.base == nullptr ? nullptr : part.base + row * part.base_stride;
    block.y[block.rows] = part.y + row * part.y_stride + block.first;
    ++block.rows;
  }
  return block;
}

}  // namespace

absl::Status LowRank(const LowRankArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  const auto panel_kernel = HWY_DYNAMIC_DISPATCH(LowRankPanel);
  const int64_t blocks = (int64_t{args.rows} + kLowRankRows - 1) / kLowRankRows;
  int64_t units = 0;
  int64_t products = 0;
  for (const LowRankPart& part : args.parts) {
    units += PanelCount(part.n) * blocks;
    products += int64_t{args.rows} * part.n * (part.weights == nullptr ? 1 : part.weights->k);
  }
  // All row blocks of a panel follow each other, so that its weights stay in the first-level cache.
  const auto work = [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const LowRankPart& part : args.parts) {
      const int64_t count = PanelCount(part.n) * blocks;
      for (int64_t unit = std::max(begin - first, int64_t{0}); unit < std::min(end - first, count);
           ++unit) {
        const auto row = static_cast<int32_t>(unit % blocks * kLowRankRows);
        panel_kernel(part, MakeBlock(args, part, unit / blocks, row));
      }
      first += count;
    }
  };
  if (products <= kInlineProducts) {
    work(0, units);
    return absl::OkStatus();
  }
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(units, worker);
    work(part.begin, part.end);
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
#endif  // HWY_ONCE
