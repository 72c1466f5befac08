// The mat-mul kernel of the matrix unit (AMX int8). A panel's group is expanded to signed bytes:
// 8 rows of 64 bytes, one tile; a tile of tokens has 16 rows of 32 bytes. One tile product is the
// exact int32 dot of 16 tokens and 16 outputs over a group of 32; it goes through L1 to the same
// f32 chain as everywhere else.
// Instructions are written as assembly: g++ 12's _tile_loadconfig declares 8 of the 64 bytes it
// reads, and its tile loads do not say that they read memory.
#if defined(__x86_64__)

// g++ 12 takes the deliberately undefined operands inside its own AVX-512 header for a mistake.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/target_attributes.h"
#include "kernels/packed_layout.h"

#define MORPHSERVE_VNNI 1

#if defined(__clang__)
MORPHSERVE_TARGET_BEGIN(
    "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")
#else
MORPHSERVE_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

namespace morphserve::kernels::cpu {
namespace {

#include "kernels/cpu/gemm_avx512_ops-inl.h"
#include "kernels/cpu/gemm_formats-inl.h"

// Groups expanded at a time: 16 KiB of bytes and 4 KiB of scales stay in L1 beside the tokens.
constexpr int64_t kBlockGroups = 32;

// Expanded weights. Scales of K formats are exact in f32, so nothing is lost here.
struct Expanded {
  alignas(64) std::byte bytes[kBlockGroups][8 * kQuadBytes];
  alignas(64) float scale[kBlockGroups][kPanelOutputs];
  alignas(64) float min[kBlockGroups][kPanelOutputs];
};

// Register 0, 1: sums of 16 tokens; 2: tokens; 3: weights; 4, 5, 6: sums and tokens of a tile of 8.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 32, 64, 64, 64, 32};
  uint8_t rows[16] = {16, 16, 16, 8, 8, 8, 8};
};
static_assert(sizeof(TileConfig) == 64);

// Sums of one token tile times one group, stored as int32 [width][16].
template <int kWidth>
inline void TileDot(const std::byte* weights, const std::byte* tokens, int32_t* dots) {
  constexpr int64_t kWeightStride = kQuadBytes;
  constexpr int64_t kTokenStride = 32;
  constexpr int64_t kDotStride = 64;
  if constexpr (kWidth == 16) {
    asm volatile(
        "tilezero %%tmm0\n\t"
        "tileloadd (%[w],%[ws],1), %%tmm3\n\t"
        "tileloadd (%[x],%[xs],1), %%tmm2\n\t"
        "tdpbssd %%tmm3, %%tmm2, %%tmm0\n\t"
        "tilestored %%tmm0, (%[d],%[ds],1)\n\t"
        :
        : [w] "r"(weights), [ws] "r"(kWeightStride), [x] "r"(tokens), [xs] "r"(kTokenStride),
          [d] "r"(dots), [ds] "r"(kDotStride)
        : "memory");
  } else {
    static_assert(kWidth == 8);
    asm volatile(
        "tilezero %%tmm4\n\t"
        "tileloadd (%[w],%[ws],1), %%tmm3\n\t"
        "tileloadd (%[x],%[xs],1), %%tmm6\n\t"
        "tdpbssd %%tmm3, %%tmm6, %%tmm4\n\t"
        "tilestored %%tmm4, (%[d],%[ds],1)\n\t"
        :
        : [w] "r"(weights), [ws] "r"(kWeightStride), [x] "r"(tokens), [xs] "r"(kTokenStride),
          [d] "r"(dots), [ds] "r"(kDotStride)
        : "memory");
  }
}

template <class Format>
void Expand(const std::byte* panel, int64_t first_group, int64_t groups, Expanded* out) {
  for (int64_t g = 0; g < groups; ++g) {
    GroupWeights group;
    Format::Load(panel, first_group + g, 0, &group);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const Ops::B bytes =
          Format::kBiased ? _mm512_xor_si512(group.w[j], _mm512_set1_epi8(-128)) : group.w[j];
      _mm512_store_si512(out->bytes[g] + j * kQuadBytes, bytes);
    }
    _mm512_store_ps(out->scale[g], group.scale);
    if constexpr (Format::kHasMin) _mm512_store_ps(out->min[g], group.min);
  }
}

// Asks for `bytes` at p, of which a kernel will soon want all, to come as near as kLocality says.
template <int kLocality>
inline void PrefetchRun(const std::byte* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, kLocality);
}

// Continues the chains of one token tile through `groups` expanded groups. The dots of the next
// group are under way while those of this one are added. Meanwhile the memory brings `next_bytes`
// a group of the weights at `next`: expanding them alone would be one burst of misses.
template <bool kHasMin, int kWidth>
void AddGroups(const Expanded& weights, int64_t groups, const std::byte* tile,
               const std::byte* next, int64_t next_bytes, float* sums) {
  constexpr int64_t kStride = kWidth * kTileGroupBytes;
  alignas(64) int32_t dots[2][kWidth * kPanelOutputs];
  Ops::F acc[kWidth];
#pragma GCC unroll 16
  for (int t = 0; t < kWidth; ++t) acc[t] = Ops::Load(sums + t * kPanelOutputs);
  TileDot<kWidth>(weights.bytes[0], tile, dots[0]);
  for (int64_t g = 0; g < groups; ++g) {
    if (g + 1 < groups) {
      TileDot<kWidth>(weights.bytes[g + 1], tile + (g + 1) * kStride, dots[(g + 1) % 2]);
    }
    PrefetchRun<2>(next + g * next_bytes, next_bytes);
    PrefetchRun<3>(tile + (g + 3) * kStride, kStride);
    const int32_t* dot = dots[g % 2];
    const float* scale = reinterpret_cast<const float*>(tile + g * kStride + kWidth * 32);
    const Ops::F w_scale = Ops::Load(weights.scale[g]);
    const Ops::F w_min = kHasMin ? Ops::Load(weights.min[g]) : Ops::Zero();
#pragma GCC unroll 16
    for (int t = 0; t < kWidth; ++t) {
      const Ops::F value = Ops::ToFloat(_mm512_load_si512(dot + t * kPanelOutputs));
      acc[t] = Ops::MulAdd(Ops::Mul(w_scale, Ops::Splat(scale + t)), value, acc[t]);
      if constexpr (kHasMin) acc[t] = Ops::MulAdd(w_min, Ops::Splat(scale + kWidth + t), acc[t]);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kWidth; ++t) Ops::Store(sums + t * kPanelOutputs, acc[t]);
}

template <class Format>
void Panel(const std::byte* panel, int64_t k, const std::byte* const* tiles,
           const int32_t* width_index, int32_t count, float* sums) {
  Expanded weights;
  int64_t rows = 0;
  for (int32_t t = 0; t < count; ++t) rows += int64_t{1} << width_index[t];
  std::memset(sums, 0, static_cast<size_t>(rows * kPanelOutputs) * sizeof(float));
  const int64_t groups = k / kGroupInputs;
  for (int64_t first = 0; first < groups; first += kBlockGroups) {
    const int64_t run = std::min(kBlockGroups, groups - first);
    Expand<Format>(panel, first, run, &weights);
    const std::byte* next = panel + (first + run) * Format::kBytes;
    float* at = sums;
    for (int32_t t = 0; t < count; ++t) {
      const int64_t next_bytes = t == 0 ? Format::kBytes : 0;  // Once is enough.
      const int64_t width = int64_t{1} << width_index[t];
      const std::byte* tile = tiles[t] + first * width * kTileGroupBytes;
      if (width == 16) {
        AddGroups<Format::kHasMin, 16>(weights, run, tile, next, next_bytes, at);
      } else {
        AddGroups<Format::kHasMin, 8>(weights, run, tile, next, next_bytes, at);
      }
      at += width * kPanelOutputs;
    }
  }
}

}  // namespace

// Q6K has scales per 16 inputs, half a tile: the vector kernels serve it.
bool AmxHasFormat(WeightFormat format) {
  return format == WeightFormat::kQ8 || format == WeightFormat::kQ4 ||
         format == WeightFormat::kQ4K || format == WeightFormat::kQ5K;
}

void AmxBegin() {
  static constexpr TileConfig kConfig;
  asm volatile("ldtilecfg %0" : : "m"(kConfig));
}

// Back to the initial state, so that the kernel need not save 8 KiB when it switches threads.
void AmxEnd() { asm volatile("tilerelease"); }

void AmxPanel(WeightFormat format, const std::byte* panel, int64_t k, const std::byte* const* tiles,
              const int32_t* width_index, int32_t count, float* sums) {
  switch (format) {
    case WeightFormat::kQ8: Panel<FormatQ8>(panel, k, tiles, width_index, count, sums); return;
    case WeightFormat::kQ4: Panel<FormatQ4>(panel, k, tiles, width_index, count, sums); return;
    case WeightFormat::kQ4K: Panel<FormatQ4K>(panel, k, tiles, width_index, count, sums); return;
    case WeightFormat::kQ5K: Panel<FormatQ5K>(panel, k, tiles, width_index, count, sums); return;
    case WeightFormat::kF32:
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
    case WeightFormat::kFp8:
    case WeightFormat::kQ6K: return;  // Not of this unit: see AmxHasFormat.
  }
}

}  // namespace morphserve::kernels::cpu

MORPHSERVE_TARGET_END

#endif
