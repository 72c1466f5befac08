// Operands of decode attention's products from tiles of K and V in shared memory (page_layout.h),
// by a warp for 16 positions at a time; B registers are those of panel_tiles.cuh. For e4m3 they are
// made in registers, in an order of elements that needs no byte from another lane: sums over
// elements do not care, if the query lies in the same order, and results know which ones they are.
#pragma once

#include "kernels/cuda/cache_types.cuh"
#include "kernels/cuda/page_layout.h"
#include "kernels/cuda/panel_tiles.cuh"

namespace morphserve::kernels::cuda {

template <typename T>
struct KvOperands {
  static constexpr int kRowBytes = kPanelRowBytes;  // Of a panel.

  // Of 16 bytes of a row of the tile.
  __device__ static uint32_t PieceAt(uint32_t tile, int row, int piece) {
    return PieceAddress(tile, row, piece);
  }
  // B of kSteps steps of 16 elements from `first` on, for 16 positions: of the products with keys;
  // and of those with values, of each step two registers for each of two sums.
  template <int kSteps, bool kOfValues>
  class Operands {
   public:
    __device__ void Load(uint32_t tile, int position, int first) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if constexpr (kOfValues) {
          LoadColumnsB(b_[i], tile, position, first + i);
        } else {
          LoadRowsB(b_[i], tile, position, first + i);
        }
      }
    }
    __device__ void Step(int i, uint32_t (&b)[4]) const { memcpy(b, b_[i], sizeof(b)); }

   private:
    uint32_t b_[kSteps][4];
  };
  template <int kSteps>
  using Keys = Operands<kSteps, false>;
  template <int kSteps>
  using Values = Operands<kSteps, true>;

  // Where an element of a query lies among the columns of A.
  __device__ static int QueryPlace(int element) { return element; }
  // Stores what lane `t` of four has in the two sums of step `n`; place(e) is that of element e.
  template <typename F>
  __device__ static void Store(int n, int t, const float2& first, const float2& second, F&& place) {
    *reinterpret_cast<float2*>(place(n * 16 + t * 2)) = first;
    *reinterpret_cast<float2*>(place(n * 16 + 8 + t * 2)) = second;
  }
};

template <>
struct KvOperands<E4m3> {
  static constexpr int kRowBytes = kPanelElements;

  __device__ static uint32_t PieceAt(uint32_t tile, int row, int piece) {
    return tile + static_cast<uint32_t>((piece / 4 * kPageTokens + row) * kRowBytes +
                                        (piece % 4 ^ row / 2 % 4) * 16);
  }
  // The same for row `row` + `lane_row`, where `row` is a multiple of 8, and piece `piece` +
  // `lane_piece`, of which one is a multiple of what the other is less than. As LanePieceAddress.
  __device__ static uint32_t LanePieceAt(uint32_t tile, int row, int lane_row, int piece,
                                         int lane_piece) {
    const int own = lane_row * kRowBytes + (lane_piece ^ lane_row / 2 % 4) * 16;
    return tile + static_cast<uint32_t>(own ^ piece % 4 * 16) +
           static_cast<uint32_t>((piece / 4 * kPageTokens + row) * kRowBytes);
  }
  // Two codes of a word as f16.
  __device__ static uint32_t Pair(uint32_t word, uint32_t selector) {
    return E4m3ToF16x2(static_cast<uint16_t>(__byte_perm(word, 0, selector)));
  }

  // A lane takes piece t of each panel of its positions: four elements a step.
  template <int kSteps>
  class Keys {
   public:
    static constexpr int kPanels = kSteps / 4;
    static_assert(kPanels * 4 == kSteps);

    __device__ void Load(uint32_t tile, int position, int first) {
      const int g = OwnLane() / 4, t = OwnLane() % 4;
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t(&words)[4] = words_[panel][half];
          asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                       : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                       : "r"(LanePieceAt(tile, position + 8 * half, g, first + 4 * panel, t))
                       : "memory");
        }
      }
    }
    __device__ void Step(int k, uint32_t (&b)[4]) const {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t word = words_[k / 4][half][k % 4];
        b[2 * half] = Pair(word, 0x4410);
        b[2 * half + 1] = Pair(word, 0x4432);
      }
    }

   private:
    uint32_t words_[kPanels][2][4];
  };
  // A transposed matrix of 16-bit units brings two elements of two positions; the first of each
  // pair go to one sum, the second to the other.
  template <int kSteps>
  class Values {
   public:
    static_assert(kSteps % 2 == 0);

    __device__ void Load(uint32_t tile, int position, int first) {
      const int lane = OwnLane(), row = lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
      for (int n = 0; n < kSteps; n += 2) {
        LoadMatricesTransposed(units_[n / 2],
                               LanePieceAt(tile, position, row, first + n, lane / 16));
      }
    }
    __device__ void Step(int n, uint32_t (&b)[4]) const {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t unit = __byte_perm(units_[n / 2][n % 2 * 2 + half], 0, 0x3120);
        b[half] = E4m3ToF16x2(static_cast<uint16_t>(unit));
        b[half + 2] = E4m3ToF16x2(static_cast<uint16_t>(unit >> 16));
      }
    }

   private:
    uint32_t units_[kSteps / 2][4];
  };
  __device__ static int QueryPlace(int element) {
    const int t = element % kPanelElements / 16, k = element % 16 / 4, half = element % 4 / 2;
    return element / kPanelElements * kPanelElements + k * 16 + half * 8 + t * 2 + element % 2;
  }
  template <typename F>
  __device__ static void Store(int n, int t, const float2& first, const float2& second, F&& place) {
    *reinterpret_cast<float4*>(place(n * 16 + t * 4)) =
        make_float4(first.x, second.x, first.y, second.y);
  }
};

}  // namespace morphserve::kernels::cuda
