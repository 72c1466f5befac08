// Copies and checks of arena units. A list of moves travels in the kernel's parameters, so that it
// needs no memory on the device and may be gone when the call returns.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "kernels/cuda/cache_types.cuh"
#include "kernels/cuda/error.h"
#include "kernels/cuda/units.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int kMovesPerLaunch = 200;  // 3.2 KB of the 4 KB that parameters may take everywhere.
constexpr int kUnitsPerLaunch = 800;  // As much.
constexpr int kThreads = 256;
constexpr int64_t kBytesPerBlock = int64_t{kThreads} * 16 * 8;

struct MoveList {
  UnitMove moves[kMovesPerLaunch];
};

struct UnitList {
  int32_t units[kUnitsPerLaunch];
};

// Block (part of a move, move).
__global__ void CopyUnitsKernel(std::byte* base, const MoveList list) {
  const UnitMove& move = list.moves[blockIdx.y];
  const int64_t begin = blockIdx.x * kBytesPerBlock;
  const int64_t end = min(begin + kBytesPerBlock, move.bytes);
  const std::byte* const from = base + move.from * kArenaUnitBytes;
  std::byte* const to = base + move.to * kArenaUnitBytes;
  for (int64_t i = begin + threadIdx.x * 16; i < end; i += kThreads * 16) {
    *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
  }
}

// Block (part of a unit, unit).
__global__ void ZeroUnitsKernel(std::byte* base, const UnitList list, int64_t bytes) {
  const int64_t begin = blockIdx.x * kBytesPerBlock;
  const int64_t end = min(begin + kBytesPerBlock, bytes);
  std::byte* const to = base + list.units[blockIdx.y] * kArenaUnitBytes;
  for (int64_t i = begin + threadIdx.x * 16; i < end; i += kThreads * 16) {
    *reinterpret_cast<uint4*>(to + i) = uint4{0, 0, 0, 0};
  }
}

template <typename T>
__global__ void FlagKernel(const T* values, int64_t count, uint8_t* flag) {
  bool finite = true;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    finite = finite && isfinite(ToFloat(values[i]));
  }
  if (!finite) *flag = 1;
}

template <typename T>
absl::Status Flag(const std::byte* from, int64_t bytes, uint8_t* flag, cudaStream_t stream) {
  const int64_t count = bytes / static_cast<int64_t>(sizeof(T));
  if (count == 0) return absl::OkStatus();
  const int64_t blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, 256);
  FlagKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      reinterpret_cast<const T*>(from), count, flag);
  return LaunchStatus("FlagNonfiniteSlot");
}

}  // namespace

absl::Status CopyUnits(std::byte* base, std::span<const UnitMove> moves, Stream stream) {
  for (const UnitMove& move : moves) {
    if (move.from < 0 || move.to < 0 || move.bytes < 0 || move.bytes % 16 != 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%d bytes from unit %d to %d", move.bytes, move.from, move.to));
    }
  }
  while (!moves.empty()) {
    const auto count = std::min<size_t>(moves.size(), kMovesPerLaunch);
    MoveList list = {};
    int64_t most = 0;
    for (size_t i = 0; i < count; ++i) {
      list.moves[i] = moves[i];
      most = std::max(most, moves[i].bytes);
    }
    moves = moves.subspan(count);
    if (most == 0) continue;
    const dim3 grid(static_cast<unsigned>((most + kBytesPerBlock - 1) / kBytesPerBlock),
                    static_cast<unsigned>(count));
    CopyUnitsKernel<<<grid, kThreads, 0, StreamOf(stream)>>>(base, list);
    if (absl::Status status = LaunchStatus("CopyUnits"); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ZeroUnits(std::byte* base, std::span<const int32_t> units, int64_t bytes,
                       Stream stream) {
  if (bytes < 0 || bytes % 16 != 0 ||
      std::any_of(units.begin(), units.end(), [](int32_t unit) { return unit < 0; })) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d bytes of each of %d units, or one below 0", bytes, units.size()));
  }
  if (bytes == 0) return absl::OkStatus();
  const auto parts = static_cast<unsigned>((bytes + kBytesPerBlock - 1) / kBytesPerBlock);
  while (!units.empty()) {
    const auto count = std::min<size_t>(units.size(), kUnitsPerLaunch);
    UnitList list = {};
    std::copy_n(units.begin(), count, list.units);
    units = units.subspan(count);
    const dim3 grid(parts, static_cast<unsigned>(count));
    ZeroUnitsKernel<<<grid, kThreads, 0, StreamOf(stream)>>>(base, list, bytes);
    if (absl::Status status = LaunchStatus("ZeroUnits"); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status FlagNonfiniteSlot(const SlotShape& shape, const std::byte* base, int32_t slot,
                               uint8_t* flag, Stream stream) {
  const SlotLayout layout = MakeSlotLayout(shape);
  const std::byte* const start = base + slot * kArenaUnitBytes;
  absl::Status status = Flag<float>(start, SlotStateBytes(shape), flag, StreamOf(stream));
  WithSlotType(shape.dtype, [&](auto type) {
    using T = decltype(type);
    if (status.ok()) {
      status = Flag<T>(start + layout.conv_offset, SlotConvBytes(shape), flag, StreamOf(stream));
    }
    if (status.ok()) {
      status = Flag<T>(start + layout.ring_offset, SlotRingBytes(shape), flag, StreamOf(stream));
    }
  });
  return status;
}

}  // namespace morphserve::kernels::cuda
