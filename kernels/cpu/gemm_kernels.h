// The table of inner kernels of one instruction set. Internal to the CPU mat-mul.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/gemm_target.h"
#include "kernels/cpu/gemm_tiles.h"
#include "kernels/gemm.h"

namespace morphserve::kernels::cpu {

inline constexpr int32_t kWeightFormats = 9;

// Adjacent panels that one call of a float kernel takes when there are few rows.
inline constexpr int32_t kFloatPanels = 4;

// Where a finished [rows, 16] block of sums goes.
struct BlockOutput {
  float* const* y = nullptr;    // Row pointers, at the first output of the panel.
  const float* bias = nullptr;  // At the first output of the panel, or null.
  int32_t rows = 0;
  int32_t outputs = 0;  // 1 .. 16.
  bool accumulate = false;
};

struct GemmKernels {
  // One row of x, k inputs, into slot `slot` of a tile of `width` rows.
  void (*quantise)(const float* x, int64_t k, std::byte* tile, int32_t slot,
                   int32_t width) = nullptr;

  // Sums of one tile times `panels` adjacent panels: sums[panel][width][16]. For quantised formats
  // `tile` is a quantised tile, else a tile of floats. Indexed by format and width index.
  using TileKernel = void (*)(const std::byte* panel, int64_t panel_bytes, int32_t panels,
                              int64_t k, const std::byte* tile, float* sums);
  TileKernel tile[kWeightFormats][kTileWidths] = {};

  void (*store)(const float* sums, const BlockOutput& out) = nullptr;
};

const GemmKernels& ScalarGemmKernels();
#if defined(__x86_64__)
const GemmKernels& Avx2GemmKernels();
const GemmKernels& Avx512GemmKernels();
const GemmKernels& Avx512VnniGemmKernels();

// Tile registers. Between AmxBegin and AmxEnd on one thread, AmxPanel multiplies one panel with
// `count` quantised tiles of width 16 or 8 (at most kAmxTiles): sums[tile][width][16].
inline constexpr int32_t kAmxTiles = 4;
bool AmxHasFormat(WeightFormat format);
void AmxBegin();
void AmxEnd();
void AmxPanel(WeightFormat format, const std::byte* panel, int64_t k, const std::byte* const* tiles,
              const int32_t* width_index, int32_t count, float* sums);
#endif

}  // namespace morphserve::kernels::cpu
