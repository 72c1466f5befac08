#include "kernels/recurrent_mixer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "kernels/cpu/recurrent_steps.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve::kernels {
namespace {

constexpr int32_t kHeadDimMax = 256;
constexpr int32_t kTapsMax = 8;

constexpr int64_t FloatBytes(int64_t count) {
  return (count * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
}

// First decay and beta of all rows, then the workers' scratch.
struct WorkspaceLayout {
  WorkspaceLayout(int64_t rows, int32_t heads, int32_t head_dim, int32_t threads)
      : gates(FloatBytes(rows * heads)),
        columns(FloatBytes(int64_t{head_dim} * cpu::kStateColumnsMax)),
        worker(columns + FloatBytes(rows)),
        bytes(2 * gates + threads * worker) {}
  int64_t gates;
  int64_t columns;
  int64_t worker;
  int64_t bytes;
};

}  // namespace

int64_t RecurrentWorkspaceBytes(int32_t rows_max, int32_t heads, int32_t head_dim,
                                int32_t threads) {
  return WorkspaceLayout(rows_max, heads, head_dim, threads).bytes;
}

namespace cpu {
namespace {

absl::Status CheckShape(const RecurrentMixerArgs& args) {
  const SlotShape& s = args.shape;
  if (s.head_dim < 1 || s.head_dim > kHeadDimMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("head_dim %d is outside 1..%d", s.head_dim, kHeadDimMax));
  }
  if (s.heads < 1) {
    return absl::InvalidArgumentError(absl::StrFormat("heads %d is not positive", s.heads));
  }
  if (s.conv_taps < 0 || s.conv_taps > kTapsMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("conv_taps %d is outside 0..%d", s.conv_taps, kTapsMax));
  }
  if ((args.conv == nullptr) != (s.conv_taps == 0)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d taps %s their weights", s.conv_taps, args.conv == nullptr ? "lack" : "do not go with"));
  }
  if (args.cos != nullptr &&
      (args.rotary_dim < 0 || args.rotary_dim > s.head_dim || args.rotary_dim % 2 != 0)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "rotary_dim %d is not an even number in 0..%d", args.rotary_dim, s.head_dim));
  }
  if (!std::isfinite(args.scale) || !std::isfinite(args.eps) || args.eps < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("scale %g or eps %g is out of range", args.scale, args.eps));
  }
  return absl::OkStatus();
}

absl::Status CheckPointers(const RecurrentMixerArgs& args) {
  const bool is_delta = args.kind == RecurrentKind::kGatedDelta;
  if (is_delta && (args.a == nullptr || args.b == nullptr || args.a_log == nullptr ||
                   args.dt_bias == nullptr || args.b_beta == nullptr)) {
    return absl::InvalidArgumentError("the gated delta rule lacks a gate");
  }
  if (!is_delta && args.slopes == nullptr) {
    return absl::InvalidArgumentError("lightning attention lacks its slopes");
  }
  if (args.qkv == nullptr || args.z == nullptr || args.out == nullptr ||
      args.norm_weight == nullptr || args.slot_base == nullptr ||
      (args.cos == nullptr) != (args.sin == nullptr)) {
    return absl::InvalidArgumentError("an input, the output or the slots are missing");
  }
  return absl::OkStatus();
}

absl::Status Check(const RecurrentMixerArgs& args, int64_t needed) {
  absl::Status status = CheckShape(args);
  if (status.ok()) status = CheckPointers(args);
  if (status.ok()) status = CheckSegments(args.segments, args.emits, args.row_list);
  if (!status.ok()) return status;
  if (args.workspace == nullptr || args.workspace_bytes < needed ||
      reinterpret_cast<uintptr_t>(args.workspace) % 64 != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "workspace has %d bytes; %d aligned to 64 are needed", args.workspace_bytes, needed));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RecurrentMixer(const RecurrentMixerArgs& args, Stream stream) {
  const SlotShape& shape = args.shape;
  ThreadPool& pool = *stream.pool;
  const WorkspaceLayout memory(CountRows(args.segments), shape.heads, shape.head_dim,
                               pool.threads());
  if (absl::Status status = Check(args, memory.bytes); !status.ok()) return status;
  ZeroPadding(args.segments, args.row_list, args.out, args.out_stride,
              int64_t{shape.heads} * shape.head_dim);
  const RecurrentWork work = {.args = &args,
                              .layout = MakeSlotLayout(shape),
                              .decay = reinterpret_cast<float*>(args.workspace),
                              .beta = reinterpret_cast<float*>(args.workspace + memory.gates)};
  pool.ForEachWorker([&](int32_t worker) {
    ForEachShare(args.segments, 3 * shape.heads, true, pool, worker,
                 [&](const MixerShare& share) { PrepareStrips(work, share); });
    if (args.kind == RecurrentKind::kLightning) return;
    ForEachShare(args.segments, 1, false, pool, worker,
                 [&](const MixerShare& share) { PrepareGates(work, share); });
  });
  pool.ForEachWorker([&](int32_t worker) {
    std::byte* const own = args.workspace + 2 * memory.gates + worker * memory.worker;
    const StateScratch scratch = {.columns = reinterpret_cast<float*>(own),
                                  .kq = reinterpret_cast<float*>(own + memory.columns)};
    const int32_t blocks = (shape.head_dim + kStateColumns - 1) / kStateColumns;
    ForEachShare(args.segments, int64_t{shape.heads} * blocks, true, pool, worker,
                 [&](const MixerShare& share) { AdvanceStates(work, share, scratch); });
  });
  pool.ForEachWorker([&](int32_t worker) {
    ForEachShare(args.segments, args.per_head_norm ? shape.heads : 1, false, pool, worker,
                 [&](const MixerShare& share) { FinishOutputs(work, share); });
  });
  return absl::OkStatus();
}

}  // namespace cpu
}  // namespace morphserve::kernels
