// The three steps of the recurrent mixer, each over a part of one segment: inputs, recurrence,
// outputs. Between two steps all workers meet. Internal to the CPU backend. Thread rule: reentrant
// for different parts of one step.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/mixer_call.h"
#include "kernels/recurrent_mixer.h"

namespace morphserve::kernels::cpu {

// Columns of a state that go to one worker together.
inline constexpr int32_t kStateColumns = 16;
// Columns of a state that are advanced together: what a worker's copy has room for.
inline constexpr int32_t kStateColumnsMax = 64;

struct RecurrentWork {
  const RecurrentMixerArgs* args = nullptr;
  SlotLayout layout;
  float* decay = nullptr;  // [rows of all segments, heads] exp(g); kGatedDelta only.
  float* beta = nullptr;   // Likewise.

  const MixerSegment& segment(const MixerShare& share) const {
    return args->segments[share.segment];
  }
  std::byte* slot(int32_t number) const { return SlotAt(args->slot_base, number); }
  int64_t row(const MixerSegment& segment, int32_t r) const {
    return RowOf(args->row_list, segment, r);
  }
};

// Scratch of one worker in the second step.
struct StateScratch {
  float* columns = nullptr;  // [head_dim, kStateColumnsMax], 64-byte aligned.
  float* kq = nullptr;       // [rows of the longest segment] k . q
};

// Convolution, activation, rotation and norm, in place: units are strips [part][head], part 0 to 2
// of q | k | v. Writes the convolution's memory.
void PrepareStrips(const RecurrentWork& work, const MixerShare& share);
// Gates of rows [share.begin, share.end).
void PrepareGates(const RecurrentWork& work, const MixerShare& share);

// The recurrence: units are blocks of kStateColumns columns, [head][block]. Writes the state, and
// scale * S^T q to `out`.
void AdvanceStates(const RecurrentWork& work, const MixerShare& share, const StateScratch& scratch);

// Norm and output gate in place in `out`: units are rows or, with a norm of each head, [row][head].
void FinishOutputs(const RecurrentWork& work, const MixerShare& share);

}  // namespace morphserve::kernels::cpu
