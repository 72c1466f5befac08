#include "kernels/matmul_grad.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/panel_tile.h"
#include "kernels/cpu/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_grad.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h, which includes this file once more for each target.
#include <hwy/highway.h>

#include "kernels/cpu/panel_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace morphserve::kernels::cpu::HWY_NAMESPACE {

void MatmulGradTile(const PanelTile& tile) { PanelProduct(tile); }

}  // namespace morphserve::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace morphserve::kernels {
namespace cpu {
namespace {

HWY_EXPORT(MatmulGradTile);

// Outputs unpacked at a time: 16 KB a panel of 16 inputs, which stays in the first cache while the
// row tiles pass over it.
constexpr int32_t kBlockOutputs = 256;

int64_t PanelsOf(int32_t k) { return (int64_t{k} + kPanelColumns - 1) / kPanelColumns; }

// Writes outputs [first, end) of the block that starts at `block` as panels
// [k / 16][kBlockOutputs][16].
void UnpackBlock(const PackedMatrix& w, int32_t block, int64_t first, int64_t end, float* row,
                 float* panels) {
  for (auto n = static_cast<int32_t>(first); n < end; ++n) {
    UnpackRow(w, n, row);
    std::fill(row + w.k, row + PanelsOf(w.k) * kPanelColumns, 0.0f);
    for (int64_t panel = 0; panel < PanelsOf(w.k); ++panel) {
      std::memcpy(panels + (panel * kBlockOutputs + n - block) * kPanelColumns,
                  row + panel * kPanelColumns, kPanelColumns * sizeof(float));
    }
  }
}

void MultiplyBlock(const MatmulGradArgs& args, int32_t first, int32_t count, const float* panels,
                   ThreadPool::Range items) {
  const auto tile_kernel = HWY_DYNAMIC_DISPATCH(MatmulGradTile);
  const int64_t row_tiles = (int64_t{args.rows} + kPanelTileRows - 1) / kPanelTileRows;
  for (int64_t item = items.begin; item < items.end; ++item) {
    const int64_t panel = item / row_tiles;
    const int64_t row = item % row_tiles * kPanelTileRows;
    const int64_t column = panel * kPanelColumns;
    tile_kernel({.a = args.dy + row * args.dy_stride + first,
                 .a_row_stride = args.dy_stride,
                 .depth = count,
                 .panel = panels + column * kBlockOutputs,
                 .c = args.dx + row * args.dx_stride + column,
                 .c_stride = args.dx_stride,
                 .rows = static_cast<int32_t>(std::min<int64_t>(kPanelTileRows, args.rows - row)),
                 .columns = static_cast<int32_t>(
                     std::min<int64_t>(kPanelColumns, args.weights->k - column)),
                 .accumulate = args.accumulate || first > args.output_begin});
  }
}

}  // namespace

absl::Status MatmulGrad(const MatmulGradArgs& args, Stream stream) {
  const PackedMatrix& w = *args.weights;
  if (args.rows < 0 || w.n < 1 || w.k < 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rows times a matrix of %d x %d", args.rows, w.n, w.k));
  }
  if (args.output_begin < 0 || args.output_count < 0 ||
      args.output_begin + args.output_count > w.n) {
    return absl::InvalidArgumentError(
        absl::StrFormat("outputs %d + %d of %d", args.output_begin, args.output_count, w.n));
  }
  const int32_t threads = stream.pool->threads();
  if (args.workspace_bytes < MatmulGradWorkspaceBytes(w.k, threads)) {
    return absl::InvalidArgumentError(absl::StrFormat("workspace is %d bytes; %d are needed",
                                                      args.workspace_bytes,
                                                      MatmulGradWorkspaceBytes(w.k, threads)));
  }
  if (args.rows == 0) return absl::OkStatus();
  auto* const panels = reinterpret_cast<float*>(args.workspace);
  const int64_t row_floats = PanelsOf(w.k) * kPanelColumns;
  float* const rows = panels + row_floats * kBlockOutputs;
  const int64_t row_tiles = (int64_t{args.rows} + kPanelTileRows - 1) / kPanelTileRows;
  const int32_t end = args.output_count == 0 ? w.n : args.output_begin + args.output_count;
  for (int32_t first = args.output_begin; first < end; first += kBlockOutputs) {
    const int32_t count = std::min(kBlockOutputs, end - first);
    stream.pool->ForEachWorker([&](int32_t worker) {
      const auto part = stream.pool->Part(count, worker);
      UnpackBlock(w, first, first + part.begin, first + part.end, rows + worker * row_floats,
                  panels);
    });
    stream.pool->ForEachWorker([&](int32_t worker) {
      MultiplyBlock(args, first, count, panels,
                    stream.pool->Part(PanelsOf(w.k) * row_tiles, worker));
    });
  }
  return absl::OkStatus();
}

}  // namespace cpu

int64_t MatmulGradWorkspaceBytes(int32_t k_max, int32_t threads) {
  return cpu::PanelsOf(k_max) * cpu::kPanelColumns * (cpu::kBlockOutputs + int64_t{threads}) *
         static_cast<int64_t>(sizeof(float));
}

}  // namespace morphserve::kernels
#endif  // HWY_ONCE
