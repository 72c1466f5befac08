// Matmul on the CPU: checks the arguments, lays the rows of x out in tiles, and shares panels out
// over the workers. The arithmetic is in gemm_kernels-inl.h and gemm_amx.cc.
#include "kernels/gemm.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/common/matmul_stages.h"
#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/packed_layout.h"

namespace morphserve::kernels {
namespace {

constexpr int64_t RoundUp64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Row numbers, quantised tiles, tiles of floats, in this order. A tiling of fewer rows never pads
// to more than one of more rows, so active rows always fit.
struct WorkspaceLayout {
  WorkspaceLayout(int32_t rows, int32_t k) {
    const int64_t padded = cpu::Tiling(rows).padded_rows();
    const int64_t groups = (int64_t{k} + kGroupInputs - 1) / kGroupInputs;
    quantised = RoundUp64(int64_t{rows} * 4);
    floats = quantised + RoundUp64(padded * groups * cpu::kTileGroupBytes);
    bytes = floats + RoundUp64(padded * k * 4);
  }
  int64_t quantised = 0;
  int64_t floats = 0;
  int64_t bytes = 0;
};

}  // namespace

int64_t MatmulWorkspaceBytes(int32_t rows, int32_t k) {
  return rows < 1 || k < 1 ? 0 : WorkspaceLayout(rows, k).bytes;
}

namespace cpu {
namespace {

// Tiles in a chunk: the work on one panel before the next one. The weights of a panel stay in L1.
constexpr int32_t kChunkTiles = 4;
// A block of rows whose tiles stay in L2 while all panels pass by.
constexpr int64_t kBlockBytes = 1 << 20;
// Below this many elements of x the caller lays out the tiles alone: quicker than waking workers.
constexpr int64_t kParallelElements = 16384;

absl::Status CheckPart(const MatmulPart& part, int32_t k) {
  const PackedMatrix* w = part.weights;
  if (w == nullptr || w->data == nullptr || part.y == nullptr) {
    return absl::InvalidArgumentError("a part lacks its weights or its output");
  }
  if (w->k != k) {
    return absl::InvalidArgumentError(
        absl::StrFormat("parts have %d and %d inputs; all must be equal", k, w->k));
  }
  if (w->n < 1 || k < 1 || k % InputGranule(w->format) != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s weights are %d x %d; both must be positive and the second a multiple "
                        "of %d",
                        WeightFormatName(w->format), w->n, k, InputGranule(w->format)));
  }
  if (part.y_stride < w->n) {
    return absl::InvalidArgumentError(
        absl::StrFormat("output stride is %d for %d outputs", part.y_stride, w->n));
  }
  return absl::OkStatus();
}

absl::Status Check(const MatmulArgs& args) {
  const int32_t k = args.parts.front().weights == nullptr ? 0 : args.parts.front().weights->k;
  for (const MatmulPart& part : args.parts) {
    const absl::Status status = CheckPart(part, k);
    if (!status.ok()) return status;
  }
  if (args.x == nullptr || args.x_stride < k) {
    return absl::InvalidArgumentError(
        absl::StrFormat("input stride is %d for %d inputs", args.x_stride, k));
  }
  const int64_t needed = MatmulWorkspaceBytes(args.rows, k);
  if (args.workspace == nullptr || args.workspace_bytes < needed ||
      reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "workspace has %d bytes; %d aligned to 64 are needed", args.workspace_bytes, needed));
  }
  if (args.row_list != nullptr) {
    for (int32_t r = 0; r < args.rows; ++r) {
      if (args.row_list[r] < -1) {
        return absl::InvalidArgumentError(
            absl::StrFormat("row list has %d at %d", args.row_list[r], r));
      }
    }
  }
  return absl::OkStatus();
}

const GemmKernels& KernelsOf(GemmTarget target) {
#if defined(__x86_64__)
  switch (target) {
    case GemmTarget::kScalar: return ScalarGemmKernels();
    case GemmTarget::kAvx2: return Avx2GemmKernels();
    case GemmTarget::kAvx512: return Avx512GemmKernels();
    case GemmTarget::kAvx512Vnni:
    case GemmTarget::kAmx: return Avx512VnniGemmKernels();
  }
#endif
  static_cast<void>(target);
  return ScalarGemmKernels();
}

// One call of Matmul. Constant while workers run.
class Product {
 public:
  Product(const MatmulArgs& args, ThreadPool& pool)
      : args_(args),
        pool_(pool),
        target_(ActiveGemmTarget()),
        kernels_(KernelsOf(target_)),
        k_(args.parts.front().weights->k),
        layout_(args.rows, k_),
        active_rows_(ListRows()),
        tiling_(active_rows_) {
    for (const MatmulPart& part : args.parts) {
      (IsFloatFormat(part.weights->format) ? has_floats_ : has_quantised_) = true;
    }
  }

  void Run() {
    if (active_rows_ == 0) return;
    if (active_rows_ * int64_t{k_} < kParallelElements || pool_.threads() == 1) {
      LayOut(0, k_);
    } else {
      pool_.ForEachWorker([this](int32_t worker) {
        const ThreadPool::Range range = pool_.Part(k_, worker, kGroupInputs);
        LayOut(range.begin, range.end);
      });
    }
    pool_.ForEachWorker([this](int32_t worker) { Work(worker); });
  }

 private:
  // Fills the list of rows that count and returns their number.
  int32_t ListRows() {
    int32_t* rows = reinterpret_cast<int32_t*>(args_.workspace);
    int32_t count = 0;
    for (int32_t r = 0; r < args_.rows; ++r) {
      const int32_t row = args_.row_list == nullptr ? r : args_.row_list[r];
      if (row >= 0) rows[count++] = row;
    }
    return count;
  }
  int32_t Row(int32_t i) const { return reinterpret_cast<const int32_t*>(args_.workspace)[i]; }

  std::byte* QuantisedTile(const Tile& tile) const {
    return args_.workspace + layout_.quantised +
           tile.padded_first * int64_t{k_ / kGroupInputs} * kTileGroupBytes;
  }
  std::byte* FloatTile(const Tile& tile) const {
    return args_.workspace + layout_.floats + tile.padded_first * int64_t{k_} * 4;
  }

  // Inputs [begin, end) of all rows into their tiles. `begin` is a multiple of a group.
  void LayOut(int64_t begin, int64_t end) const {
    if (begin >= end) return;
    for (int32_t t = 0; t < tiling_.count(); ++t) {
      const Tile tile = tiling_.At(t);
      if (has_quantised_) LayOutQuantised(tile, begin, end);
      if (has_floats_) LayOutFloats(tile, begin, end);
    }
  }

  void LayOutQuantised(const Tile& tile, int64_t begin, int64_t end) const {
    const int64_t group_bytes = tile.width() * kTileGroupBytes;
    std::byte* at = QuantisedTile(tile) + begin / kGroupInputs * group_bytes;
    if (tile.rows < tile.width()) {
      std::memset(at, 0, static_cast<size_t>((end - begin) / kGroupInputs * group_bytes));
    }
    for (int32_t slot = 0; slot < tile.rows; ++slot) {
      const float* x = args_.x + Row(tile.first + slot) * args_.x_stride + begin;
      kernels_.quantise(x, end - begin, at, slot, tile.width());
    }
  }

  void LayOutFloats(const Tile& tile, int64_t begin, int64_t end) const {
    float* at = reinterpret_cast<float*>(FloatTile(tile));
    for (int32_t slot = 0; slot < tile.width(); ++slot) {
      const float* x =
          slot < tile.rows ? args_.x + Row(tile.first + slot) * args_.x_stride : nullptr;
      for (int64_t i = begin; i < end; ++i) {
        at[i * tile.width() + slot] = x == nullptr ? 0.0f : x[i];
      }
    }
  }

  bool UsesAmx(WeightFormat format) const {
#if defined(__x86_64__)
    return target_ == GemmTarget::kAmx && AmxHasFormat(format);
#else
    static_cast<void>(format);
    return false;
#endif
  }

  void Work(int32_t worker) const {
#if defined(__x86_64__)
    // Tiles of 8 rows start where Tiling makes them: see gemm_tiles.h.
    const bool amx =
        tiling_.At(0).width_index >= 3 &&
        std::any_of(args_.parts.begin(), args_.parts.end(),
                    [this](const MatmulPart& part) { return UsesAmx(part.weights->format); });
    if (amx) AmxBegin();
#endif
    const int64_t row_bytes = has_floats_ ? int64_t{k_} * 4 : int64_t{k_} * 3 / 2;
    const int64_t fitting = kBlockBytes / (row_bytes * kMaxTileRows) / kChunkTiles * kChunkTiles;
    const int32_t block = static_cast<int32_t>(
        std::clamp<int64_t>(fitting, kChunkTiles, std::max(kChunkTiles, tiling_.count())));
    for (int32_t first = 0; first < tiling_.count(); first += block) {
      WorkBlock(worker, first, std::min(tiling_.count(), first + block));
    }
#if defined(__x86_64__)
    if (amx) AmxEnd();
#endif
  }

  // This worker's share of all panels times tiles [first, last). A unit is one panel and one chunk
  // of tiles and weighs the panel's bytes; workers get consecutive units of equal weight.
  void WorkBlock(int32_t worker, int32_t first, int32_t last) const {
    const int64_t chunks = (last - first + kChunkTiles - 1) / kChunkTiles;
    int64_t total = 0;
    for (const MatmulPart& part : args_.parts) total += PartWeight(part) * chunks;
    const int64_t begin = total * worker / pool_.threads();
    const int64_t end = total * (worker + 1) / pool_.threads();
    int64_t before = 0;
    for (const MatmulPart& part : args_.parts) {
      const int64_t weight = PanelBytes(part.weights->format, k_);
      const int64_t units = PanelCount(part.weights->n) * chunks;
      const auto unit_at = [&](int64_t position) {
        return std::clamp<int64_t>((position - before + weight - 1) / weight, 0, units);
      };
      const int64_t stop = unit_at(end);
      for (int64_t u = unit_at(begin); u < stop;) {
        const int64_t panel = u / chunks;
        const int32_t tile = first + static_cast<int32_t>(u % chunks) * kChunkTiles;
        int32_t panels = 1;
        if (IsFloatFormat(part.weights->format) && tiling_.padded_rows() < kMaxTileRows) {
          panels = static_cast<int32_t>(std::min<int64_t>(kFloatPanels, stop - u));
        }
        Unit(part, panel, panels, tile, std::min(last, tile + kChunkTiles));
        u += panels;
      }
      before += weight * units;
    }
  }

  int64_t PartWeight(const MatmulPart& part) const {
    return PanelCount(part.weights->n) * PanelBytes(part.weights->format, k_);
  }

  // `panels` adjacent panels times tiles [first, last). More than one panel only while all rows are
  // fewer than one full tile, so that `sums` holds them.
  void Unit(const MatmulPart& part, int64_t panel, int32_t panels, int32_t first,
            int32_t last) const {
    alignas(64) float sums[kChunkTiles * kMaxTileRows * kPanelOutputs];
    static_assert(kFloatPanels <= kChunkTiles);
    const WeightFormat format = part.weights->format;
    const int64_t panel_bytes = PanelBytes(format, k_);
    const std::byte* data = part.weights->data + panel * panel_bytes;
    first = AmxTiles(part, panel, data, first, last, sums);
    for (int32_t t = first; t < last; ++t) {
      const Tile tile = tiling_.At(t);
      const std::byte* x = IsFloatFormat(format) ? FloatTile(tile) : QuantisedTile(tile);
      kernels_.tile[static_cast<int>(format)][tile.width_index](data, panel_bytes, panels, k_, x,
                                                                sums);
      for (int32_t p = 0; p < panels; ++p) {
        Store(part, panel + p, tile, sums + p * tile.width() * kPanelOutputs);
      }
    }
  }

  // The leading tiles of [first, last) that the matrix unit takes; returns the first one left.
  int32_t AmxTiles(const MatmulPart& part, int64_t panel, const std::byte* data, int32_t first,
                   int32_t last, float* sums) const {
#if defined(__x86_64__)
    if (!UsesAmx(part.weights->format)) return first;
    std::array<const std::byte*, kAmxTiles> tiles;
    std::array<int32_t, kAmxTiles> widths;
    static_assert(kChunkTiles <= kAmxTiles);
    int32_t count = 0;
    for (int32_t t = first; t < last && tiling_.At(t).width_index >= 3; ++t) {
      const Tile tile = tiling_.At(t);
      tiles[static_cast<size_t>(count)] = QuantisedTile(tile);
      widths[static_cast<size_t>(count++)] = tile.width_index;
    }
    if (count == 0) return first;
    AmxPanel(part.weights->format, data, k_, tiles.data(), widths.data(), count, sums);
    const float* at = sums;
    for (int32_t t = first; t < first + count; ++t) {
      const Tile tile = tiling_.At(t);
      Store(part, panel, tile, at);
      at += tile.width() * kPanelOutputs;
    }
    return first + count;
#else
    static_cast<void>(part);
    static_cast<void>(panel);
    static_cast<void>(data);
    static_cast<void>(last);
    static_cast<void>(sums);
    return first;
#endif
  }

  void Store(const MatmulPart& part, int64_t panel, const Tile& tile, const float* sums) const {
    std::array<float*, kMaxTileRows> y;
    const int64_t column = panel * kPanelOutputs;
    for (int32_t r = 0; r < tile.rows; ++r) {
      y[static_cast<size_t>(r)] = part.y + Row(tile.first + r) * part.y_stride + column;
    }
    BlockOutput out;
    out.y = y.data();
    out.bias = part.bias == nullptr ? nullptr : part.bias + column;
    out.rows = tile.rows;
    out.outputs = static_cast<int32_t>(std::min<int64_t>(kPanelOutputs, part.weights->n - column));
    out.accumulate = part.accumulate;
    kernels_.store(sums, out);
  }

  const MatmulArgs& args_;
  ThreadPool& pool_;
  const GemmTarget target_;
  const GemmKernels& kernels_;
  const int32_t k_;
  const WorkspaceLayout layout_;
  const int32_t active_rows_;
  const Tiling tiling_;
  bool has_quantised_ = false;
  bool has_floats_ = false;
};

}  // namespace

absl::Status Matmul(const MatmulArgs& args, Stream stream) {
  if (args.rows < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("rows is %d", args.rows));
  }
  if (args.rows == 0 || args.parts.empty()) return absl::OkStatus();
  absl::Status status = Check(args);
  if (status.ok()) status = CheckStages(args);
  if (!status.ok()) return status;
  if (HasStages(args)) return MatmulInStages(args, stream, RmsNorm, Matmul, SwiGlu);
  Product(args, *stream.pool).Run();
  return absl::OkStatus();
}

}  // namespace cpu
}  // namespace morphserve::kernels
