// Whole selections on toys: a planted subset is found by every selector that looks at the model,
// bits do not depend on slices, threads or an interruption, and files of another selection are
// refused.
#include "morph/selection.h"

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/morph/toy_fixture.h"

namespace morphserve {
namespace {

SelectionData ToyData(const Toy& toy) {
  return {.recall = {toy.Sample(70, 1), toy.Sample(66, 2)}, .plain = {toy.Sample(40, 3)}};
}

// Runs to the end in slices of one job (until the past) or in one (until the future).
SelectionReport Finish(LayerSelection* selection, bool slices) {
  while (true) {
    const auto more = selection->RunSlice(slices ? absl::InfinitePast() : absl::InfiniteFuture());
    EXPECT_TRUE(more.ok()) << more.status();
    if (!more.ok() || !*more) return selection->report();
  }
}

SelectionReport RunToy(const Toy& toy, const SelectionOptions& options, bool slices = false) {
  const SystemClock clock;
  auto selection = LayerSelection::Create(toy.source(), ToyData(toy), options, &clock);
  EXPECT_TRUE(selection.ok()) << selection.status();
  return Finish(selection->get(), slices);
}

// A window branch is exact where the layer's own attention has that window: the other layers must
// stay full.
TEST(Selection, RecoversAPlantedSubset) {
  Toy toy({.kind = BranchKind::kWindow, .layers = 6, .window = 3, .sinks = 0});
  const std::vector<int32_t> planted = {1, 4};
  for (int32_t l = 0; l < 6; ++l) {
    toy.config.window[static_cast<size_t>(l)] = l == 1 || l == 4 ? 0 : 3;
  }
  const SelectionReport report = RunToy(toy, {.steps = 120, .rate = 5e-2});
  for (const char* selector : {"flashmorph", "interaction", "local_kl"}) {
    const SelectorResult* const result = report.Find(selector);
    ASSERT_NE(result, nullptr) << selector;
    EXPECT_EQ(result->sets[2], planted) << selector;
    EXPECT_GT(result->flops, 0);
  }
  const std::vector<double>& gates = report.Find("flashmorph")->scores;
  for (size_t l = 0; l < 6; ++l) {
    if (l == 1 || l == 4) continue;
    EXPECT_LT(gates[l], 0.05) << "an exact branch costs nothing, so lambda closes its gate";
  }
  EXPECT_EQ(report.Find("halo")->sets.size(), 7U);
  EXPECT_EQ(report.Find("uniform")->sets[2], (std::vector<int32_t>{1, 4}));
  EXPECT_EQ(report.Find("random")->sets[6].size(), 6U);
}

void ExpectSameBits(const SelectionReport& a, const SelectionReport& b) {
  ASSERT_EQ(a.selectors.size(), b.selectors.size());
  for (size_t i = 0; i < a.selectors.size(); ++i) {
    EXPECT_EQ(a.selectors[i].scores, b.selectors[i].scores) << a.selectors[i].selector;
    EXPECT_EQ(a.selectors[i].order, b.selectors[i].order) << a.selectors[i].selector;
    EXPECT_EQ(a.selectors[i].sets, b.selectors[i].sets) << a.selectors[i].selector;
  }
  for (int32_t m = 0; m < a.layers; ++m) {
    for (int32_t n = 0; n < a.layers; ++n) EXPECT_EQ(a.q.at(m, n), b.q.at(m, n));
  }
}

TEST(Selection, SameSeedSameBitsWhateverSlicesAndThreads) {
  const SelectionOptions options = {.seed = 7, .steps = 6};
  const SelectionReport once = RunToy(Toy({}), options);
  ExpectSameBits(once, RunToy(Toy({}), options));
  ExpectSameBits(once, RunToy(Toy({.threads = 1}), options, true));
  ExpectSameBits(once, RunToy(Toy({.threads = 3}), options));
  EXPECT_NE(once.Find("random")->order,
            RunToy(Toy({}), {.seed = 8, .steps = 1}).Find("random")->order);
}

class SelectionFile : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "selection_checkpoint_" +
            testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_;
  SystemClock clock_;
};

TEST_F(SelectionFile, ASelectionCutOffAnywhereEndsWithTheSameBits) {
  const Toy toy({.kind = BranchKind::kLightning});
  SelectionOptions options = {.seed = 3, .steps = 5};
  const SelectionReport whole = RunToy(toy, options);
  options.checkpoint = path_;
  int runs = 0;
  for (bool more = true; more; ++runs) {
    auto selection = LayerSelection::Create(toy.source(), ToyData(toy), options, &clock_);
    ASSERT_TRUE(selection.ok()) << selection.status();
    bool finished_unit = false;
    (*selection)->OnProgress([&](const SelectionProgress&) { finished_unit = true; });
    while (more && !finished_unit) more = *(*selection)->RunSlice(absl::InfinitePast());
    if (!more) ExpectSameBits(whole, (*selection)->report());
  }
  EXPECT_GE(runs, 8) << "each run did one sample or step";
}

TEST_F(SelectionFile, AnotherSelectionsOrADamagedFileIsRefused) {
  const Toy toy({.kind = BranchKind::kWindow});
  SelectionOptions options = {.gates = false, .checkpoint = path_};
  auto first = LayerSelection::Create(toy.source(), ToyData(toy), options, &clock_);
  ASSERT_TRUE(first.ok());
  Finish(first->get(), false);
  options.seed = 1;
  const auto other = LayerSelection::Create(toy.source(), ToyData(toy), options, &clock_);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  options.seed = 0;
  std::ifstream in(path_);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  for (const size_t length : {size_t{0}, text.size() / 2, text.size() - 1}) {
    std::ofstream(path_, std::ios::trunc) << text.substr(0, length);
    const auto cut = LayerSelection::Create(toy.source(), ToyData(toy), options, &clock_);
    EXPECT_EQ(cut.status().code(), absl::StatusCode::kFailedPrecondition);
  }
}

TEST(Selection, CancelEndsItAndProgressRises) {
  const Toy toy({.kind = BranchKind::kWindow});
  const SystemClock clock;
  auto selection = *LayerSelection::Create(toy.source(), ToyData(toy), {.steps = 3}, &clock);
  double last = 0;
  std::vector<SelectionPhase> phases;
  selection->OnProgress([&](const SelectionProgress& progress) {
    EXPECT_GE(progress.fraction, last);
    EXPECT_LE(progress.fraction, 1);
    last = progress.fraction;
    phases.push_back(progress.phase);
  });
  Finish(selection.get(), false);
  EXPECT_EQ(last, 1);
  EXPECT_EQ(phases.front(), SelectionPhase::kSweep);
  EXPECT_EQ(phases.back(), SelectionPhase::kDone);
  EXPECT_EQ(phases.size(), 7U);

  selection = *LayerSelection::Create(toy.source(), ToyData(toy), {.steps = 3}, &clock);
  EXPECT_TRUE(*selection->RunSlice(absl::InfinitePast()));
  selection->Cancel();
  EXPECT_EQ(selection->RunSlice(absl::InfiniteFuture()).status().code(),
            absl::StatusCode::kCancelled);
}

TEST(Selection, RefusesOptionsOutOfRange) {
  const Toy toy({.kind = BranchKind::kWindow});
  const SystemClock clock;
  const auto create = [&](SelectionData data, const SelectionOptions& options) {
    return LayerSelection::Create(toy.source(), std::move(data), options, &clock).status().code();
  };
  EXPECT_EQ(create({}, {}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create(ToyData(toy), {.steps = 0}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create(ToyData(toy), {.watched_k = 5}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(create(ToyData(toy), {.block_rows = 60}), absl::StatusCode::kInvalidArgument);
}

TEST(Selection, ReportsComparedWithThemselvesAgree) {
  const SelectionReport report = RunToy(Toy({.kind = BranchKind::kWindow}), {.steps = 2});
  for (const SelectorAgreement& agreement : CompareReports(report, report)) {
    EXPECT_EQ(agreement.spearman, agreement.selector == "uniform" ? 0 : 1);
    for (const double overlap : agreement.overlap) EXPECT_EQ(overlap, 1);
  }
  const std::string json = SelectionReportJson(report);
  EXPECT_NE(json.find("\"interaction\""), std::string::npos);
  EXPECT_NE(json.find("\"gates\""), std::string::npos);
}

}  // namespace
}  // namespace morphserve
