// Verification and measurement on the real engine with a tiny model. Catches: a comparison that
// sees no difference, or one where there is none; slices that lose their place; units that do not
// come back; a canary that lets anything pass.
#include "morph/verifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>

#include "engine/reasons.h"
#include "morph/cost_measure.h"
#include "morph/probe_prompts.h"
#include "morph/reasons.h"
#include "morph/verifier_lab.h"
#include "morph/verifier_metrics.h"
#include "tests/engine/fake_tokenizer.h"
#include "tests/engine/tiny_checkpoint.h"
#include "tests/engine/waiting_sink.h"

namespace morphserve {
namespace {

const SystemClock kClock;

std::unique_ptr<Engine> MakeEngine(const TinyOptions& tiny = {.layers = 4}) {
  EngineOptions options;
  options.threads = 2;
  options.arena_bytes = int64_t{16} << 20;
  options.branches = "window:32";
  auto engine =
      Engine::Create(MakeTinyCheckpoint(tiny), options, &kClock, nullptr, nullptr, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::shared_ptr<const LayerPlan> PlanOf(Engine* engine, int32_t full) {
  return *engine->RankedPlan(full);
}

absl::StatusOr<VerifyReport> Verify(PlanVerifier* verifier, const VerifyRequest& request) {
  return verifier->Verify(request, nullptr, absl::InfiniteFuture(), nullptr);
}

TEST(Verifier, ThePlanItselfHasNoDivergence) {
  const auto engine = MakeEngine();
  LabVerifier verifier(engine.get());
  const auto report =
      Verify(&verifier, {.plan = PlanOf(engine.get(), 4), .load = {}, .costs = nullptr});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->finite);
  EXPECT_EQ(report->positions, 8 * 63);
  EXPECT_NEAR(report->kl, 0, 1e-6);
  EXPECT_NEAR(report->quality, 1, 1e-6);
  EXPECT_EQ(report->agreement, 1);
  EXPECT_FALSE(report->step_ms.has_value());
}

TEST(Verifier, FewerFullLayersDivergeAndTheStepIsMeasured) {
  const auto engine = MakeEngine();
  LabVerifier verifier(engine.get());
  double last = 0;
  for (const int32_t full : {3, 2, 0}) {
    std::vector<double> progress;
    const auto report = verifier.Verify({.plan = PlanOf(engine.get(), full),
                                         .prompts = 4,
                                         .load = LoadPoint{.running = 3, .context = 300},
                                         .costs = nullptr},
                                        nullptr, absl::InfiniteFuture(),
                                        [&](double done) { progress.push_back(done); });
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_GT(report->kl, last);
    last = report->kl;
    EXPECT_LT(report->agreement, 1);
    EXPECT_GT(*report->step_ms, 0);
    EXPECT_EQ(report->measured_running, 3);
    EXPECT_TRUE(std::is_sorted(progress.begin(), progress.end()));
    EXPECT_EQ(progress.back(), 1);
  }
  EXPECT_EQ(engine->GetLoad().cache.pages_running, 0);
}

TEST(Verifier, ServingGoesOnBesideItAndKeepsItsBits) {
  const auto engine = MakeEngine();
  const auto run = [&](const std::string& id, bool beside) {
    Request request;
    request.id = id;
    request.prompt = {1, 2, 3, 4, 5, 6, 7};
    request.stopping.max_tokens = 200;
    request.received = kClock.Now();
    auto sink = std::make_shared<WaitingSink>();
    EXPECT_EQ(engine->Submit(request, sink), absl::OkStatus());
    if (beside) {
      LabVerifier verifier(engine.get());
      sink->WaitForTokens(1);
      const auto report = Verify(&verifier, {.plan = PlanOf(engine.get(), 1),
                                             .load = LoadPoint{.running = 2, .context = 100},
                                             .costs = nullptr});
      EXPECT_TRUE(report.ok()) << report.status();
      const auto calm =
          Verify(&verifier, {.plan = PlanOf(engine.get(), 1), .load = {}, .costs = nullptr});
      EXPECT_NEAR(report->kl, calm->kl, 1e-4) << "slices change rounding only";
    }
    sink->WaitForEnd();
    return sink->record.tokens[0];
  };
  EXPECT_EQ(run("a", false), run("b", true));
}

TEST(Verifier, StopsWhenToldTo) {
  const auto engine = MakeEngine();
  LabVerifier verifier(engine.get());
  const VerifyRequest request{.plan = PlanOf(engine.get(), 1), .load = {}, .costs = nullptr};
  std::atomic<bool> cancel = true;
  EXPECT_EQ(ReasonOf(verifier.Verify(request, &cancel, absl::InfiniteFuture(), nullptr).status()),
            reason::kCancelled);
  EXPECT_EQ(ReasonOf(verifier.Verify(request, nullptr, absl::InfinitePast(), nullptr).status()),
            reason::kPhaseTimeout);
  const auto far = Verify(&verifier, {.plan = PlanOf(engine.get(), 4),
                                      .prompts = 0,
                                      .load = LoadPoint{.running = 1000, .context = 1000},
                                      .costs = nullptr});
  ASSERT_TRUE(far.ok()) << far.status();
  EXPECT_LT(far->measured_running, 1000) << "as many as fit";
}

TEST(Verifier, CountsThePasskeysThatAPlanGetsRight) {
  EngineOptions options;
  options.threads = 2;
  options.arena_bytes = int64_t{16} << 20;
  options.branches = "window:32";
  Checkpoint checkpoint = MakeTinyCheckpoint({.layers = 4, .vocab = 258});
  checkpoint.tokenizer = std::make_unique<FakeTokenizer>();
  const auto engine =
      *Engine::Create(std::move(checkpoint), options, &kClock, nullptr, nullptr, nullptr);
  const auto probes = MakeRecallProbes(engine->tokenizer(), 1024);
  ASSERT_EQ(probes.size(), static_cast<size_t>(kRecallProbes));
  for (const CalibrationSample& probe : probes) {
    EXPECT_EQ(probe.tokens.size(), static_cast<size_t>(kRecallTokens));
    EXPECT_FALSE(probe.scored.empty());
  }
  LabVerifier verifier(engine.get());
  VerifyRequest request{
      .plan = PlanOf(engine.get(), 4), .recall = true, .load = {}, .costs = nullptr};
  const auto full = Verify(&verifier, request);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->recall, full->full_recall);
  request.plan = PlanOf(engine.get(), 1);
  std::vector<double> progress;
  const auto linear = verifier.Verify(request, nullptr, absl::InfiniteFuture(),
                                      [&](double done) { progress.push_back(done); });
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_TRUE(0 <= *linear->recall && *linear->recall <= 1);
  EXPECT_EQ(linear->full_recall, full->full_recall);
  EXPECT_TRUE(std::is_sorted(progress.begin(), progress.end()));
  EXPECT_EQ(engine->GetLoad().cache.pages_running, 0);
  // Without text there are no passkeys.
  const auto bare = MakeEngine();
  LabVerifier textless(bare.get());
  request.plan = PlanOf(bare.get(), 1);
  EXPECT_FALSE(Verify(&textless, request)->recall.has_value());
}

TEST(Verifier, JudgesByItsBounds) {
  VerifyReport report{.positions = 10, .kl = 0.05, .quality = 1, .agreement = 0.9, .step_ms = 10.5};
  const auto judge = [&report](const CanaryBounds& bounds, std::optional<double> tpot_ms = 10) {
    std::optional<LatencyBound> latency;
    if (tpot_ms.has_value()) latency = LatencyBound{.tpot_ms = *tpot_ms};
    return ReasonOf(JudgeCanary(report, bounds, latency, /*spread=*/0));
  };
  EXPECT_EQ(judge({}), "") << "within the slack";
  EXPECT_EQ(judge({}, 9), reason::kTargetMissed);
  EXPECT_EQ(judge({}, std::nullopt), "");
  EXPECT_EQ(judge({.kl_max = 0.04}), reason::kCanaryFailed);
  EXPECT_EQ(judge({.agreement_min = 0.95}), reason::kCanaryFailed);
  EXPECT_EQ(judge({.recall_min = 0.5}), reason::kCanaryFailed);
  report.recall = 0.5;
  EXPECT_EQ(judge({.recall_min = 0.5}), "");
  EXPECT_EQ(judge({.recall_min = 0.6}), reason::kCanaryFailed);
  report.recall = NAN;
  EXPECT_EQ(judge({.recall_min = 0.5}), reason::kCanaryFailed);
  report.kl = NAN;
  EXPECT_EQ(judge({}), reason::kCanaryFailed);
}

TEST(Verifier, AMedianStepIsJudgedAtThePercentileOfTheBound) {
  const VerifyReport report{.step_ms = 10};
  const LatencyBound bound{.tpot_ms = 10, .percentile = 95};
  EXPECT_TRUE(JudgeCanary(report, {}, bound, 0.09).ok());
  const absl::Status missed = JudgeCanary(report, {}, bound, 0.11);
  EXPECT_EQ(ReasonOf(missed), reason::kTargetMissed);
  EXPECT_EQ(missed.message(),
            "a step takes 10 ms, 11.1 ms at p95; the target is 10 ms and may be exceeded by 10 %");
}

TEST(VerifierMetrics, AreTheTextbookOnes) {
  std::mt19937 random(3);
  for (const int32_t vocab : {50, 6000}) {
    std::vector<float> p(static_cast<size_t>(vocab)), q(p);
    for (size_t i = 0; i < p.size(); ++i) {
      p[i] = static_cast<float>(random() % 1000) / 70;
      q[i] = p[i] + static_cast<float>(random() % 1000) / 1000;
    }
    const auto normalise = [](const std::vector<float>& logits) {
      double sum = 0;
      for (const float l : logits) sum += std::exp(static_cast<double>(l));
      std::vector<double> out;
      for (const float l : logits) out.push_back(static_cast<double>(l) - std::log(sum));
      return out;
    };
    const std::vector<double> lp = normalise(p), lq = normalise(q);
    double kl = 0;
    for (size_t i = 0; i < p.size(); ++i) kl += std::exp(lp[i]) * (lp[i] - lq[i]);
    ReferenceRow row;
    ASSERT_TRUE(MakeReferenceRow(p.data(), vocab, 7, &row));
    EXPECT_NEAR(row.loss, -lp[7], 1e-4);
    const RowComparison c = CompareRow(row, q.data(), vocab, 7);
    EXPECT_NEAR(c.loss, -lq[7], 1e-4);
    EXPECT_NEAR(c.kl, kl, vocab <= kReferenceTokens ? 1e-5 : 0.02 * kl) << vocab;
    EXPECT_LE(c.kl, kl + 1e-5);
    EXPECT_NEAR(CompareRow(row, p.data(), vocab, 7).kl, 0, 1e-5);
    q[9] = INFINITY;
    EXPECT_FALSE(CompareRow(row, q.data(), vocab, 7).finite);
    EXPECT_FALSE(MakeReferenceRow(q.data(), vocab, 7, &row));
  }
}

TEST(ProbePrompts, AreWholeWithAndWithoutTokenizer) {
  const auto prompts = MakeProbePrompts(nullptr, 100, 8);
  ASSERT_EQ(prompts.size(), 8u);
  for (const auto& prompt : prompts) {
    EXPECT_EQ(prompt.size(), 64u);
    for (const int32_t id : prompt) EXPECT_TRUE(0 <= id && id < 100);
  }
  EXPECT_NE(prompts[0], prompts[1]);
  EXPECT_EQ(prompts, MakeProbePrompts(nullptr, 100, 8));
}

TEST(MeasureCosts, FitsTheRealEngineAndGivesEverythingBack) {
  const auto engine = MakeEngine();
  const auto model = MeasureCosts(engine.get(), nullptr);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->layers(), 4);
  EXPECT_GT(model->DecodeMs(4, 4, 900), 0);
  EXPECT_GT(model->PrefillMs(4, 500), 0);
  const EngineLoad load = engine->GetLoad();
  EXPECT_EQ(load.cache.pages_running, 0);
  EXPECT_EQ(load.cache.slots_running, 0);
  const std::atomic<bool> cancel = true;
  EXPECT_EQ(ReasonOf(MeasureCosts(engine.get(), &cancel).status()), reason::kCancelled);
}

}  // namespace
}  // namespace morphserve
