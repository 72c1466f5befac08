// Catches a plan table told wrongly, a pointer that lags, scores of another method than was asked,
// and a method of a later release that answers as if it did something.
#include "server/morph_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "morph/autopilot_runner.h"
#include "morph/controller.h"
#include "morph/cost_keeper.h"
#include "morph/verifier_lab.h"
#include "server/errors.h"
#include "server/layer_scores.h"
#include "tests/server/service_fixture.h"

namespace morphserve {
namespace {

using ::testing::ElementsAre;
using testing::FakePlan;
using ::testing::HasSubstr;
using testing::ReasonIn;

// A token that nobody has.
constexpr char kTokens[] =
    "- sha256: c01e0cca92dd0ce6b67ee9caa2ef14bea4f27b35c0bb27c0da84dc6c3f3b6d2d\n"
    "  scopes: [infer]\n";

class MorphFixture {
 public:
  explicit MorphFixture(bool ready = true, const std::string& tokens = "")
      : state_(ServerConfig(), "digest", absl::FromUnixSeconds(1'700'000'000)) {
    auto authorizer = tokens.empty() ? Authorizer::Create("") : Authorizer::FromYaml(tokens);
    MS_CHECK(authorizer.ok());
    authorizer_ = *std::move(authorizer);
    if (ready) {
      ServedModel model;
      model.engine = &engine_;
      model.name = "tiny";
      model.morph = &morph_;
      model.autopilot = &autopilot_;
      state_.SetReady(std::move(model));
    }
    MS_CHECK(morph_.Subscribe("", [this](const MorphEvent& e) { metrics_.OnMorph(e); }).ok());
    service_ = std::make_unique<MorphService>(
        MorphDeps{.state = &state_,
                  .authorizer = authorizer_.get(),
                  .metrics = &metrics_,
                  .clock = &clock_,
                  .end_plan = [](const std::string&, const absl::Status&) { return 3u; }});
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    MS_CHECK(server_ != nullptr);
    stub_ = v1::Morph::NewStub(grpc::CreateChannel(absl::StrFormat("127.0.0.1:%d", port),
                                                   grpc::InsecureChannelCredentials()));
  }
  ~MorphFixture() {
    service_->EndStreams();
    server_->Shutdown();
  }

  testing::FakeEngine& engine() { return engine_; }
  ServerMetrics& metrics() { return metrics_; }
  v1::Morph::Stub& stub() { return *stub_; }

 private:
  SystemClock clock_;
  testing::ByteTokenizer tokenizer_;
  testing::FakeEngine engine_{&tokenizer_};
  ServingState state_;
  ServerMetrics metrics_;
  CostKeeper costs_{&engine_, "", "test"};
  LabVerifier verifier_{&engine_};
  WatchGaps watch_gaps_;
  MorphController morph_{&engine_, &costs_, &verifier_, nullptr, &watch_gaps_, &clock_, {}};
  LatencyWindow latencies_{&clock_};
  AutopilotRunner autopilot_{&engine_, &costs_, &morph_, &latencies_, &clock_, {}, {.k_max = 3}};
  std::unique_ptr<Authorizer> authorizer_;
  std::unique_ptr<MorphService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Morph::Stub> stub_;
};

TEST(MorphService, ListsThePlanTableWithWhatEachPlanCosts) {
  MorphFixture fixture;
  fixture.engine().AddBranches();
  fixture.engine().mutable_branches()->quality = {
      {.selector = "full", .k = 3, .layers = {0, 1, 2}, .kl = 0, .ppl = 10, .recall = {}},
      {.selector = "flashmorph",
       .k = 1,
       .layers = {1},
       .kl = 0.25,
       .ppl = 12.5,
       .recall = {{"1k", 0.5}, {"2k", 1.0}}}};
  PlanRegistry& plans = fixture.engine().plans();
  const std::string hybrid = FakePlan("LFL")->id();
  ASSERT_TRUE(plans.Register(FakePlan("LFL"), "night", "request").ok());
  ASSERT_TRUE(plans.Point(PlanPointer::kFastest, hybrid).ok());
  ASSERT_TRUE(plans.Register(FakePlan("LLL"), "", "request").ok());
  ASSERT_TRUE(plans.Withdraw(FakePlan("LLL")->id(), "3 guard trips").ok());
  grpc::ClientContext context;
  v1::ListPlansResponse response;
  ASSERT_TRUE(fixture.stub().ListPlans(&context, {}, &response).ok());
  ASSERT_EQ(response.plans_size(), 3);
  const v1::Plan& full = response.plans(0);
  EXPECT_EQ(full.plan_id(), plans.active()->id());
  EXPECT_EQ(full.full_layers(), 3u);
  EXPECT_EQ(full.origin(), "start");
  EXPECT_EQ(full.state(), v1::Plan::STATE_READY);
  EXPECT_EQ(full.running(), 2u);
  EXPECT_EQ(full.measured().step_ms(), 6.5);
  EXPECT_EQ(full.estimate().kv_bytes_per_token(), 48u);
  EXPECT_EQ(full.estimate().quality(), 1);
  const v1::Plan& one = response.plans(1);
  EXPECT_THAT(one.layers(),
              ElementsAre(v1::LAYER_KIND_LINEAR, v1::LAYER_KIND_FULL, v1::LAYER_KIND_LINEAR));
  EXPECT_EQ(one.label(), "night");
  EXPECT_EQ(one.state(), v1::Plan::STATE_COLD);
  EXPECT_EQ(one.last_epoch(), 2u);
  EXPECT_FALSE(one.has_measured());
  EXPECT_EQ(one.estimate().kv_bytes_per_token(), 16u);
  EXPECT_EQ(one.estimate().state_bytes_per_sequence(), 2000u);
  EXPECT_EQ(one.estimate().quality(), 0.8);
  EXPECT_EQ(one.estimate().quality_source(), v1::QUALITY_SOURCE_BRANCHES_FILE);
  EXPECT_EQ(one.estimate().kl(), 0.25);
  EXPECT_EQ(one.estimate().recall(), 0.75);
  EXPECT_EQ(response.plans(2).state(), v1::Plan::STATE_WITHDRAWN);
  EXPECT_EQ(response.plans(2).withdrawn_why(), "3 guard trips");
  EXPECT_FALSE(response.plans(2).estimate().has_kl()) << "never measured";
  EXPECT_EQ(response.pointers().active().plan_id(), full.plan_id());
  EXPECT_EQ(response.pointers().active().epoch(), 1u);
  EXPECT_EQ(response.pointers().fastest().plan_id(), hybrid);
  EXPECT_EQ(response.pointers().fastest().epoch(), 2u);
  EXPECT_EQ(response.pointers().fastest().full_layers(), 1u);
  EXPECT_EQ(response.pointers().fastest().layers(), 3u);
}

TEST(MorphService, TheActivePlanComesWithItsPast) {
  MorphFixture fixture;
  PlanRegistry& plans = fixture.engine().plans();
  const std::string full = plans.active()->id();
  ASSERT_TRUE(plans.Register(FakePlan("LFL"), "", "test").ok());
  ASSERT_TRUE(plans.Point(PlanPointer::kActive, FakePlan("LFL")->id()).ok());
  grpc::ClientContext context;
  v1::GetActivePlanResponse response;
  ASSERT_TRUE(fixture.stub().GetActivePlan(&context, {}, &response).ok());
  EXPECT_EQ(response.plan().plan_id(), FakePlan("LFL")->id());
  EXPECT_EQ(response.pointers().active().epoch(), 2u);
  ASSERT_EQ(response.history_size(), 2);
  EXPECT_EQ(response.history(0).plan_id(), FakePlan("LFL")->id());
  EXPECT_EQ(response.history(1).plan_id(), full);
  EXPECT_EQ(response.running_morph_id(), "");
}

TEST(MorphService, ScoresAreThoseOfTheMethodAsked) {
  MorphFixture fixture;
  fixture.engine().AddBranches();
  const auto ask = [&fixture](const std::string& method, v1::GetLayerScoresResponse* response) {
    grpc::ClientContext context;
    v1::GetLayerScoresRequest request;
    request.set_method(method);
    return fixture.stub().GetLayerScores(&context, request, response);
  };
  for (const char* name : {"", "flashmorph", "flashmorph/8192/0"}) {
    v1::GetLayerScoresResponse response;
    ASSERT_TRUE(ask(name, &response).ok());
    EXPECT_EQ(response.method(), "flashmorph/8192/0") << "the default: " << name;
    EXPECT_THAT(response.methods(), ElementsAre("interaction/8192/0", "flashmorph/8192/0"));
    ASSERT_EQ(response.scores_size(), 3);
    EXPECT_EQ(response.scores(0).layer(), 0u);
    EXPECT_EQ(response.scores(0).rank(), 2u);
    EXPECT_EQ(response.scores(1).rank(), 1u);
    EXPECT_DOUBLE_EQ(response.scores(1).score(), 0.6);
    ASSERT_EQ(response.by_budget_size(), 4);
    EXPECT_EQ(response.by_budget(0).full_layers(), 0u);
    EXPECT_EQ(response.by_budget(1).plan_id(), FakePlan("LFL")->id());
    EXPECT_EQ(response.by_budget(1).estimate().state_bytes_per_sequence(), 2000u);
    EXPECT_EQ(response.by_budget(3).plan_id(), FakePlan("FFF")->id());
  }
  v1::GetLayerScoresResponse order;
  ASSERT_TRUE(ask("interaction", &order).ok());
  EXPECT_EQ(order.method(), "interaction/8192/0");
  EXPECT_FALSE(order.scores(0).has_score()) << "only an order is stored";
  v1::GetLayerScoresResponse none;
  const grpc::Status unknown = ask("flash", &none);
  EXPECT_EQ(ReasonIn(unknown), reason::kFieldInvalid);
  EXPECT_THAT(unknown.error_message(), HasSubstr("interaction/8192/0"));
  EXPECT_EQ(fixture.engine().plans().List().size(), 1u) << "looking adds no plan";
}

TEST(MorphService, ScoresComeWithEverythingThatIsKnownOfTheLayers) {
  MorphFixture fixture;
  fixture.engine().AddBranches();
  BranchesHeader* const branches = fixture.engine().mutable_branches();
  branches->rankings.push_back({.selector = "pairs",
                                .order = {},
                                .sets = {{2}},
                                .gates = {},
                                .context = 64,
                                .seed = 7,
                                .stale = true});
  branches->interaction = {{4, 1, 0}, {1, 2, -1}, {0, -1, 3}};
  branches->quality = {{.selector = "full", .k = 3, .layers = {0, 1, 2}, .ppl = 10, .recall = {}},
                       {.selector = "pairs",
                        .k = 1,
                        .layers = {2},
                        .kl = 0.25,
                        .ppl = 12.5,
                        .recall = {{"passkey_1k", 0.5}}}};
  const auto response = MakeLayerScores(fixture.engine(), "pairs/64/7");
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->method(), "pairs/64/7");
  EXPECT_EQ(response->scores_size(), 0) << "sets are no order";
  ASSERT_EQ(response->by_budget_size(), 3) << "none, the one set, all";
  EXPECT_EQ(response->by_budget(1).plan_id(), FakePlan("LLF")->id());
  EXPECT_EQ(response->by_budget(1).estimate().kl(), 0.25);
  ASSERT_EQ(response->rankings_size(), 3);
  const v1::Ranking& gated = response->rankings(1);
  EXPECT_EQ(gated.method(), "flashmorph/8192/0");
  EXPECT_EQ(gated.context_tokens(), 8192u);
  EXPECT_TRUE(gated.is_default());
  EXPECT_THAT(gated.order(), ElementsAre(1, 0, 2));
  EXPECT_THAT(gated.gates(), ElementsAre(0.5, 0.6, 0.7));
  EXPECT_EQ(gated.source(), v1::RANKING_SOURCE_BRANCHES_FILE);
  EXPECT_TRUE(response->rankings(2).stale());
  EXPECT_THAT(response->interaction(), ElementsAre(4, 1, 0, 1, 2, -1, 0, -1, 3));
  EXPECT_EQ(response->interaction_source(), v1::RANKING_SOURCE_BRANCHES_FILE);
  ASSERT_EQ(response->measured_size(), 2);
  const v1::MeasuredSet& set = response->measured(1);
  EXPECT_EQ(set.selector(), "pairs");
  EXPECT_THAT(set.layers(), ElementsAre(2));
  EXPECT_EQ(set.perplexity(), 12.5);
  EXPECT_EQ(set.recall().at("passkey_1k"), 0.5);
}

TEST(MorphService, WithoutRankingsThePlansAreEvenlySpaced) {
  MorphFixture fixture;
  fixture.engine().AddBranches();
  fixture.engine().mutable_branches()->rankings.clear();
  const auto response = MakeLayerScores(fixture.engine(), "");
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->method(), "uniform");
  EXPECT_THAT(response->methods(), ElementsAre("uniform"));
  EXPECT_EQ(response->scores_size(), 0);
  EXPECT_EQ(response->by_budget_size(), 4);
  EXPECT_EQ(ReasonOf(MakeLayerScores(fixture.engine(), "flashmorph").status()),
            reason::kFieldInvalid);
}

TEST(MorphService, ADenseModelHasNoScores) {
  MorphFixture fixture;
  grpc::ClientContext context;
  v1::GetLayerScoresResponse response;
  const grpc::Status status = fixture.stub().GetLayerScores(&context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(ReasonIn(status), reason::kNotMorphable);
}

// Statuses of all methods in a fixed order.
std::vector<grpc::Status> CallAll(v1::Morph::Stub* stub, const std::string& model) {
  std::vector<grpc::Status> out;
  const auto unary = [&](auto method, auto request, auto response) {
    request.set_model(model);
    grpc::ClientContext context;
    out.push_back((stub->*method)(&context, request, &response));
  };
  unary(&v1::Morph::Stub::ListPlans, v1::ListPlansRequest(), v1::ListPlansResponse());
  unary(&v1::Morph::Stub::GetActivePlan, v1::GetActivePlanRequest(), v1::GetActivePlanResponse());
  unary(&v1::Morph::Stub::GetLayerScores, v1::GetLayerScoresRequest(),
        v1::GetLayerScoresResponse());
  unary(&v1::Morph::Stub::ProposePlan, v1::ProposePlanRequest(), v1::ProposePlanResponse());
  unary(&v1::Morph::Stub::RollbackPlan, v1::RollbackPlanRequest(), v1::RollbackPlanResponse());
  unary(&v1::Morph::Stub::GetAutopilot, v1::GetAutopilotRequest(), v1::GetAutopilotResponse());
  unary(&v1::Morph::Stub::SetAutopilot, v1::SetAutopilotRequest(), v1::SetAutopilotResponse());
  const auto stream = [&](auto reader) {
    v1::MorphProgress progress;
    EXPECT_FALSE(reader->Read(&progress));
    out.push_back(reader->Finish());
  };
  grpc::ClientContext morph_context, watch_context;
  v1::MorphRequest morph;
  morph.set_model(model);
  stream(stub->Morph(&morph_context, morph));
  v1::WatchMorphRequest watch;
  watch.set_model(model);
  stream(stub->WatchMorph(&watch_context, watch));
  return out;
}

v1::MorphRequest MorphTo(uint32_t full_layers, const std::string& key) {
  v1::MorphRequest request;
  request.set_idempotency_key(key);
  request.mutable_spec()->mutable_target()->set_full_layers(full_layers);
  request.mutable_canary()->set_prompts(0);  // The fake engine has no model.
  request.mutable_watch()->set_seconds(0);
  return request;
}

// Every message of a morph, and the status at the end.
grpc::Status RunToEnd(v1::Morph::Stub* stub, const v1::MorphRequest& request,
                      std::vector<v1::MorphProgress>* messages) {
  grpc::ClientContext context;
  const auto reader = stub->Morph(&context, request);
  v1::MorphProgress progress;
  while (reader->Read(&progress)) messages->push_back(progress);
  return reader->Finish();
}

TEST(MorphService, MorphsStreamTheirPhasesAndRollBack) {
  MorphFixture fixture;
  fixture.engine().AddBranches();
  const std::string before = fixture.engine().plans().active()->id();
  grpc::ClientContext watch_context;
  const auto watch = fixture.stub().WatchMorph(&watch_context, {});
  watch->WaitForInitialMetadata();
  std::vector<v1::MorphProgress> messages;
  ASSERT_TRUE(RunToEnd(&fixture.stub(), MorphTo(1, "k1"), &messages).ok());
  ASSERT_FALSE(messages.empty());
  EXPECT_EQ(messages.front().phase(), v1::MorphProgress::PHASE_SELECTING);
  EXPECT_EQ(messages.front().origin(), v1::MORPH_ORIGIN_OPERATOR);
  EXPECT_EQ(messages.back().phase(), v1::MorphProgress::PHASE_APPLIED) << messages.back().reason();
  EXPECT_EQ(messages.back().from().plan_id(), before);
  EXPECT_EQ(messages.back().to().full_layers(), 1u);
  EXPECT_EQ(fixture.engine().plans().active()->full_layers(), 1);
  // The same key replays; another body under it is refused.
  std::vector<v1::MorphProgress> again;
  ASSERT_TRUE(RunToEnd(&fixture.stub(), MorphTo(1, "k1"), &again).ok());
  EXPECT_EQ(again.back().morph_id(), messages.back().morph_id());
  EXPECT_EQ(ReasonIn(RunToEnd(&fixture.stub(), MorphTo(2, "k1"), &again)), "KEY_REUSED");

  v1::RollbackPlanRequest back;
  back.set_idempotency_key("r1");
  back.set_abort_running(true);
  v1::RollbackPlanResponse answer;
  for (int i = 0; i < 2; ++i) {  // The second is the first one's answer.
    grpc::ClientContext context;
    ASSERT_TRUE(fixture.stub().RollbackPlan(&context, back, &answer).ok());
    EXPECT_EQ(answer.to().plan_id(), before);
    EXPECT_EQ(answer.aborted(), 3u);
  }
  EXPECT_EQ(fixture.engine().plans().active()->id(), before);
  EXPECT_TRUE(testing::HasMetric(&fixture.metrics(), "morphserve_morphs_total", "applied", "1"));
}

TEST(MorphService, TheStandingTargetIsShownAndChangedLive) {
  MorphFixture fixture;
  fixture.engine().AddBranches();
  const auto set = [&](auto change, v1::AutopilotState* state) {
    v1::SetAutopilotRequest request;
    change(&request);
    grpc::ClientContext context;
    v1::SetAutopilotResponse response;
    const grpc::Status status = fixture.stub().SetAutopilot(&context, request, &response);
    *state = response.state();
    return ReasonIn(status);
  };
  v1::AutopilotState state;
  EXPECT_EQ(set([](auto* r) { r->set_enabled(true); }, &state), "FIELD_INVALID") << "no target";
  const auto all = [](auto* r) {
    r->set_enabled(true);
    r->set_tpot_ms(12.5);
    r->set_percentile(99);
    r->set_full_layers_min(1);
    r->set_full_layers_max(2);
    r->mutable_window()->set_seconds(30);
    r->mutable_cool_down()->set_nanos(0);
    r->mutable_cool_down()->set_seconds(90);
    r->set_hysteresis(0.2);
    r->set_quality_min(0.9);
    r->set_samples_min(50);
  };
  ASSERT_EQ(set(all, &state), "");
  EXPECT_EQ(state.origin().source(), v1::AUTOPILOT_TARGET_SOURCE_CALL);
  EXPECT_TRUE(state.origin().has_set_at());
  EXPECT_FALSE(state.origin().kept());
  EXPECT_THAT(state.origin().note(), HasSubstr("morph.autopilot.target_file is not set"));
  grpc::ClientContext context;
  v1::GetAutopilotResponse shown;
  ASSERT_TRUE(fixture.stub().GetAutopilot(&context, {}, &shown).ok());
  const v1::AutopilotTarget& target = shown.state().target();
  EXPECT_EQ(target.SerializeAsString(), state.target().SerializeAsString());
  EXPECT_TRUE(target.enabled());
  EXPECT_EQ(target.tpot_ms(), 12.5);
  EXPECT_EQ(target.percentile(), 99);
  EXPECT_EQ(target.full_layers_min(), 1u);
  EXPECT_EQ(target.full_layers_max(), 2u);
  EXPECT_EQ(target.window().seconds(), 30);
  EXPECT_EQ(target.cool_down().seconds(), 90);
  EXPECT_EQ(target.hysteresis(), 0.2);
  EXPECT_EQ(target.quality_min(), 0.9);
  EXPECT_EQ(target.samples_min(), 50u);
  EXPECT_EQ(shown.state().decision(), v1::AUTOPILOT_DECISION_UNSPECIFIED) << "nothing ticks here";
  ASSERT_EQ(set([](auto* r) { r->set_enabled(false); }, &state), "");
  EXPECT_FALSE(state.target().enabled());
  EXPECT_EQ(state.target().tpot_ms(), 12.5) << "absent fields stay";
  grpc::ClientContext list_context;
  v1::ListPlansResponse listed;
  ASSERT_TRUE(fixture.stub().ListPlans(&list_context, {}, &listed).ok());
  EXPECT_EQ(listed.autopilot().target().SerializeAsString(), state.target().SerializeAsString());
  EXPECT_EQ(listed.autopilot().origin().SerializeAsString(), state.origin().SerializeAsString());
  for (const auto& bad : std::vector<std::function<void(v1::SetAutopilotRequest*)>>{
           [](auto* r) { r->set_tpot_ms(0); }, [](auto* r) { r->set_percentile(49); },
           [](auto* r) { r->set_full_layers_max(4); }, [](auto* r) { r->set_full_layers_min(3); },
           [](auto* r) { r->mutable_window()->set_nanos(1); },
           [](auto* r) { r->mutable_cool_down()->set_seconds(86401); },
           [](auto* r) { r->set_hysteresis(0.9); }, [](auto* r) { r->set_quality_min(-1); },
           [](auto* r) { r->set_samples_min(0); }}) {
    v1::SetAutopilotRequest request;
    bad(&request);
    EXPECT_EQ(set(bad, &state), "FIELD_INVALID") << request.ShortDebugString();
  }
  const auto reset_and_more = [](auto* r) {
    r->set_reset(true);
    r->set_enabled(false);
  };
  EXPECT_EQ(set(reset_and_more, &state), "FIELD_INVALID");
  ASSERT_EQ(set([](auto* r) { r->set_reset(true); }, &state), "");
  EXPECT_EQ(state.target().tpot_ms(), 0) << "as the settings";
  EXPECT_EQ(state.origin().source(), v1::AUTOPILOT_TARGET_SOURCE_SETTINGS);
  EXPECT_FALSE(state.origin().has_set_at());
  EXPECT_TRUE(state.origin().kept());
}

TEST(MorphService, ADenseModelHasNoAutopilot) {
  MorphFixture fixture;
  grpc::ClientContext get_context, set_context;
  v1::GetAutopilotResponse shown;
  v1::SetAutopilotResponse set;
  EXPECT_EQ(ReasonIn(fixture.stub().GetAutopilot(&get_context, {}, &shown)), "NOT_MORPHABLE");
  EXPECT_EQ(ReasonIn(fixture.stub().SetAutopilot(&set_context, {}, &set)), "NOT_MORPHABLE");
  grpc::ClientContext list_context;
  v1::ListPlansResponse listed;
  ASSERT_TRUE(fixture.stub().ListPlans(&list_context, {}, &listed).ok());
  EXPECT_FALSE(listed.has_autopilot());
}

TEST(MorphService, OrdersAreChecked) {
  MorphFixture fixture;
  fixture.engine().AddBranches();
  std::vector<v1::MorphProgress> none;
  const auto refusal = [&](auto change) {
    v1::MorphRequest request = MorphTo(1, "k");
    change(&request);
    const grpc::Status status = RunToEnd(&fixture.stub(), request, &none);
    EXPECT_TRUE(none.empty());
    return ReasonIn(status);
  };
  EXPECT_EQ(refusal([](auto* r) { r->clear_idempotency_key(); }), "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) { r->clear_spec(); }), "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) { r->set_retry_lower(true); }), "FIELD_INVALID") << "no tpot_ms";
  EXPECT_EQ(refusal([](auto* r) { r->set_retries_max(2); }), "FIELD_INVALID") << "nor retry_lower";
  EXPECT_EQ(refusal([](auto* r) { r->set_retry_full_layers_min(1); }), "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) { r->mutable_spec()->mutable_target()->set_full_layers(99); }),
            "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) { r->mutable_spec()->mutable_target()->clear_full_layers(); }),
            "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) { r->set_traffic(1.5); }), "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) { r->mutable_watch()->set_seconds(-1); }), "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) { r->mutable_canary()->set_prompts(9); }), "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) { r->mutable_canary()->set_recall_min(1.5); }), "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) {
              r->mutable_canary()->set_recall_min(0.5);
              r->mutable_canary()->set_prompts(0);
            }),
            "FIELD_INVALID");
  EXPECT_EQ(refusal([](auto* r) {
              r->mutable_spec()->mutable_target()->set_mode(v1::SELECT_MODE_RESELECT);
            }),
            "FEATURE_UNAVAILABLE");
  EXPECT_EQ(refusal([](auto* r) { r->set_expected_active_plan("p-0123456789abcdef"); }),
            "PLAN_CHANGED");
  EXPECT_EQ(refusal([](auto* r) { r->mutable_spec()->set_plan_id("p-0123456789abcdef"); }),
            "PLAN_NOT_FOUND");
}

TEST(MorphService, ProposesWithoutChangingAnything) {
  MorphFixture fixture;
  fixture.engine().AddBranches();
  v1::ProposePlanRequest request;
  request.mutable_spec()->mutable_target()->set_full_layers(1);
  v1::ProposePlanResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(fixture.stub().ProposePlan(&context, request, &response).ok());
  EXPECT_TRUE(response.feasible());
  ASSERT_EQ(response.proposals_size(), 1);
  EXPECT_EQ(response.proposals(0).plan().full_layers(), 1u);
  EXPECT_EQ(response.proposals(0).to_linear_size(), 2);
  EXPECT_EQ(fixture.engine().plans().List().size(), 1u);
}

TEST(MorphService, ModelsCredentialsAndLoadingAreLookedAtFirst) {
  MorphFixture fixture;
  for (const grpc::Status& status : CallAll(&fixture.stub(), "other")) {
    EXPECT_EQ(ReasonIn(status), reason::kModelNotFound);
  }
  MorphFixture loading(/*ready=*/false);
  for (const grpc::Status& status : CallAll(&loading.stub(), "")) {
    EXPECT_EQ(ReasonIn(status), reason::kStarting);
  }
  MorphFixture closed(/*ready=*/true, kTokens);
  for (const grpc::Status& status : CallAll(&closed.stub(), "")) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  // A client may see its status before the server has counted the call.
  const auto counted = [&closed] {
    return testing::HasMetric(&closed.metrics(), "morphserve_grpc_server_handled_total",
                              "WatchMorph", "1");
  };
  for (int i = 0; i < 500 && !counted(); ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_TRUE(counted());
}

TEST(MorphService, ReadingAndMorphingAreDifferentScopes) {
  // The SHA-256 of "secret".
  constexpr char kReader[] =
      "- sha256: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n"
      "  scopes: [read]\n";
  MorphFixture fixture(/*ready=*/true, kReader);
  const auto call = [&](auto method, auto request, auto response) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer secret");
    return (fixture.stub().*method)(&context, request, &response);
  };
  EXPECT_TRUE(
      call(&v1::Morph::Stub::ListPlans, v1::ListPlansRequest(), v1::ListPlansResponse()).ok());
  const grpc::Status refused =
      call(&v1::Morph::Stub::ProposePlan, v1::ProposePlanRequest(), v1::ProposePlanResponse());
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_THAT(refused.error_message(), HasSubstr("morph"));
}

}  // namespace
}  // namespace morphserve
