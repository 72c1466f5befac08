// What the two forms of the window's attention of chunks share (window_attend.cu,
// window_attend_half.cu): which positions a block's tiles hold, and how a row is brought out.
#pragma once

#include "kernels/cuda/tf32_tiles.cuh"
#include "kernels/cuda/window_steps.cuh"

namespace morphserve::kernels::cuda {

// What the rows [first, last) of a segment see between them, in tiles of kColumns positions: those
// of the sinks, then from the first row's window to the last row. Tiles begin at multiples of
// kColumns of the sequence, so a row's sums do not depend on where its chunk begins: what it does
// not see of a tile adds nothing, to the bit.
template <int kColumns>
struct TileKeys {
  int sinks, begin, end;   // Positions below `sinks` and those in [begin, end).
  int sink_tiles, window;  // Tiles of the sinks alone; the first one of the window.
  int tiles;
  __device__ TileKeys(const WindowMixerArgs& args, const MixerSegment& segment, int first, int last)
      : sinks(args.shape.sinks),
        begin(max(segment.position + first - args.shape.window + 1, 0)),
        end(segment.position + last),
        sink_tiles(min((min(sinks, begin) + kColumns - 1) / kColumns, begin / kColumns)),
        window(begin / kColumns),
        tiles(sink_tiles + (end - 1) / kColumns - window + 1) {}
  // The first position of a tile.
  __device__ int Tile(int i) const {
    return (i < sink_tiles ? i : window + i - sink_tiles) * kColumns;
  }
  __device__ bool Seen(int position) const {
    return position < end && (position >= begin || position < sinks);
  }
};

// Where a position older than the call lies in the ring.
__device__ inline int PlaceOf(const WindowMixerArgs& args, int position) {
  return position < args.shape.sinks ? args.shape.window + position : position % args.shape.window;
}

// Whether the row at `own` sees `position`, where both are the sequence's.
__device__ inline bool Sees(const WindowMixerArgs& args, int own, int position) {
  return position <= own && (position > own - args.shape.window || position < args.shape.sinks);
}

// Blocks of 64 rows, heads, segments.
inline dim3 AttendGrid(const WindowMixerArgs& args) {
  return {static_cast<unsigned>((args.rows_max + kTileRows - 1) / kTileRows),
          static_cast<unsigned>(args.heads), static_cast<unsigned>(args.segments.size())};
}

// A block whose segment is padding: its rows [first, last) become zeros.
__device__ inline void ZeroRows(const WindowMixerArgs& args, const MixerSegment& segment, int first,
                                int last, int head) {
  for (int r = first + static_cast<int>(threadIdx.x) / kWarp; r < last; r += kTileWarps) {
    ZeroHead(args, RowOf(args.row_list, segment, r), head);
  }
}

// Brings the lane's row `half` of the sums to the output; whether it is finite.
template <int kDim>
__device__ inline bool StoreRow(const WindowMixerArgs& args, int64_t row, int head, int half,
                                float total, const float (&sums)[kDim / 8][4]) {
  float factor = 1.0f / total;
  if (args.gate != nullptr) {
    const float x = args.gate[row * args.gate_stride + head] + args.gate_bias[head];
    factor *= 2.0f / (1.0f + expf(-x));
  }
  float* const out = args.out + row * args.out_stride + int64_t{head} * args.shape.head_dim;
  bool finite = true;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = ElementColumn(n, i);
      if (column >= args.shape.head_dim) continue;
      const float y = sums[n][2 * half + i] * factor;
      const float value = args.accumulate ? out[column] + y : y;
      finite = finite && isfinite(value);
      out[column] = value;
    }
  }
  return finite;
}

// The rows of the lane, two of the block's 64 from `first` on, to the output.
template <int kDim>
__device__ inline void StoreRows(const WindowMixerArgs& args, const MixerSegment& segment,
                                 int first, int last, int head, const float (&totals)[2],
                                 const float (&sums)[kDim / 8][4]) {
  bool finite = true;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first + ElementRow(2 * half);
    if (r >= last) continue;
    const int64_t row = RowOf(args.row_list, segment, r);
    finite = StoreRow<kDim>(args, row, head, half, totals[half], sums) && finite;
  }
  Flag(args, blockIdx.z, finite);
}

}  // namespace morphserve::kernels::cuda
