// What the tests of the two mixers share: slots with garbage around them, rotary tables, comparison
// with an oracle, and cuts of a sequence into chunks. Thread rule: the test's thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/mixer_segment.h"
#include "kernels/slot_layout.h"
#include "tests/kernels/kernel_test_util.h"

namespace morphserve::kernels {

using Doubles = std::vector<double>;

// Slots at odd addresses, filled with NaN in every type.
class Slots {
 public:
  Slots(const SlotShape& shape, int32_t count)
      : bytes_(MakeSlotLayout(shape).bytes), memory_(count * (bytes_ + kArenaUnitBytes)) {
    std::memset(base(), 0xff, static_cast<size_t>(memory_.bytes()));
  }
  std::byte* base() { return memory_.data(); }
  // Number of slot i, in units; slots lie in reverse with a unit between them.
  int32_t At(int32_t i) const {
    const int64_t size = bytes_ + kArenaUnitBytes;
    return static_cast<int32_t>((memory_.bytes() - (i + 1) * size) / kArenaUnitBytes);
  }
  std::vector<std::byte> Copy(int32_t i) {
    const std::byte* const start = base() + At(i) * kArenaUnitBytes;
    return {start, start + bytes_};
  }
  std::vector<std::byte> All() { return {base(), base() + memory_.bytes()}; }
  // Makes these the slots of a call; a call on a device is told how many bytes to take there.
  template <class Args>
  void Attach(Args* args) {
    args->slot_base = base();
    if constexpr (requires { args->slots; }) args->slots = {base(), base() + memory_.bytes()};
  }

 private:
  int64_t bytes_;
  Workspace memory_;
};

// Rows of cosines and sines, or none.
struct RotaryRows {
  RotaryRows(int32_t rows, int32_t rotary_dim, Numbers* numbers)
      : pairs(static_cast<size_t>(rotary_dim / 2)) {
    for (size_t i = 0; i < static_cast<size_t>(rows) * pairs; ++i) {
      const double angle = 10.0 * static_cast<double>(numbers->Normal());
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  size_t pairs;
  std::vector<float> cos, sin;
};

// Row `row` of rows of `width` floats, in fp64.
inline Doubles RowOf(const std::vector<float>& rows, size_t row, size_t width) {
  const auto start = rows.begin() + static_cast<std::ptrdiff_t>(row * width);
  return {start, start + static_cast<std::ptrdiff_t>(width)};
}

// Root mean square error over root mean square value.
inline double RelativeError(const std::vector<float>& is, const Doubles& expected) {
  double error = 0, square = 0;
  for (size_t i = 0; i < is.size(); ++i) {
    const double difference = static_cast<double>(is[i]) - expected[i];
    error += difference * difference;
    square += expected[i] * expected[i];
  }
  return std::sqrt(error / std::max(square, 1e-300));
}

// `length` rows in chunks of `size`, the last one shorter.
inline std::vector<int32_t> ChunksOf(int32_t length, int32_t size) {
  std::vector<int32_t> chunks;
  for (; length > 0; length -= size) chunks.push_back(std::min(length, size));
  return chunks;
}

// Every split that the tests try: one shot, token by token, odd ones and an uneven mix.
inline std::vector<std::vector<int32_t>> Cuts(int32_t length) {
  std::vector<std::vector<int32_t>> cuts = {{length}};
  for (int32_t size : {1, 15, 63, 64, 65, 127}) cuts.push_back(ChunksOf(length, size));
  std::vector<int32_t> mixed = {1, 2, 3, 1, 7};
  int32_t done = 14;
  for (int32_t size = 5; done < length; size = size * 2 + 1) {
    mixed.push_back(std::min(size, length - done));
    done += mixed.back();
  }
  cuts.push_back(mixed);
  return cuts;
}

// What a run leaves behind.
struct MixerResult {
  std::vector<float> out;
  std::vector<std::byte> slot;
};

inline bool Same(const MixerResult& a, const MixerResult& b) {
  return SameBits(a.out.data(), b.out.data(), a.out.size()) && a.slot == b.slot;
}

// One sequence in chunks, in place in one slot: rows from `first_row` on.
template <class Layer>
MixerResult RunChunks(const Layer& layer, const std::vector<int32_t>& chunks, int32_t threads = 1,
                      int32_t first_row = 0) {
  Slots slots(layer.Shape(), 1);
  MixerResult result;
  std::vector<float> scratch;
  typename Layer::Args args = layer.MakeArgs(&scratch, &result.out);
  slots.Attach(&args);
  MixerSegment segment = {.row_begin = first_row, .src_slot = slots.At(0), .dst_slot = slots.At(0)};
  for (int32_t rows : chunks) {
    segment.row_count = rows;
    args.segments = {&segment, 1};
    EXPECT_TRUE(RunMixer(args, threads).ok());
    segment.row_begin += rows;
    segment.position += rows;
  }
  result.slot = slots.Copy(0);
  return result;
}

}  // namespace morphserve::kernels
