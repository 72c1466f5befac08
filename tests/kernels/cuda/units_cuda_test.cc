// Copies, zeros and the check of slots on the device, with more moves than one launch takes.
#include <vector>

#include "kernels/cuda/units.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/kernels/kernel_test_util.h"

namespace morphserve::kernels::cuda {
namespace {

using UnitsCudaTest = CudaTest;

constexpr int32_t kUnits = 4000;
constexpr size_t kUnit = kArenaUnitBytes;

TEST_F(UnitsCudaTest, MovesAndZerosChangeTheirTargetsOnly) {
  Numbers numbers(1);
  std::vector<std::byte> memory(kUnits * kUnit);
  for (std::byte& b : memory) b = static_cast<std::byte>(numbers.Below(256));
  // Odd units to even ones, a large one to the end, and one of no bytes.
  std::vector<UnitMove> moves;
  for (int32_t i = 0; i < 450; ++i) {
    moves.push_back({.from = 2 * i + 1, .to = 2 * i, .bytes = i % 2 == 0 ? 256 : 16});
  }
  moves.push_back({.from = 1000, .to = 2500, .bytes = 1400 * 256});
  moves.push_back({.from = 5, .to = 999, .bytes = 0});
  const DeviceArray<std::byte> device(memory);
  ASSERT_TRUE(CopyUnits(device.data(), moves, stream()).ok());
  // Most of every second one, more than one launch takes; and two that several blocks share.
  std::vector<int32_t> zeroed;
  for (int32_t i = 0; i < 900; ++i) zeroed.push_back(1001 + 2 * i);
  ASSERT_TRUE(ZeroUnits(device.data(), zeroed, 240, stream()).ok());
  const std::vector<int32_t> large = {3000, 3500};
  constexpr size_t kLarge = 300 * kUnit;
  ASSERT_TRUE(ZeroUnits(device.data(), large, kLarge, stream()).ok());
  Finish();
  std::vector<std::byte> expected = memory;
  for (const UnitMove& move : moves) {
    std::memcpy(&expected[static_cast<size_t>(move.to) * kUnit],
                &memory[static_cast<size_t>(move.from) * kUnit], static_cast<size_t>(move.bytes));
  }
  for (const int32_t unit : zeroed)
    std::memset(&expected[static_cast<size_t>(unit) * kUnit], 0, 240);
  for (const int32_t unit : large)
    std::memset(&expected[static_cast<size_t>(unit) * kUnit], 0, kLarge);
  EXPECT_TRUE(expected == device.Read());
  const std::vector<UnitMove> odd = {{.from = 0, .to = 1, .bytes = 8}};
  EXPECT_EQ(CopyUnits(device.data(), odd, stream()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(CopyUnits(device.data(), {}, stream()).ok());
  EXPECT_EQ(ZeroUnits(device.data(), large, 8, stream()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(ZeroUnits(device.data(), {}, kUnit, stream()).ok());
}

TEST_F(UnitsCudaTest, ASlotWithOneBadValueIsFlagged) {
  for (KvDType type : {KvDType::kF32, KvDType::kF16, KvDType::kBF16}) {
    const SlotShape shape = {.heads = 3,
                             .head_dim = 20,
                             .conv_taps = 4,
                             .kv_heads = 1,
                             .window = 9,
                             .sinks = 2,
                             .dtype = type};
    const SlotLayout layout = MakeSlotLayout(shape);
    // The first and last element of each part, and the gaps between parts, which do not count.
    const int64_t size = KvDTypeBytes(type);
    const std::vector<std::pair<int64_t, bool>> places = {
        {0, true},
        {SlotStateBytes(shape) - 4, true},
        {layout.conv_offset, true},
        {layout.conv_offset + SlotConvBytes(shape) - size, true},
        {layout.ring_offset, true},
        {layout.ring_offset + SlotRingBytes(shape) - size, true},
        {layout.ring_offset + SlotRingBytes(shape), false},
        {layout.bytes + 256 - 16, false}};
    for (const auto& [offset, is_bad] : places) {
      std::vector<std::byte> memory(static_cast<size_t>(layout.bytes + 512));
      const bool is_state = offset < SlotStateBytes(shape);
      const auto bytes = static_cast<size_t>(is_state ? 4 : size);
      std::memset(&memory[static_cast<size_t>(offset) + kUnit], 0xff, bytes);
      const DeviceArray<std::byte> device(memory);
      const DeviceArray<uint8_t> flags(std::vector<uint8_t>{0, 7});
      ASSERT_TRUE(FlagNonfiniteSlot(shape, device.data(), 1, flags.data(), stream()).ok());
      Finish();
      EXPECT_EQ(flags.Read(), (std::vector<uint8_t>{static_cast<uint8_t>(is_bad ? 1 : 0), 7}))
          << offset;
    }
  }
}

}  // namespace
}  // namespace morphserve::kernels::cuda
