// Selecting layers on a running engine. Catches: a ranking that depends on what is served beside
// it, tokens that depend on a selection, work that cannot be stopped, memory beyond what was
// allowed, results that are not there afterwards or not kept.
#include "morph/reselector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <future>

#include "engine/model/stored_plans.h"
#include "engine/reasons.h"
#include "morph/controller.h"
#include "morph/reasons.h"
#include "morph/set_check.h"
#include "morph/verifier_lab.h"
#include "tests/engine/fake_tokenizer.h"
#include "tests/engine/forward_fixture.h"
#include "tests/engine/tiny_checkpoint.h"
#include "tests/engine/waiting_sink.h"
#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const SystemClock kClock;
constexpr int32_t kLayers = 4;
constexpr int32_t kTokens = 640;

ReselectOptions Options() { return {.tokens = kTokens, .samples = 2, .steps = 4}; }

// An engine and what selects its layers.
struct Bench {
  explicit Bench(const std::string& path = "", ReselectOptions options = Options(),
                 const std::string& branches = "window:32",
                 const std::function<void(BranchesHeader*)>& stored = nullptr) {
    EngineOptions engine_options;
    engine_options.threads = 2;
    engine_options.device = TestDevice();
    engine_options.arena_bytes = int64_t{16} << 20;
    engine_options.branches = branches;
    Checkpoint checkpoint = MakeTinyCheckpoint({.layers = kLayers, .vocab = 258});
    checkpoint.tokenizer = std::make_unique<FakeTokenizer>();
    engine =
        *Engine::Create(std::move(checkpoint), engine_options, &kClock, nullptr, nullptr, nullptr);
    if (stored) {
      BranchesHeader header = *engine->branches();
      stored(&header);
      engine->SetRankings(std::make_shared<const BranchesHeader>(std::move(header)));
    }
    const SelectionSource source = *SelectionSourceOf(engine.get());
    auto opened = RankingStore::Open(engine.get(), RankingsKeyOf(source), path);
    status = opened.status();
    if (!status.ok()) return;
    store = *std::move(opened);
    selector = *Reselector::Create(engine.get(), source, store.get(), &kClock, std::move(options));
  }
  absl::StatusOr<Selection> Select(const std::string& name, int32_t full_layers = 2) {
    return selector->Select({.selector = name, .full_layers = full_layers}, nullptr, nullptr);
  }
  std::vector<std::string> Known() const {
    std::vector<std::string> names;
    for (const BranchesRanking& ranking : engine->branches()->rankings) {
      names.push_back(RankingName(ranking));
    }
    return names;
  }

  std::unique_ptr<Engine> engine;
  absl::Status status;
  std::unique_ptr<RankingStore> store;
  std::unique_ptr<Reselector> selector;
};

std::shared_ptr<WaitingSink> Stream(Engine* engine, const std::string& id, int32_t tokens) {
  Request request;
  request.id = id;
  for (int32_t t = 0; t < 50; ++t) request.prompt.push_back(t * 31 % 200);
  request.stopping.max_tokens = tokens;
  request.received = kClock.Now();
  auto sink = std::make_shared<WaitingSink>();
  EXPECT_EQ(engine->Submit(request, sink), absl::OkStatus());
  return sink;
}

TEST(Reselector, WhatASweepFindsIsKnownAtOnce) {
  Bench bench;
  const auto selection = bench.Select("interaction");
  ASSERT_TRUE(selection.ok()) << selection.status();
  EXPECT_EQ(RankingName(selection->ranking), "interaction/640/0");
  EXPECT_EQ(selection->ranking.order.size(), 4u);
  EXPECT_TRUE(selection->ranking.here);
  EXPECT_THAT(selection->message, HasSubstr("passkey_640"));
  EXPECT_THAT(bench.Known(),
              ElementsAre("interaction/640/0", "interaction_gates/640/0", "local_kl/640/0"))
      << "what needs gates or plain text was not looked at";
  const auto known = bench.engine->branches();
  EXPECT_TRUE(known->interaction_here);
  EXPECT_EQ(known->interaction.size(), 4u);
  ASSERT_EQ(known->quality.size(), 1u);
  EXPECT_EQ(known->quality[0].k, 2);
  EXPECT_GT(known->quality[0].full_ppl, 1);
  EXPECT_EQ(DefaultRanking(*known), nullptr) << "what was selected here is taken by name only";
  // The measured set is the one that the ranking gives.
  const auto kinds = RankedKinds(FindRanking(*known, "interaction"), kLayers, 2);
  for (const int32_t layer : known->quality[0].layers) {
    EXPECT_EQ((*kinds)[static_cast<size_t>(layer)], LayerKind::kFull);
  }
}

TEST(Reselector, EverySelectorGivesEveryBudget) {
  Bench bench;
  for (const char* name : {"", "halo", "uniform", "random", "interaction_gates", "local_kl"}) {
    const auto selection = bench.Select(name, 1);
    ASSERT_TRUE(selection.ok()) << name << ": " << selection.status();
    EXPECT_EQ(selection->ranking.selector, *name == 0 ? "flashmorph" : name);
    for (int32_t k = 0; k <= kLayers; ++k) {
      EXPECT_TRUE(RankedKinds(&selection->ranking, kLayers, k).ok()) << name << " " << k;
    }
  }
  EXPECT_EQ(FindRanking(*bench.engine->branches(), "flashmorph")->gates.size(), 4u);
  EXPECT_NE(FindRanking(*bench.engine->branches(), "halo"), nullptr);
  EXPECT_EQ(FindRanking(*bench.engine->branches(), "random"), nullptr) << "not worth keeping";
  EXPECT_EQ(bench.Select("random", 1)->ranking.context, 0);
}

TEST(Reselector, RefusesBeforeAnyWork) {
  ReselectOptions options = Options();
  options.workspace_bytes = 1 << 20;
  Bench bench("", options);
  const absl::Status unknown = bench.selector->Check("loudest");
  EXPECT_EQ(ReasonOf(unknown), reason::kFieldInvalid);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("flashmorph, interaction"));
  const absl::Status memory = bench.selector->Check("");
  EXPECT_EQ(ReasonOf(memory), reason::kSelectionMemory);
  EXPECT_THAT(std::string(memory.message()), HasSubstr("morph.workspace_bytes is 1 MiB"));
  EXPECT_EQ(bench.Select("").status(), memory);
  options = Options();
  options.tokens = 4096;
  const SelectionSource source = *SelectionSourceOf(bench.engine.get());
  const auto create = [&] {
    return Reselector::Create(bench.engine.get(), source, bench.store.get(), &kClock, options)
        .status();
  };
  EXPECT_THAT(std::string(create().message()), HasSubstr("morph.reselect_tokens is 4096"));
  options = Options();
  options.text = "too short";
  EXPECT_THAT(std::string(create().message()), HasSubstr("morph.reselect_text"));
}

TEST(Reselector, StreamsAndSelectionDoNotChangeEachOther) {
  Bench idle, busy;
  const auto calm = idle.Select("flashmorph");
  ASSERT_TRUE(calm.ok()) << calm.status();
  const auto alone = Stream(idle.engine.get(), "a", 900);
  alone->WaitForEnd();
  const auto beside = Stream(busy.engine.get(), "b", 900);
  beside->WaitForTokens(1);
  const auto selected = busy.Select("flashmorph");
  ASSERT_TRUE(selected.ok()) << selected.status();
  beside->WaitForEnd();
  EXPECT_EQ(alone->record.tokens[0], beside->record.tokens[0]);
  EXPECT_EQ(calm->ranking.gates, selected->ranking.gates) << "bit for bit";
  EXPECT_EQ(calm->ranking.order, selected->ranking.order);
  EXPECT_EQ(idle.engine->branches()->interaction, busy.engine->branches()->interaction);
}

TEST(Reselector, StopsWhenToldTo) {
  ReselectOptions options = Options();
  options.steps = 100000;
  Bench bench("", options);
  std::atomic<bool> cancel = false;
  absl::Time told;
  const auto selection = bench.selector->Select(
      {.selector = "flashmorph", .full_layers = 1}, &cancel, [&](double, const std::string& doing) {
        if (cancel || doing.find("gates") == std::string::npos) return;
        told = absl::Now();
        cancel = true;
      });
  EXPECT_EQ(ReasonOf(selection.status()), reason::kCancelled);
  EXPECT_LT(absl::Now() - told, absl::Seconds(2));
  EXPECT_TRUE(bench.Known().empty()) << "half a selection is none";
}

// A server that ends amid a selection goes on with it after its restart.
TEST(Reselector, GoesOnWhereItWasCutOff) {
  const TempFolder folder;
  ReselectOptions options = Options();
  options.steps = 12;
  Bench undisturbed("", options);
  const auto whole = undisturbed.Select("flashmorph");
  ASSERT_TRUE(whole.ok()) << whole.status();
  options.progress_path = folder.Path("rankings.json");
  const std::string part = options.progress_path + ".flashmorph.part";
  {
    Bench cut("", options);
    std::atomic<bool> cancel = false;
    const auto stopped =
        cut.selector->Select({.selector = "flashmorph", .full_layers = 2}, &cancel,
                             [&](double, const std::string& doing) {
                               if (doing.find("gates: step 6") != std::string::npos) cancel = true;
                             });
    EXPECT_EQ(ReasonOf(stopped.status()), reason::kCancelled);
  }
  ASSERT_TRUE(std::filesystem::exists(part));
  std::vector<std::string> told;
  Bench next("", options);
  const auto resumed =
      next.selector->Select({.selector = "flashmorph", .full_layers = 2}, nullptr,
                            [&](double, const std::string& doing) { told.push_back(doing); });
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  EXPECT_THAT(told, testing::Each(testing::Not(HasSubstr("one layer linear"))));
  EXPECT_EQ(resumed->ranking.gates, whole->ranking.gates) << "bit for bit";
  EXPECT_EQ(resumed->ranking.sets, whole->ranking.sets);
  EXPECT_FALSE(std::filesystem::exists(part)) << "done with";
}

TEST(Reselector, ProgressOfOtherWorkIsLeftAndNoPlaceForItIsNoFailure) {
  const TempFolder folder;
  ReselectOptions options = Options();
  options.progress_path = folder.Path("rankings.json");
  folder.Write("rankings.json.local_kl.part", "{\"fingerprint\": \"another\"}");
  Bench other("", options);
  const auto selection = other.Select("local_kl");
  ASSERT_TRUE(selection.ok()) << selection.status();
  options.progress_path = folder.Path("no/rankings.json");
  Bench full("", options);
  const auto same = full.Select("local_kl");
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->ranking.order, selection->ranking.order);
}

TEST(RankingStore, KeepsWhatWasSelectedOverRestarts) {
  const TempFolder folder;
  const std::string path = folder.Path("rankings.json");
  std::vector<std::string> names;
  {
    Bench first(path);
    ASSERT_TRUE(first.Select("local_kl").ok());
    names = first.Known();
  }
  Bench second(path);
  EXPECT_EQ(second.Known(), names);
  EXPECT_EQ(second.engine->branches()->quality.size(), 1u);
  EXPECT_TRUE(absl::IsFailedPrecondition(Bench(path, Options(), "window:16").status));
  folder.Write("rankings.json", "{");
  const Bench broken(path);
  EXPECT_THAT(std::string(broken.status.message()), HasSubstr("morph.rankings_file"));
  EXPECT_EQ(ReadBytes(path), "{") << "never written over";
  // A file that cannot be written fails no selection.
  Bench full(folder.Path("no/rankings.json"));
  const auto selection = full.Select("local_kl");
  ASSERT_TRUE(selection.ok()) << selection.status();
  EXPECT_THAT(selection->message, HasSubstr("not kept"));
  EXPECT_EQ(full.Known(), names);
}

TEST(RankingStore, ANameOfTheBranchesFileIsNeverTaken) {
  const auto stored = [](BranchesHeader* header) {
    header->rankings.push_back({.selector = "flashmorph",
                                .order = {3, 2, 1, 0},
                                .sets = {},
                                .gates = {},
                                .context = kTokens,
                                .is_default = true});
  };
  Bench bench("", Options(), "window:32", stored);
  const auto selection = bench.Select("local_kl");
  ASSERT_TRUE(selection.ok()) << selection.status();
  EXPECT_EQ(RankingName(selection->ranking), "local_kl/640/1") << "really another seed";
  EXPECT_EQ(bench.Known()[0], "flashmorph/640/0");
  EXPECT_EQ(DefaultRanking(*bench.engine->branches())->order[0], 3);
}

TEST(Reselector, AMorphSelectsSwitchesAndTellsHowMuchItAgrees) {
  const auto stored = [](BranchesHeader* header) {
    header->rankings.push_back({.selector = "flashmorph",
                                .order = {0, 1, 2, 3},
                                .sets = {},
                                .gates = {},
                                .context = 8192,
                                .is_default = true});
  };
  Bench bench("", Options(), "window:32", stored);
  LabVerifier verifier(bench.engine.get());
  CostKeeper costs(bench.engine.get(), "", "test");
  WatchGaps gaps;
  MorphController controller(bench.engine.get(), &costs, &verifier, bench.selector.get(), &gaps,
                             &kClock, {});
  MorphOrder order;
  order.key = "k";
  Target& target = order.spec.target.emplace();
  target.full_layers = 2;
  target.mode = SelectMode::kReselect;
  target.selector = "interaction";
  target.load = {.running = 1, .context = 200, .prompt = 100};
  order.canary = {.prompts = 2, .kl_max = 100};
  std::promise<std::vector<MorphEvent>> end;
  std::vector<MorphEvent> seen;
  const auto id = controller.Start(order);
  ASSERT_TRUE(id.ok()) << id.status();
  const auto number = controller.Subscribe(*id, [&](const MorphEvent& event) {
    seen.push_back(event);
    if (IsFinal(event.phase)) end.set_value(seen);
  });
  const std::vector<MorphEvent> events = end.get_future().get();
  controller.Unsubscribe(*number);
  const MorphEvent& last = events.back();
  ASSERT_EQ(last.phase, MorphPhase::kApplied) << last.message;
  ASSERT_TRUE(last.agreement.has_value());
  EXPECT_EQ(last.agreement->method, "interaction/640/0");
  EXPECT_EQ(last.agreement->stored, "flashmorph/8192/0");
  EXPECT_EQ(last.agreement->full_layers, 2);
  EXPECT_TRUE(last.agreement->spearman.has_value());
  EXPECT_TRUE(last.predicted->quality.has_value()) << "measured by the check of sets";
  ASSERT_TRUE(last.measured->recall.has_value()) << "never verified before";
  const auto selected = std::find_if(events.rbegin(), events.rend(), [](const MorphEvent& e) {
    return e.phase == MorphPhase::kSelecting;
  });
  EXPECT_THAT(selected->message, HasSubstr("of 2 full layers are those of the stored flashmorph"));
  // The same set by its new name.
  order.key = "again";
  order.spec.target->mode = SelectMode::kStored;
  order.spec.target->selector = "interaction/640/0";
  order.spec.target->quality_min = 0.01;
  const auto plan = ChoosePlan(bench.engine.get(), order.spec, nullptr, nullptr, std::nullopt);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->plan->id(), last.to.plan->id());
}

TEST(SetCheck, OffersTheSetsThatTheMatrixFindsCheapest) {
  SelectionReport report;
  report.layers = 4;
  report.q = InteractionMatrix(4);
  for (int32_t l = 0; l < 4; ++l) report.q.at(l, l) = 1 << l;
  report.selectors.push_back({.selector = "interaction",
                              .order = {3, 2, 1, 0},
                              .scores = {},
                              .sets = {{}, {3}, {2, 3}, {1, 2, 3}, {0, 1, 2, 3}}});
  const SelectorResult& own = report.selectors[0];
  EXPECT_THAT(CandidateSets(report, own, 2, 3),
              ElementsAre(ElementsAre(2, 3), ElementsAre(1, 3), ElementsAre(0, 3)));
  EXPECT_EQ(CandidateSets(report, own, 4, 3).size(), 1u);
  SelectorResult other = own;
  other.selector = "local_kl";
  EXPECT_THAT(CandidateSets(report, other, 2, 3), ElementsAre(ElementsAre(2, 3)));
}

}  // namespace
}  // namespace morphserve
