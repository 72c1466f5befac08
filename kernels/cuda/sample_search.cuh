// One row of logits held by a cluster of blocks, a slice of ids in the shared memory of each, and
// the passes over it that sampling is made of: reductions over the cluster, and the search for a
// place in the order (logit descending, id ascending) by the count or the weight of all that come
// before.
//
// Every block calls every method, with all of its threads and the same arguments; results are the
// same in all of them. Sums have a fixed order, so results repeat bit for bit.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "kernels/cuda/warp.cuh"

namespace morphserve::kernels::cuda {

inline constexpr int kSampleBlocks = 8;  // Of a cluster: one row.
inline constexpr int kSampleThreads = 512;
inline constexpr int kSampleWarps = kSampleThreads / kWarp;
inline constexpr int kPivots = 8;
inline constexpr int kBandMax = 2048;  // Candidates that one block sorts.
inline constexpr int kBandGoal = 512;  // So few are sorted rather than searched on.
inline constexpr uint32_t kKeyOfMinusInfinity = 0x007fffffu;

// Unsigned integers in the order of the floats; both zeros are one value, as they compare.
__device__ inline uint32_t KeyOf(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float ValueOf(uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}
// Larger is earlier in the order.
__device__ inline uint64_t PlaceKey(float value, int32_t id) {
  return uint64_t{KeyOf(value)} << 32 | ~static_cast<uint32_t>(id);
}
__device__ inline int32_t IdOf(uint64_t place) {
  return static_cast<int32_t>(~static_cast<uint32_t>(place));
}

// exp(x) for x <= 0, bit for bit that of kernels/cpu/exp-inl.h where that has fused multiply-adds.
__device__ inline float SampleWeight(float value, float largest) {
  constexpr float kLowest = -87.3f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer.
  const float x = __fsub_rn(value, largest);
  const float clamped = fmaxf(x, kLowest);
  const float shifted = fmaf(clamped, 1.44269504f, kMagic);
  const float n = __fsub_rn(shifted, kMagic);
  const float r = fmaf(-n, -2.12194440e-4f, fmaf(-n, 0.693359375f, clamped));
  float q = 1.381432e-3f;
  q = fmaf(q, r, 8.368852e-3f);
  q = fmaf(q, r, 4.16684e-2f);
  q = fmaf(q, r, 1.666652e-1f);
  q = fmaf(q, r, 4.9999994e-1f);
  const float p = __fadd_rn(fmaf(__fmul_rn(r, r), q, r), 1.0f);
  const int power = static_cast<int>(__float_as_uint(shifted) - __float_as_uint(kMagic)) + 127;
  const float scaled = __fmul_rn(p, __uint_as_float(static_cast<uint32_t>(power) << 23));
  return x < kLowest ? 0.0f : scaled;
}

struct Tally {
  double mass;
  uint32_t count;
};

// What a search looks for: the shortest prefix of the order that has it.
struct SampleGoal {
  bool by_count = false;
  uint32_t count = 0;
  double mass = 0;
  bool above = false;  // The mass must exceed, not only reach.
  __device__ bool Reached(const Tally& t) const {
    return by_count ? t.count >= count : t.count > 0 && (above ? t.mass > mass : t.mass >= mass);
  }
};

struct SamplePlace {
  int32_t token;
  uint32_t padding;
  Tally tally;  // Of the prefix that ends with the token.
};

struct SampleRange {
  uint64_t best;  // PlaceKey of the first of the order.
  float all;      // The largest, ids without a token included.
  uint32_t bad;   // Not 0: a NaN or +inf among them.
};

struct SampleShared {
  // By turns, so that one barrier of the cluster separates a reading from the next writing.
  double masses[2][kPivots];
  uint32_t counts[2][kPivots];
  SampleRange ranges[2];
  double warp_masses[kSampleWarps][kPivots];
  uint32_t warp_counts[kSampleWarps][kPivots];
  SampleRange warp_ranges[kSampleWarps];
  Tally totals[kPivots];
  Tally first[kPivots];  // Of the pivots that every search starts with.
  SampleRange range;
  SamplePlace place;
  uint32_t found;
  uint32_t band_count;
  uint64_t band[kBandMax];
};

__device__ inline SampleRange Join(const SampleRange& a, const SampleRange& b) {
  return {a.best > b.best ? a.best : b.best, fmaxf(a.all, b.all), a.bad | b.bad};
}

class SampleSlice {
 public:
  __device__ SampleSlice(SampleShared* shared, float* logits, int32_t vocab, int32_t pieces)
      : s_(*shared), logits_(logits), pieces_(pieces) {
    const int32_t size = SliceSize(vocab);
    first_ = static_cast<int32_t>(cluster_.block_rank()) * size;
    count_ = max(0, min(size, vocab - first_));
  }

  __host__ __device__ static constexpr int32_t SliceSize(int32_t vocab) {
    return (vocab + kSampleBlocks - 1) / kSampleBlocks;
  }

  // Copies the row in; ids without a token become -inf once the range is known.
  __device__ void Load(const float* row) {
    __syncthreads();  // Nobody still reads what was here.
    for (int32_t i = threadIdx.x; i < count_; i += kSampleThreads) logits_[i] = row[first_ + i];
    __syncthreads();
  }
  __device__ void DropIdsWithoutToken() {
    for (int32_t i = threadIdx.x; i < count_; i += kSampleThreads) {
      if (first_ + i >= pieces_) logits_[i] = -INFINITY;
    }
    __syncthreads();
  }

  // The logit of `id` for writing, or null: of another block, or no token's.
  __device__ float* At(int32_t id) {
    return id >= first_ && id < first_ + count_ && id < pieces_ ? logits_ + (id - first_) : nullptr;
  }
  template <class F>
  __device__ void ForEach(const F& f) {
    for (int32_t i = threadIdx.x; i < count_; i += kSampleThreads) f(first_ + i, logits_[i]);
  }

  __device__ SampleRange Range() {
    SampleRange mine = {0, -INFINITY, 0};
    ForEach([&](int32_t id, float& value) {
      const SampleRange one = {id < pieces_ ? PlaceKey(value, id) : 0, value,
                               value < INFINITY ? 0u : 1u};
      mine = Join(mine, one);
    });
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      mine =
          Join(mine, {__shfl_xor_sync(~0u, static_cast<unsigned long long>(mine.best), step),
                      __shfl_xor_sync(~0u, mine.all, step), __shfl_xor_sync(~0u, mine.bad, step)});
    }
    if (threadIdx.x % kWarp == 0) s_.warp_ranges[threadIdx.x / kWarp] = mine;
    __syncthreads();
    turn_ ^= 1;
    if (threadIdx.x == 0) {
      for (int w = 1; w < kSampleWarps; ++w) mine = Join(mine, s_.warp_ranges[w]);
      s_.ranges[turn_] = mine;
    }
    cluster_.sync();  // The ranges of all blocks are there.
    if (threadIdx.x == 0) {
      SampleRange all = *cluster_.map_shared_rank(&s_.ranges[turn_], 0);
      for (int b = 1; b < kSampleBlocks; ++b) {
        all = Join(all, *cluster_.map_shared_rank(&s_.ranges[turn_], b));
      }
      s_.range = all;
    }
    __syncthreads();
    best_ = s_.range.best;
    return s_.range;
  }

  // For each of kPivots keys, descending, what lies in [key, high): in s_.totals until the
  // next reduction.
  __device__ void TallyFrom(const uint32_t (&pivots)[kPivots], uint64_t high, float largest) {
    double masses[kPivots] = {};
    uint32_t counts[kPivots] = {};
    ForEach([&](int32_t, float& value) {
      const uint32_t key = KeyOf(value);
      if (key < pivots[kPivots - 1] || key >= high) return;
      const auto weight = static_cast<double>(SampleWeight(value, largest));
#pragma unroll
      for (int p = 0; p < kPivots; ++p) {
        if (key >= pivots[p]) {
          masses[p] += weight;
          ++counts[p];
        }
      }
    });
    Reduce(&masses, &counts);
  }
  // One tally over all elements that f(id, value) gives a weight and a count for.
  template <class F>
  __device__ Tally Sum(const F& f) {
    double masses[kPivots] = {};
    uint32_t counts[kPivots] = {};
    ForEach([&](int32_t id, float& value) {
      const Tally one = f(id, value);
      masses[0] += one.mass;
      counts[0] += one.count;
    });
    Reduce(&masses, &counts);
    return s_.totals[0];
  }

  // The pass that every search of the row starts with; returns the tally of all that is not -inf.
  // Before Find and First, again after the row has changed. `largest` is its finite maximum.
  __device__ Tally Prepare(float largest) {
    const Interval in = Everything(largest);
    uint32_t pivots[kPivots];
    SetPivots(0, largest, in, pivots);
    TallyFrom(pivots, in.high, largest);
    if (threadIdx.x < kPivots) s_.first[threadIdx.x] = s_.totals[threadIdx.x];
    __syncthreads();  // The first tallies are there.
    return s_.first[kPivots - 1];
  }

  // The end of the shortest prefix that reaches the goal, which the whole row does. If rounding
  // left its sum short, a token of the end or the best one. `largest` is the row's finite maximum.
  __device__ SamplePlace Find(const SampleGoal& goal, float largest) {
    Interval in = Narrow(goal, largest, kBandGoal, /*from_top=*/false);
    if (in.count == 0) return {IdOf(best_), 0, {1, 1}};
    if (in.count <= kBandMax) {
      Gather(in.low, in.high);
      return FindInBand(goal, largest, in.above);
    }
    // One value, too often: its tokens follow each other by id.
    const auto weight = static_cast<double>(SampleWeight(ValueOf(in.low), largest));
    const auto after = [&](uint32_t ties) {
      return Tally{in.above.mass + ties * weight, in.above.count + ties};
    };
    uint32_t least = 1, most = in.count;
    while (least < most) {
      const uint32_t middle = least + (most - least) / 2;
      if (goal.Reached(after(middle))) {
        most = middle;
      } else {
        least = middle + 1;
      }
    }
    SamplePlace* const result = cluster_.map_shared_rank(&s_.place, 0);
    VisitTies(in.low, [&](uint32_t index, int32_t id) {
      if (index + 1 == least) *result = {id, 0, after(least)};
    });
    return Publish();
  }

  // The first `count` of the order in the first block's band; returns how many there are.
  __device__ uint32_t First(uint32_t count, float largest) {
    const SampleGoal goal = {.by_count = true, .count = count};
    const Interval in = Narrow(goal, largest, kBandMax, /*from_top=*/true);
    const bool fits = in.above.count + in.count <= kBandMax;
    Gather(fits ? in.low : in.high, uint64_t{1} << 32);
    if (!fits) {
      const uint32_t needed = count - in.above.count;
      VisitTies(in.low, [&](uint32_t index, int32_t id) {
        if (index < needed) Append(uint64_t{in.low} << 32 | ~static_cast<uint32_t>(id));
      });
    }
    cluster_.sync();  // The band is whole.
    if (cluster_.block_rank() == 0) SortBand();
    const uint32_t found = *cluster_.map_shared_rank(&s_.band_count, 0);
    return min(found, count);
  }
  __device__ uint64_t band(uint32_t index) const { return s_.band[index]; }
  __device__ bool leads() const { return cluster_.block_rank() == 0; }
  // No block may leave while others may read its memory.
  __device__ void Leave() { cluster_.sync(); }

 private:
  // The place lies in keys of [low, high); `above` is what lies from `high` on, short of the goal.
  struct Interval {
    uint32_t low;
    uint64_t high;
    Tally above;
    uint32_t count;
  };

  // Total over the cluster of every pivot's sums.
  __device__ void Reduce(double (*masses)[kPivots], uint32_t (*counts)[kPivots]) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    // Lanes trade halves of their values until each quad holds one value: 9 exchanges, not 40.
    double(&m)[kPivots] = *masses;
    uint32_t(&c)[kPivots] = *counts;
#pragma unroll
    for (int half = kPivots / 2, step = kWarp / 2; half > 0; half /= 2, step /= 2) {
      const bool upper = (lane & step) != 0;
#pragma unroll
      for (int i = 0; i < half; ++i) {
        const double send_mass = upper ? m[i] : m[i + half];
        const uint32_t send_count = upper ? c[i] : c[i + half];
        m[i] = (upper ? m[i + half] : m[i]) + __shfl_xor_sync(~0u, send_mass, step);
        c[i] = (upper ? c[i + half] : c[i]) + __shfl_xor_sync(~0u, send_count, step);
      }
    }
#pragma unroll
    for (int step = kWarp / kPivots / 2; step > 0; step /= 2) {
      m[0] += __shfl_xor_sync(~0u, m[0], step);
      c[0] += __shfl_xor_sync(~0u, c[0], step);
    }
    if (lane % (kWarp / kPivots) == 0) {
      s_.warp_masses[warp][lane / (kWarp / kPivots)] = m[0];
      s_.warp_counts[warp][lane / (kWarp / kPivots)] = c[0];
    }
    __syncthreads();  // The sums of all warps are there.
    turn_ ^= 1;
    if (threadIdx.x < kPivots) {
      Tally sum = {};
      for (int w = 0; w < kSampleWarps; ++w) {
        sum.mass += s_.warp_masses[w][threadIdx.x];
        sum.count += s_.warp_counts[w][threadIdx.x];
      }
      s_.masses[turn_][threadIdx.x] = sum.mass;
      s_.counts[turn_][threadIdx.x] = sum.count;
    }
    cluster_.sync();  // The sums of all blocks are there.
    if (threadIdx.x < kPivots) {
      Tally sum = {};
      for (int b = 0; b < kSampleBlocks; ++b) {
        sum.mass += *cluster_.map_shared_rank(&s_.masses[turn_][threadIdx.x], b);
        sum.count += *cluster_.map_shared_rank(&s_.counts[turn_][threadIdx.x], b);
      }
      s_.totals[threadIdx.x] = sum;
    }
    __syncthreads();  // The totals are there.
  }

  __device__ static Interval Everything(float largest) {
    return {kKeyOfMinusInfinity + 1, uint64_t{KeyOf(largest)} + 1, {}, ~0u};
  }

  // Narrows until at most `enough` are left between low and high (from_top: from low on), or one
  // key.
  __device__ Interval Narrow(const SampleGoal& goal, float largest, uint32_t enough,
                             bool from_top) {
    Interval in = Everything(largest);
    for (int pass = 0; in.count + (from_top ? in.above.count : 0) > enough && in.high - in.low > 1;
         ++pass) {
      uint32_t pivots[kPivots];
      SetPivots(pass, largest, in, pivots);
      if (pass > 0) TallyFrom(pivots, in.high, largest);
      const Tally* const totals = pass == 0 ? s_.first : s_.totals;
      const Tally above = in.above;
      Tally before = above;
#pragma unroll
      for (int p = 0; p < kPivots; ++p) {
        const Tally at = {above.mass + totals[p].mass, above.count + totals[p].count};
        // The lowest pivot is `low`: what does not reach it there is short by a rounding.
        if (goal.Reached(at) || p == kPivots - 1) {
          in.low = pivots[p];
          in.above = before;
          in.count = at.count - before.count;
          break;
        }
        before = at;
        in.high = pivots[p];
      }
      __syncthreads();  // Everybody has read the totals.
    }
    return in;
  }

  // Descending keys of (low, high), and low itself. Most weight lies within a few units of the
  // largest; then values are cut evenly; in the end keys are, which always comes to one.
  __device__ static void SetPivots(int pass, float largest, const Interval& in,
                                   uint32_t (&pivots)[kPivots]) {
    const auto highest = static_cast<uint32_t>(in.high - 1);
    const float top = ValueOf(highest), bottom = ValueOf(in.low);
    const uint32_t width = highest - in.low;
#pragma unroll
    for (int p = 0; p < kPivots - 1; ++p) {
      uint32_t key;
      if (pass == 0) {
        key = KeyOf(largest - ldexpf(0.5f, p));
      } else if (pass < 4) {
        key = KeyOf(top - (top - bottom) * (static_cast<float>(p + 1) / kPivots));
      } else {
        key = highest - static_cast<uint32_t>(uint64_t{width} * p / (kPivots - 1));
      }
      pivots[p] = max(in.low + 1, min(highest, key));
    }
    pivots[kPivots - 1] = in.low;
  }

  __device__ void Append(uint64_t place) {
    const uint32_t at = atomicAdd(cluster_.map_shared_rank(&s_.band_count, 0), 1u);
    *cluster_.map_shared_rank(&s_.band[at], 0) = place;
  }

  // Puts all of [low, high) into the first block's band, in any order. Whole after a barrier.
  __device__ void Gather(uint64_t low, uint64_t high) {
    if (threadIdx.x == 0) s_.band_count = 0;
    cluster_.sync();  // The band is empty, and its last content has been read.
    ForEach([&](int32_t id, float& value) {
      const uint32_t key = KeyOf(value);
      if (key >= low && key < high) Append(PlaceKey(value, id));
    });
  }

  // First block only: sorts its band, descending. Keys are distinct, so the order is one.
  __device__ void SortBand() {
    uint32_t size = 1;
    while (size < s_.band_count) size *= 2;
    for (uint32_t i = s_.band_count + threadIdx.x; i < size; i += kSampleThreads) s_.band[i] = 0;
    __syncthreads();
    for (uint32_t run = 2; run <= size; run *= 2) {
      for (uint32_t step = run / 2; step > 0; step /= 2) {
        for (uint32_t i = threadIdx.x; i < size / 2; i += kSampleThreads) {
          const uint32_t a = 2 * i - (i & (step - 1)), b = a + step;
          const uint64_t x = s_.band[a], y = s_.band[b];
          if ((x < y) == ((a & run) == 0)) {
            s_.band[a] = y;
            s_.band[b] = x;
          }
        }
        __syncthreads();  // One step of the network is done.
      }
    }
  }

  __device__ SamplePlace Publish() {
    cluster_.sync();  // The first block has the place.
    return *cluster_.map_shared_rank(&s_.place, 0);
  }

  __device__ SamplePlace FindInBand(const SampleGoal& goal, float largest, const Tally& above) {
    cluster_.sync();  // The band is whole.
    if (leads()) {
      SortBand();
      WalkBand(goal, largest, above);
    }
    return Publish();
  }

  // First block only: the place in its sorted band.
  __device__ void WalkBand(const SampleGoal& goal, float largest, const Tally& above) {
    constexpr int kEach = kBandMax / kSampleThreads;
    const uint32_t count = s_.band_count, begin = threadIdx.x * kEach;
    double weights[kEach];
    double mine = 0;
    uint32_t last_weighed = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool there = begin + i < count;
      weights[i] = there ? SampleWeight(ValueOf(s_.band[begin + i] >> 32), largest) : 0.0;
      mine += weights[i];
      if (weights[i] > 0) last_weighed = begin + i;
    }
    const double before = above.mass + ExclusiveSum(mine);
    if (threadIdx.x == 0) s_.found = ~0u;
    __syncthreads();
    double mass = before;
    uint32_t found = ~0u;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      mass += weights[i];
      const Tally at = {mass, above.count + begin + i + 1};
      if (found == ~0u && begin + i < count && goal.Reached(at)) found = begin + i;
    }
    if (found != ~0u) atomicMin(&s_.found, found);
    __syncthreads();
    // Nobody reached it: the last that weighs anything, or the last counted.
    if (s_.found == ~0u) {
      __syncthreads();
      if (threadIdx.x == 0) s_.found = goal.by_count && count > 0 ? count - 1 : 0;
      __syncthreads();
      if (!goal.by_count) atomicMax(&s_.found, last_weighed);
      __syncthreads();
    }
    const uint32_t index = s_.found;
    if (index / kEach == threadIdx.x) {
      mass = before;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        if (begin + i <= index) mass += weights[i];
      }
      s_.place = {IdOf(s_.band[index]), 0, {mass, above.count + index + 1}};
    }
  }

  // The sum over the threads before this one.
  __device__ double ExclusiveSum(double value) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    double sum = value;
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const double other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == kWarp - 1) s_.warp_masses[warp][0] = sum;
    __syncthreads();
    double before = 0;
    for (int w = 0; w < warp; ++w) before += s_.warp_masses[w][0];
    const double up = __shfl_up_sync(~0u, sum, 1);
    return before + (lane == 0 ? 0.0 : up);
  }

  // Calls visit(index, id) for every id whose logit has `key`, counted over the row by id.
  template <class F>
  __device__ void VisitTies(uint32_t key, const F& visit) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint32_t mine = 0;
    ForEach([&](int32_t, float& value) { mine += KeyOf(value) == key ? 1 : 0; });
    for (int step = kWarp / 2; step > 0; step /= 2) mine += __shfl_xor_sync(~0u, mine, step);
    if (lane == 0) s_.warp_counts[warp][0] = mine;
    __syncthreads();
    turn_ ^= 1;
    if (threadIdx.x == 0) {
      uint32_t sum = 0;
      for (int w = 0; w < kSampleWarps; ++w) sum += s_.warp_counts[w][0];
      s_.counts[turn_][0] = sum;
    }
    cluster_.sync();  // The counts of all blocks are there.
    uint32_t base = 0;
    for (unsigned b = 0; b < cluster_.block_rank(); ++b) {
      base += *cluster_.map_shared_rank(&s_.counts[turn_][0], b);
    }
    for (int32_t first = 0; first < count_; first += kSampleThreads) {
      const int32_t i = first + static_cast<int32_t>(threadIdx.x);
      const bool tie = i < count_ && KeyOf(logits_[i]) == key;
      const uint32_t ballot = __ballot_sync(~0u, tie);
      if (lane == 0) s_.warp_counts[warp][1] = __popc(ballot);
      __syncthreads();  // The counts of this round are there.
      uint32_t index = base + __popc(ballot & ((1u << lane) - 1));
      for (int w = 0; w < kSampleWarps; ++w) {
        const uint32_t some = s_.warp_counts[w][1];
        if (w < warp) index += some;
        base += some;
      }
      if (tie) visit(index, first_ + i);
      __syncthreads();  // They have been read.
    }
  }

  const cooperative_groups::cluster_group cluster_ = cooperative_groups::this_cluster();
  SampleShared& s_;
  float* const logits_;
  const int32_t pieces_;
  int32_t first_;
  int32_t count_;
  uint64_t best_ = 0;  // Of the last Range.
  int turn_ = 0;
};

}  // namespace morphserve::kernels::cuda
