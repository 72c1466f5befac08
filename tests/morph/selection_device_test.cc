// The selection on a device against the CPU's, on toys of every branch kind whose weights are f32,
// so that only the order of sums differs; and, anywhere, that jobs keep to the rules of a device.
// Catches: host memory given to a device and device memory touched by the host, an operation that
// was forgotten or came too early, results that change from run to run. Without a device those
// tests are skipped.
#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "morph/alignment.h"
#include "morph/layer_sweep.h"
#include "morph/selection.h"
#include "tests/morph/fenced_backend.h"
#include "tests/morph/toy_fixture.h"

namespace morphserve {
namespace {

constexpr int32_t kTokens = 150;  // Two blocks of 64 rows and a part of a third.
const SystemClock kClock;

// Loss and gradients at a few gates, and the interaction matrix, row by row.
struct Found {
  std::vector<double> losses, gradients, q;
};

Found Find(const ToyOptions& options, bool fenced = false) {
  const Toy toy(options);
  SelectionSource source = toy.source();
  if (fenced) source.backend = &FencedBackend(), source.selection = &FencedSelectionBackend();
  const auto model = *SelectionModel::Create(source, kTokens, true);
  if (fenced) {
    Fence::Get().Close(source, model->x(), SelectionModel::Bytes(source, kTokens, true),
                       SelectionModel::KeptBytes(toy.config, kTokens));
  }
  const std::vector<CalibrationSample> samples = {toy.Sample(kTokens, 2)};
  Found found;
  WorkList list;
  AlignmentLoss loss(model.get(), samples, GateReading::kTeacherStream);
  // Inside, at both ends, and all linear.
  for (const std::vector<float>& gates :
       {std::vector<float>{0.5f, 0.75f, 0.25f, 0.875f}, {1, 0.5f, 0, 1}, {0, 0, 0, 0}}) {
    AlignmentResult result;
    loss.AddEvaluate(&list, 0, gates, &result);
    RunAll(&list);
    found.losses.push_back(result.loss);
    found.gradients.insert(found.gradients.end(), result.gradient.begin(), result.gradient.end());
  }
  LayerSweep sweep(model.get());
  sweep.AddSample(&list, &samples[0], false);
  RunAll(&list);
  for (int32_t m = 0; m < 4; ++m) {
    for (int32_t n = 0; n < 4; ++n) found.q.push_back(sweep.totals().q.at(m, n));
  }
  if (fenced) Fence::Get().Open();
  return found;
}

void ExpectClose(const std::vector<double>& values, const std::vector<double>& expected,
                 double bound, const char* what) {
  ASSERT_EQ(values.size(), expected.size());
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_NEAR(values[i], expected[i], bound * largest) << what << " " << i;
  }
}

// The gradients of keys and values are added up block by block, so that their sums differ a little.
TEST(SelectionJobs, MayBeOfWholeSequencesAndLeaveTheBackendsMemoryAlone) {
  for (const ToyOptions& options : AllToyKinds()) {
    SCOPED_TRACE(ToyName(options));
    const Found parts = Find(options);
    const Found found = Find(options, /*fenced=*/true);
    EXPECT_EQ(found.losses, parts.losses);
    ExpectClose(found.gradients, parts.gradients, 1e-5, "gradient");
    EXPECT_EQ(found.q, parts.q);
  }
}

class SelectionOnADevice : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto place = DevicePlace::Open(DeviceKind::kCuda);
    if (absl::IsNotFound(place.status()) || absl::IsUnimplemented(place.status())) {
      // No device, or a build without CUDA: there is nothing to run on. Other errors fail.
      GTEST_SKIP() << place.status().message();
    }
    ASSERT_TRUE(place.ok()) << place.status();
  }
};

TEST_F(SelectionOnADevice, LossGradientsAndInteractionAreTheCpus) {
  for (ToyOptions options : AllToyKinds()) {
    SCOPED_TRACE(ToyName(options));
    const Found cpu = Find(options);
    options.device = DeviceKind::kCuda;
    const Found device = Find(options);
    ExpectClose(device.losses, cpu.losses, 1e-4, "loss");
    ExpectClose(device.gradients, cpu.gradients, 3e-4, "gradient");
    ExpectClose(device.q, cpu.q, 3e-4, "q");
    const Found again = Find(options);
    EXPECT_EQ(again.losses, device.losses);
    EXPECT_EQ(again.gradients, device.gradients);
    EXPECT_EQ(again.q, device.q);
  }
}

SelectionReport Select(const ToyOptions& options, absl::Duration slice) {
  const Toy toy(options);
  SelectionData data;
  data.recall = {toy.Sample(kTokens, 3), toy.Sample(kTokens, 4)};
  data.plain = {toy.Sample(kTokens / 2, 5)};
  const auto selection = *LayerSelection::Create(toy.source(), data, {.steps = 40}, &kClock);
  while (true) {
    const auto more = selection->RunSlice(kClock.Now() + slice);
    EXPECT_TRUE(more.ok()) << more.status();
    if (!more.ok() || !*more) return selection->report();
  }
}

TEST_F(SelectionOnADevice, FindsTheSameLayersInWhateverSlices) {
  for (ToyOptions options : {AllToyKinds()[0], AllToyKinds()[5]}) {
    SCOPED_TRACE(ToyName(options));
    const SelectionReport cpu = Select(options, absl::Seconds(1));
    options.device = DeviceKind::kCuda;
    const SelectionReport device = Select(options, absl::Seconds(1));
    ExpectClose(device.Find("flashmorph")->scores, cpu.Find("flashmorph")->scores, 1e-3, "gate");
    for (const char* name : {"flashmorph", "interaction", "interaction_gates", "local_kl"}) {
      EXPECT_EQ(device.Find(name)->sets, cpu.Find(name)->sets) << name;
    }
    const SelectionReport slices = Select(options, absl::ZeroDuration());
    EXPECT_EQ(slices.Find("flashmorph")->scores, device.Find("flashmorph")->scores);
  }
}

}  // namespace
}  // namespace morphserve
