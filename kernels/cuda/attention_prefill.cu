// Attention of chunks with warpgroup products: a block takes 128 rows of one head, two warpgroups
// 64 rows each; one thread of a third fetches pages by bulk copies, in whose shape they lie in
// memory (page_layout.h). The scores of the next tile are formed beside the sums of this one, so
// that a warpgroup's exponentials run beside the other's products. Queries and weights are rounded
// to the cache type, sums are f32. Pages of e4m3 are read by all threads of the third warpgroup,
// which store them as f16.
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/barrier.cuh"
#include "kernels/cuda/cache_types.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/page_layout.h"
#include "kernels/cuda/panel_tiles.cuh"
#include "kernels/cuda/tensor_ops.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kGroups = 2;  // Warpgroups that multiply.
constexpr int kGroupThreads = 4 * kWarp;
constexpr int kGroupRows = 64;
constexpr int kTileRows = kGroups * kGroupRows;
constexpr int kThreads = (kGroups + 1) * kGroupThreads;
constexpr int kStages = 2;
constexpr int kRowBytes = kPanelElements * 2;
constexpr int kEightRows = 8 * kRowBytes;

// Shared memory: Q of both warpgroups, then stages of K and V; all in panels of 64 elements.
template <int kDim>
struct Tiles {
  static constexpr int kPanels = kDim / kPanelElements;
  static constexpr int kPages = kDim == 256 ? 1 : 2;  // Of a tile.
  static constexpr int kTokens = kPages * kPageTokens;
  static constexpr int kPanelBytes = kTokens * kRowBytes;
  static constexpr int kTileBytes = kPanels * kPanelBytes;
  static constexpr int kQueryBytes = kPanels * kGroupRows * kRowBytes;  // Of a warpgroup.
  static constexpr int kBytes = kGroups * kQueryBytes + kStages * 2 * kTileBytes + 1024;

  uint32_t start;  // A multiple of 1024.
  uint64_t* full;  // [stage][K, V]
  uint64_t* empty;

  __device__ Tiles(std::byte* shared, uint64_t* barriers)
      : start((SharedAddress(shared) + 1023) / 1024 * 1024),
        full(barriers),
        empty(barriers + 2 * kStages) {}
  // `producers` arrive when a tile is there.
  __device__ void Init(int producers) {
    for (int i = 0; i < 2 * kStages; ++i) {
      InitBarrier(full + i, producers);
      InitBarrier(empty + i, kGroups * 4);
    }
    FenceBarrierInit();
  }
  __device__ uint32_t Query(int group) const { return start + group * kQueryBytes; }
  // which: 0 keys, 1 values.
  __device__ uint32_t Tile(int i, int which) const {
    return start + kGroups * kQueryBytes + (i % kStages * 2 + which) * kTileBytes;
  }
  __device__ void WaitFull(int i, int which) {
    Wait(full + i % kStages * 2 + which, i / kStages % 2);
  }
  // By every warp of the warpgroups, when its products have read the tile.
  __device__ void Release(int i, int which) {
    if (threadIdx.x % kWarp == 0) Arrive(empty + i % kStages * 2 + which);
  }
};

// Tiles that some rows see: whole ones from a page on.
struct TileSpan {
  int first_page, pages, tiles;
};

template <typename T, int kDim>
__device__ void Produce(const AttentionArgs& args, const int32_t* page_table, Tiles<kDim>& tiles,
                        const TileSpan& span, int kv_head) {
  using Shape = Tiles<kDim>;
  constexpr int kPagePanelBytes = kPageTokens * kRowBytes;
  std::byte* const base = const_cast<std::byte*>(args.kv_base);
  for (int i = 0; i < span.tiles; ++i) {
    const int pages = min(Shape::kPages, span.pages - i * Shape::kPages);
    for (int which = 0; which < 2; ++which) {
      uint64_t* const full = tiles.full + i % kStages * 2 + which;
      if (i >= kStages) Wait(tiles.empty + i % kStages * 2 + which, (i / kStages - 1) % 2);
      ArriveExpecting(full, pages * Shape::kPanels * kPagePanelBytes);
      for (int p = 0; p < pages; ++p) {
        const int32_t page = page_table[span.first_page + i * Shape::kPages + p];
        const T* const from =
            KeysOfPage<T>(base, page, which == 0 ? kv_head : args.kv_heads + kv_head, kDim);
        for (int panel = 0; panel < Shape::kPanels; ++panel) {
          BulkCopyTo(tiles.Tile(i, which) + panel * Shape::kPanelBytes + p * kPagePanelBytes,
                     from + panel * kPageTokens * kPanelElements, kPagePanelBytes, full);
        }
      }
    }
  }
}

// Half of 16 codes as a piece of f16.
__device__ uint4 AsF16(uint32_t low, uint32_t high) {
  return make_uint4(
      E4m3ToF16x2(static_cast<uint16_t>(low)), E4m3ToF16x2(static_cast<uint16_t>(low >> 16)),
      E4m3ToF16x2(static_cast<uint16_t>(high)), E4m3ToF16x2(static_cast<uint16_t>(high >> 16)));
}

// Where thread `thread` of 128 puts the first piece of f16 of what it reads of a panel, piece
// `thread` in memory: in row thread / 4, and 32 rows below of the panel's second half. The other
// piece is beside it.
__device__ uint32_t OwnPlace(int thread) {
  const int row = thread / 4, piece = thread % 4 ^ row / 2 % 4;
  return static_cast<uint32_t>(row * kRowBytes + ((2 * piece) ^ (row % 8)) * 16);
}

// One page of K or V of a head as f16, by the 128 threads; two panels are under way at a time.
template <int kDim>
__device__ void StorePageAsF16(const E4m3* page, uint32_t tile, uint32_t own) {
  constexpr int kPanels = Tiles<kDim>::kPanels, kPieces = 4 * kPageTokens;  // Of a panel.
  constexpr int kTurns = kPieces / kGroupThreads, kAtOnce = kPanels < 2 ? 1 : 2;
  static_assert(kTurns == 2);
  const uint4* from = reinterpret_cast<const uint4*>(page) + threadIdx.x;
#pragma unroll 1
  for (int panel = 0; panel < kPanels; panel += kAtOnce) {
    uint4 codes[kAtOnce * kTurns];
#pragma unroll
    for (int i = 0; i < kAtOnce * kTurns; ++i) codes[i] = from[i * kGroupThreads];
    from += kAtOnce * kPieces;
#pragma unroll
    for (int i = 0; i < kAtOnce * kTurns; ++i) {
      const uint32_t half =
          tile + i / kTurns * Tiles<kDim>::kPanelBytes + i % kTurns * 4 * kEightRows;
      StorePiece(half + own, AsF16(codes[i].x, codes[i].y));
      StorePiece(half + (own ^ 16), AsF16(codes[i].z, codes[i].w));
    }
    tile += kAtOnce * Tiles<kDim>::kPanelBytes;
  }
}

// The same tiles from pages of e4m3, by all threads of the warpgroup.
template <int kDim>
__device__ void ProduceAsF16(const AttentionArgs& args, const int32_t* page_table,
                             Tiles<kDim>& tiles, const TileSpan& span, int kv_head) {
  using Shape = Tiles<kDim>;
  std::byte* const base = const_cast<std::byte*>(args.kv_base);
  const uint32_t own = OwnPlace(static_cast<int>(threadIdx.x));
  for (int i = 0; i < span.tiles; ++i) {
    const int pages = min(Shape::kPages, span.pages - i * Shape::kPages);
    for (int which = 0; which < 2; ++which) {
      const int place = i % kStages * 2 + which;
      if (i >= kStages) Wait(tiles.empty + place, (i / kStages - 1) % 2);
      for (int p = 0; p < pages; ++p) {
        const int32_t page = page_table[span.first_page + i * Shape::kPages + p];
        const int head = which == 0 ? kv_head : args.kv_heads + kv_head;
        StorePageAsF16<kDim>(KeysOfPage<E4m3>(base, page, head, kDim),
                             tiles.Tile(i, which) + p * kPageTokens * kRowBytes, own);
      }
      FenceSharedProxies();
      Arrive(tiles.full + place);
    }
  }
}

// Barrier of one warpgroup; 0 is __syncthreads.
__device__ void SyncGroup(int group) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(kGroupThreads) : "memory");
}

// A warpgroup's running softmax of 64 rows: the lane has parts of rows g and g + 8 of its
// warp's 16.
template <typename T, int kDim>
struct GroupSoftmax {
  using Shape = Tiles<kDim>;
  static constexpr int kSteps = Shape::kTokens / 16;
  float s[Shape::kTokens / 2];
  float o[kDim / 2];
  uint32_t p[kSteps][4];
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
  float factor[2];

  // S = Q K^T, started.
  __device__ void StartScores(uint32_t query, uint32_t keys) {
    PinRegisters(s);
    ProductsBegin();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      const int panel = k / 4, within = k % 4 * 32;
      ProductOfShared<T>(
          s, OperandDescriptor(query + panel * kGroupRows * kRowBytes + within, 16, kEightRows),
          OperandDescriptor(keys + panel * Shape::kPanelBytes + within, 16, kEightRows), k > 0);
    }
    ProductsEnd();
  }

  // O += P V, started.
  __device__ void StartSums(uint32_t values) {
    PinRegisters(o);
    PinRegisters(p);
    ProductsBegin();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      ProductOfRegisters<T>(
          o, p[k], OperandDescriptor(values + k * 2 * kEightRows, Shape::kPanelBytes, kEightRows));
    }
    ProductsEnd();
  }

  // `begin` and `end` bound what rows g and g + 8 see, in positions of the tile.
  __device__ void Mask(const int (&begin)[2], const int (&end)[2]) {
#pragma unroll
    for (int i = 0; i < Shape::kTokens / 2; ++i) {
      const int position = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2, row = i % 4 / 2;
      if (position < begin[row] || position >= end[row]) s[i] = -INFINITY;
    }
  }

  // Scores become weights; sums and maxima follow, `factor` is what o has to.
  __device__ void Weigh(float scale) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float largest = -INFINITY;
#pragma unroll
      for (int i = 0; i < Shape::kTokens / 2; i += 4) {
        largest = fmaxf(largest, fmaxf(s[i + row * 2], s[i + row * 2 + 1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      largest = fmaxf(max[row], largest * scale);
      const float base = largest == -INFINITY ? 0.0f : largest;
      factor[row] = Exp2(max[row] - base);
      max[row] = largest;
      sum[row] *= factor[row];
#pragma unroll
      for (int i = 0; i < Shape::kTokens / 2; i += 4) {
#pragma unroll
        for (int j = row * 2; j < row * 2 + 2; ++j) {
          s[i + j] = Exp2(fmaf(s[i + j], scale, -base));
          sum[row] += s[i + j];
        }
      }
    }
  }

  __device__ void Rescale() {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) o[i] *= factor[i % 4 / 2];
  }
  __device__ void PackWeights() {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[k][i] = Pack<T>(s[k * 8 + i * 2], s[k * 8 + i * 2 + 1]);
    }
  }

  __device__ void Store(float* low, float* high) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float total = sum[row] + __shfl_xor_sync(~0u, sum[row], 1);
      total += __shfl_xor_sync(~0u, total, 2);
      float* const to = row == 0 ? low : high;
      if (to == nullptr) continue;
      const float inverse = 1.0f / total;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        to[n * 8 + t * 2] = o[n * 4 + row * 2] * inverse;
        to[n * 8 + t * 2 + 1] = o[n * 4 + row * 2 + 1] * inverse;
      }
    }
  }
};

// Rows of a warpgroup: which of the segment, and where they stand.
struct GroupRows {
  int first;     // Of the segment.
  int position;  // Of the first row.
};

// Q of the warpgroup, rounded and swizzled into shared memory.
template <typename T, int kDim>
__device__ void LoadQuery(const AttentionArgs& args, const AttentionSegment& segment,
                          const GroupRows& rows, int head, uint32_t to) {
  constexpr int kPieces = kDim / 8;
  for (int i = threadIdx.x % kGroupThreads; i < kGroupRows * kPieces; i += kGroupThreads) {
    const int r = i / kPieces, piece = i % kPieces;
    float x[8] = {};
    const int64_t row =
        rows.first + r < segment.row_count ? RowOf(args, segment, rows.first + r) : -1;
    if (row >= 0) {
      const float* const from =
          args.q + row * args.q_stride + static_cast<int64_t>(head) * kDim + piece * 8;
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] = from[j];
    }
    const uint32_t at = to + (piece / 8 * kGroupRows + r) * kRowBytes + (piece % 8 ^ r % 8) * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(Pack<T>(x[0], x[1])),
                 "r"(Pack<T>(x[2], x[3])), "r"(Pack<T>(x[4], x[5])), "r"(Pack<T>(x[6], x[7]))
                 : "memory");
  }
}

// Zeros in the places of V from `begin` on, which nothing was written to: they may hold anything,
// and 0 * NaN is no 0. By a warpgroup; the other one may do the same.
template <int kDim>
__device__ void ZeroTail(uint32_t values, int begin, int group) {
  using Shape = Tiles<kDim>;
  constexpr int kPieces = kDim / 8;
  const int count = (Shape::kTokens - begin) * kPieces;
  for (int i = threadIdx.x % kGroupThreads; i < count; i += kGroupThreads) {
    const uint32_t at = values + i % kPieces / 8 * Shape::kPanelBytes +
                        (begin + i / kPieces) * kRowBytes + i % 8 * 16;
    asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  }
  FenceSharedProxies();
  SyncGroup(group);  // The zeros are there for all of the warpgroup's products.
}

// The lane's rows `first` and `first` + 8 of the segment, into the call's.
template <typename T, int kDim>
__device__ void StoreRows(const AttentionArgs& args, const AttentionSegment& segment, int first,
                          int head, GroupSoftmax<T, kDim>& state) {
  int64_t row[2];
  for (int i = 0; i < 2; ++i) {
    const int r = first + i * 8;
    row[i] = r < segment.row_count ? RowOf(args, segment, r) : -1;
  }
  float* const out = args.out + static_cast<int64_t>(head) * kDim;
  state.Store(row[0] < 0 ? nullptr : out + row[0] * args.out_stride,
              row[1] < 0 ? nullptr : out + row[1] * args.out_stride);
}

template <typename T, int kDim>
__device__ void Consume(const AttentionArgs& args, const AttentionSegment& segment,
                        Tiles<kDim>& tiles, const TileSpan& span, const GroupRows& rows, int head,
                        int group) {
  using Shape = Tiles<kDim>;
  LoadQuery<T, kDim>(args, segment, rows, head, tiles.Query(group));
  FenceSharedProxies();
  SyncGroup(group);  // All of Q is there.
  const int warp = threadIdx.x % kGroupThreads / kWarp, g = threadIdx.x % kWarp / 4;
  const int in_group = warp * 16 + g;
  const int highest = rows.position + kGroupRows - 1;
  const int first_position = span.first_page * kPageTokens;
  // The last tile may lie beyond what this warpgroup sees.
  const int count = rows.first >= segment.row_count
                        ? 0
                        : min(span.tiles, (highest - first_position) / Shape::kTokens + 1);
  // Places of the tiles that have something in them.
  const int filled = min(segment.kv_len - first_position, span.pages * kPageTokens);
  GroupSoftmax<T, kDim> state;
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) state.o[i] = 0;
  const auto mask_and_weigh = [&](int i) {
    const int from = first_position + i * Shape::kTokens;
    if (from + Shape::kTokens - 1 > rows.position ||
        (args.window > 0 && from <= highest - args.window)) {
      int begin[2], end[2];
      for (int row = 0; row < 2; ++row) {
        end[row] = rows.position + in_group + row * 8 + 1 - from;
        begin[row] = args.window > 0 ? end[row] - args.window : 0;
      }
      state.Mask(begin, end);
    }
    state.Weigh(args.scale * kLog2E);
  };
  const auto wait_values = [&](int i) {
    tiles.WaitFull(i, 1);
    const int tail = filled - i * Shape::kTokens;
    if (tail < Shape::kTokens) ZeroTail<kDim>(tiles.Tile(i, 1), tail, group);
  };
  if (count > 0) {
    tiles.WaitFull(0, 0);
    state.StartScores(tiles.Query(group), tiles.Tile(0, 0));
    ProductsWait<0>();
    PinRegisters(state.s);
    tiles.Release(0, 0);
    mask_and_weigh(0);
    state.PackWeights();
  }
  for (int i = 1; i < count; ++i) {
    tiles.WaitFull(i, 0);
    state.StartScores(tiles.Query(group), tiles.Tile(i, 0));
    wait_values(i - 1);
    state.StartSums(tiles.Tile(i - 1, 1));
    ProductsWait<1>();
    PinRegisters(state.s);
    tiles.Release(i, 0);
    mask_and_weigh(i);
    ProductsWait<0>();
    PinRegisters(state.o);
    tiles.Release(i - 1, 1);
    state.Rescale();
    state.PackWeights();
  }
  if (count > 0) {
    wait_values(count - 1);
    state.StartSums(tiles.Tile(count - 1, 1));
    ProductsWait<0>();
    PinRegisters(state.o);
    tiles.Release(count - 1, 1);
  }
  // A tile that is not looked at is still waited for: to release it before it has come would count
  // as a release of the tile before it in its place.
  for (int i = count; i < span.tiles; ++i) {
    for (int which = 0; which < 2; ++which) {
      tiles.WaitFull(i, which);
      tiles.Release(i, which);
    }
  }
  StoreRows<T, kDim>(args, segment, rows.first + in_group, head, state);
}

__device__ void ZeroRows(const AttentionArgs& args, const AttentionSegment& segment, int first,
                         int rows, int head) {
  for (int i = threadIdx.x; i < rows * args.head_dim; i += blockDim.x) {
    const int64_t row = RowOf(args, segment, first + i / args.head_dim);
    if (row < 0) continue;
    args.out[row * args.out_stride + static_cast<int64_t>(head) * args.head_dim +
             i % args.head_dim] = 0;
  }
}

// Block (head, segment, tile of rows, the last one first).
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1) PrefillKernel(const AttentionArgs args) {
  using Shape = Tiles<kDim>;
  extern __shared__ std::byte shared[];
  __shared__ uint64_t barriers[4 * kStages];
  const AttentionSegment segment = args.segments[blockIdx.y];
  const int first = static_cast<int>(gridDim.z - 1 - blockIdx.z) * kTileRows;
  if (segment.row_count < 2 || first >= segment.row_count) return;
  const int head = static_cast<int>(blockIdx.x);
  const int last = min(first + kTileRows, segment.row_count) - 1;
  if (segment.kv_len == 0) return ZeroRows(args, segment, first, last - first + 1, head);
  const int start = segment.kv_len - segment.row_count;
  const int begin = args.window > 0 ? max(start + first - args.window + 1, 0) : 0;
  TileSpan span;
  span.first_page = begin / kPageTokens;
  span.pages = (start + last) / kPageTokens + 1 - span.first_page;
  span.tiles = (span.pages + Shape::kPages - 1) / Shape::kPages;
  Shape tiles(shared, barriers);
  if (threadIdx.x == 0) tiles.Init(sizeof(T) == 1 ? kGroupThreads : 1);
  __syncthreads();  // The barriers are ready.
  const int group = static_cast<int>(threadIdx.x) / kGroupThreads - 1;
  if (group < 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    const int kv_head = head / (args.heads / args.kv_heads);
    if constexpr (sizeof(T) == 1) {
      ProduceAsF16<kDim>(args, segment.page_table, tiles, span, kv_head);
    } else if (threadIdx.x == 0) {
      Produce<T, kDim>(args, segment.page_table, tiles, span, kv_head);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const GroupRows rows = {first + group * kGroupRows, start + first + group * kGroupRows};
    Consume<typename FactorOf<T>::Type, kDim>(args, segment, tiles, span, rows, head, group);
  }
}

template <typename T, int kDim>
absl::Status Launch(const AttentionLaunch& launch) {
  constexpr int kBytes = Tiles<kDim>::kBytes;
  static const cudaError_t kAllowed = cudaFuncSetAttribute(
      PrefillKernel<T, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  MS_CUDA_RETURN_IF_ERROR(kAllowed);
  const AttentionArgs& args = launch.args;
  const dim3 grid(static_cast<unsigned>(args.heads), static_cast<unsigned>(args.segments.size()),
                  static_cast<unsigned>((args.rows_max + kTileRows - 1) / kTileRows));
  PrefillKernel<T, kDim>
      <<<grid, kThreads, kBytes, static_cast<cudaStream_t>(launch.stream)>>>(args);
  return LaunchStatus("PagedAttention, prefill");
}

template <typename T>
absl::Status LaunchOfType(const AttentionLaunch& launch) {
  switch (launch.args.head_dim) {
    case 64: return Launch<T, 64>(launch);
    case 128: return Launch<T, 128>(launch);
    default: return Launch<T, 256>(launch);
  }
}

}  // namespace

absl::Status LaunchTensorCorePrefill(const AttentionLaunch& launch) {
  switch (launch.args.kv_dtype) {
    case KvDType::kE4m3: return LaunchOfType<E4m3>(launch);
    case KvDType::kF16: return LaunchOfType<__half>(launch);
    default: return LaunchOfType<__nv_bfloat16>(launch);
  }
}

}  // namespace morphserve::kernels::cuda
