// A device that faults under a running engine. Catches: streams that hang or end as if nothing had
// happened, an engine that goes on taking requests, a process that cannot be ended. Runs with
// MORPHSERVE_TEST_DEVICE=cuda, in a process of its own: the fault takes the CUDA context with it.
#include <gtest/gtest.h>

#include <cstdlib>

#include "engine/engine.h"
#include "engine/reasons.h"
#include "kernels/cuda/device.h"
#include "tests/engine/test_device.h"
#include "tests/engine/tiny_checkpoint.h"
#include "tests/engine/waiting_sink.h"

namespace morphserve {
namespace {

Request LongRequest(const std::string& id, const Clock& clock) {
  Request request;
  request.id = id;
  for (int32_t i = 0; i < 20; ++i) request.prompt.push_back(i * 7 % 200);
  request.stopping.max_tokens = 16000;
  request.stopping.ignore_eos = true;
  request.received = clock.Now();
  return request;
}

// A kernel that writes where nothing is.
bool Fault(Lab& lab, absl::Duration) {
  auto* const nowhere = reinterpret_cast<float*>(uintptr_t{64});
  kernels::cuda::CudaBackend()
      ->copy_rows({.x = nowhere,
                   .x_stride = 4,
                   .row_list = reinterpret_cast<int32_t*>(nowhere),
                   .rows = 1,
                   .width = 4,
                   .y = nowhere,
                   .y_stride = 4},
                  lab.stream)
      .IgnoreError();
  return false;
}

// The exit status of the child says which expectation failed.
[[noreturn]] void FaultUnderAStream() {
  const SystemClock clock;
  EngineOptions options;
  options.device = DeviceKind::kCuda;
  options.arena_bytes = int64_t{8} << 20;
  auto engine = Engine::Create(MakeTinyCheckpoint({.context = 16384}), options, &clock, nullptr,
                               nullptr, nullptr);
  if (!engine.ok()) std::exit(10);
  const auto sink = std::make_shared<WaitingSink>();
  if (!(*engine)->Submit(LongRequest("a", clock), sink).ok()) std::exit(11);
  sink->WaitForTokens(3);
  if (!(*engine)->RunInLab(Fault)) std::exit(12);
  sink->WaitForEnd();
  if (!sink->record.error.has_value()) std::exit(13);
  if (sink->record.error->code() != absl::StatusCode::kInternal) std::exit(14);
  if (ReasonOf(*sink->record.error) != reason::kDeviceLost) std::exit(15);
  (*engine)->FlushPrefixCache(std::nullopt, std::nullopt);  // After the step that failed.
  if ((*engine)->GetLoad().device_lost.empty()) std::exit(16);
  const absl::Status late =
      (*engine)->Submit(LongRequest("b", clock), std::make_shared<WaitingSink>());
  if (!absl::IsUnavailable(late)) std::exit(17);
  engine->reset();
  std::exit(0);
}

TEST(DeviceLostDeathTest, EndsStreamsAndTakesNoMore) {
  // The CPU has no context to lose.
  if (TestDevice() != DeviceKind::kCuda) GTEST_SKIP() << "MORPHSERVE_TEST_DEVICE is not cuda";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(FaultUnderAStream(), testing::ExitedWithCode(0), ".*");
}

}  // namespace
}  // namespace morphserve
