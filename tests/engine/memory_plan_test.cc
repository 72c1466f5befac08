// What is decided of memory before anything is loaded.
#include "engine/memory_plan.h"

#include <gtest/gtest.h>

#include "tests/engine/tiny_checkpoint.h"

namespace morphserve {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// Catches copies that crowd out the cache of a large model, or what an operator asked for.
TEST(Bf16CopiesTest, AutoMakesThemWhereATenthOfTheDeviceHoldsThemAndAllElseFits) {
  kernels::cuda::DeviceInfo device;
  device.memory_bytes = 80 * kGiB;
  device.free_bytes = 79 * kGiB;
  const auto keeps = [&](int64_t copies, int64_t others) {
    return KeepsBf16Copies(Bf16Copies::kAuto, copies, others, device);
  };
  EXPECT_TRUE(keeps(8 * kGiB, 10 * kGiB));
  EXPECT_FALSE(keeps(8 * kGiB + 1, 10 * kGiB));
  EXPECT_TRUE(keeps(4 * kGiB, 74 * kGiB));
  EXPECT_FALSE(keeps(4 * kGiB, 75 * kGiB));
}

TEST(Bf16CopiesTest, OnAndOffAreTakenAtTheirWord) {
  const kernels::cuda::DeviceInfo device;
  EXPECT_TRUE(KeepsBf16Copies(Bf16Copies::kOn, kGiB, kGiB, device));
  EXPECT_FALSE(KeepsBf16Copies(Bf16Copies::kOff, 0, 0, device));
}

TEST(Bf16CopiesTest, TheCpuRefusesThemAndHasNoneByItself) {
  const Checkpoint checkpoint = MakeTinyCheckpoint({});
  const auto place = DevicePlace::Open(DeviceKind::kCpu);
  ASSERT_TRUE(place.ok());
  EngineOptions options = ResolveOptions({}, /*on_device=*/false);
  options.arena_bytes = 64 << 20;
  const auto verdict = MakeMemoryVerdict(checkpoint, nullptr, options, ReadMachine(), *place);
  ASSERT_TRUE(verdict.ok()) << verdict.status();
  EXPECT_EQ(verdict->bf16_copies_bytes, 0);
  options.bf16_copies = Bf16Copies::kOn;
  const absl::Status refused =
      MakeMemoryVerdict(checkpoint, nullptr, options, ReadMachine(), *place).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(refused.message().find("device.bf16_copies is on"), std::string::npos) << refused;
}

}  // namespace
}  // namespace morphserve
