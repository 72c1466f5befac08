// Catches a request that runs on another plan than it named, a plan that is barred and served all
// the same, a table that grows by requests that are refused, and an operator's prefix that hits the
// wrong plan.
#include "server/plan_lookup.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_format.h"
#include "morph/reasons.h"
#include "server/errors.h"
#include "server/translate.h"
#include "tests/server/service_fakes.h"

namespace morphserve {
namespace {

using testing::FakePlan;
using ::testing::HasSubstr;

template <typename T>
T Parse(const std::string& text) {
  T message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

class PlanLookupTest : public ::testing::Test {
 protected:
  PlanLookupTest() {
    model_.engine = &engine_;
    model_.name = "tiny";
    facts_.tenant = "team";
    facts_.received = absl::FromUnixSeconds(1'700'000'000);
  }

  // The plan id that a request with this selector carries to the engine.
  absl::StatusOr<std::string> Ask(const std::string& selector, const std::string& more = "") {
    const absl::StatusOr<Request> request =
        translator_.Generate(Parse<v1::GenerateRequest>(absl::StrFormat(
                                 "text: 'abc' options { plan { %s } %s }", selector, more)),
                             facts_);
    if (!request.ok()) return request.status();
    return request->plan_id.value_or("");
  }
  std::string Reason(const std::string& selector) { return ReasonOf(Ask(selector).status()); }
  std::string Add(const std::string& letters) {
    const auto plan = engine_.plans().Register(FakePlan(letters), "", "test");
    EXPECT_TRUE(plan.ok()) << plan.status();
    return (*plan)->id();
  }
  size_t known() { return engine_.plans().List().size(); }

  testing::ByteTokenizer tokenizer_;
  testing::FakeEngine engine_{&tokenizer_};  // Three layers, a table of eight plans.
  ServedModel model_;
  const ServerConfig config_;
  CallFacts facts_;
  Translator translator_{&model_, &config_};
};

TEST_F(PlanLookupTest, ADenseModelHasOnePlanUnderAllItsNames) {
  const std::string full = engine_.plans().active()->id();
  EXPECT_EQ(Ask("").value(), "") << "the active plan is bound when the request starts";
  for (const char* name : {"tier: QUALITY_TIER_FASTEST", "tier: QUALITY_TIER_BALANCED",
                           "tier: QUALITY_TIER_HIGHEST", "full_layers: 3"}) {
    EXPECT_EQ(Ask(name).value(), full) << name;
  }
  EXPECT_EQ(Ask(absl::StrFormat("plan_id: '%s'", full)).value(), full);
  EXPECT_EQ(Ask(absl::StrFormat("plan_id: '%s'", full.substr(0, 6))).value(), full);
  const absl::Status hybrid = Ask("full_layers: 2").status();
  EXPECT_EQ(ReasonOf(hybrid), reason::kNotMorphable);
  EXPECT_EQ(hybrid.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(known(), 1u);
}

TEST_F(PlanLookupTest, UnknownPlansAreNotFound) {
  const std::string full = engine_.plans().active()->id();
  for (const std::string& id : {std::string("p-0000000000000000"), full + "0", full.substr(0, 5),
                                std::string("x"), std::string(5000, 'p')}) {
    const absl::Status status = Ask(absl::StrFormat("plan_id: '%s'", id)).status();
    EXPECT_EQ(ReasonOf(status), reason::kPlanNotFound) << id;
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_LT(status.message().size(), 200u);
  }
}

TEST_F(PlanLookupTest, ABudgetNamesTheRankedPlanAndAddsItOnce) {
  engine_.AddBranches();  // Ranking 1, 0, 2.
  EXPECT_EQ(Ask("full_layers: 1").value(), FakePlan("LFL")->id());
  EXPECT_EQ(Ask("full_layers: 1").value(), FakePlan("LFL")->id());
  EXPECT_EQ(Ask("full_layers: 2").value(), FakePlan("FFL")->id());
  EXPECT_EQ(Ask("full_layers: 0").value(), FakePlan("LLL")->id());
  EXPECT_EQ(Ask("full_layers: 3").value(), FakePlan("FFF")->id());
  const auto plans = engine_.plans().List();
  ASSERT_EQ(plans.size(), 4u);
  EXPECT_EQ(plans[0].origin, "start");
  EXPECT_EQ(plans[1].origin, "request");
  EXPECT_EQ(plans[1].state, PlanState::kCold);
}

TEST_F(PlanLookupTest, TiersFollowTheirPointers) {
  const std::string hybrid = Add("LFL");
  ASSERT_TRUE(engine_.plans().Point(PlanPointer::kFastest, hybrid).ok());
  EXPECT_EQ(Ask("tier: QUALITY_TIER_FASTEST").value(), hybrid);
  EXPECT_EQ(Ask("tier: QUALITY_TIER_HIGHEST").value(), engine_.plans().active()->id());
}

TEST_F(PlanLookupTest, WithdrawnPlansAreRefusedUnderEveryName) {
  engine_.AddBranches();
  const std::string full = engine_.plans().active()->id();
  const std::string hybrid = Add("LFL");
  ASSERT_TRUE(engine_.plans().Point(PlanPointer::kFastest, hybrid).ok());
  ASSERT_TRUE(engine_.plans().Withdraw(hybrid, "3 guard trips").ok());
  for (const std::string& name :
       {absl::StrFormat("plan_id: '%s'", hybrid), absl::StrFormat("plan_id: '%.8s'", hybrid),
        std::string("full_layers: 1")}) {
    const absl::Status status = Ask(name).status();
    EXPECT_EQ(ReasonOf(status), reason::kPlanWithdrawn) << name;
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("3 guard trips"));
  }
  EXPECT_EQ(Ask("tier: QUALITY_TIER_FASTEST").value(), full) << "its pointers went back";
}

TEST_F(PlanLookupTest, ARefusedRequestAddsNoPlan) {
  engine_.AddBranches();
  EXPECT_FALSE(Ask("full_layers: 1", "sampling { top_p: 7 }").ok());
  EXPECT_FALSE(Ask("full_layers: 1", "stopping { max_tokens: 100000 }").ok());
  EXPECT_FALSE(Ask("full_layers: 1 prefer_warm: true").ok());
  EXPECT_EQ(known(), 1u);
}

TEST_F(PlanLookupTest, AFullTableRefusesNewPlansForNow) {
  testing::FakeEngine small(&tokenizer_, /*plans_max=*/2);
  small.AddBranches();
  ServedModel served;
  served.engine = &small;
  v1::PlanSelector one, two;
  one.set_full_layers(1);
  two.set_full_layers(2);
  ASSERT_TRUE(ResolvePlan(one, served, 1000, /*add=*/true).ok());
  EXPECT_TRUE(ResolvePlan(two, served, 1000, true).ok()) << "a plan that nothing names makes room";
  ASSERT_TRUE(small.plans().Point(PlanPointer::kFastest, FakePlan("FFL")->id()).ok());
  const absl::Status full = ResolvePlan(one, served, 1000, true).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(full), reason::kPlansLiveMax);
  EXPECT_TRUE(RetryAfterMs(full).has_value());
  EXPECT_TRUE(ResolvePlan(two, served, 1000, true).ok()) << "known ones are served";
}

TEST_F(PlanLookupTest, ABoundOnTheTimePerTokenNeedsMeasuredCosts) {
  engine_.AddBranches();
  const auto bounded = Ask("tpot_ms_max: 5");
  EXPECT_EQ(ReasonOf(bounded.status()), reason::kCostsUnknown);
  EXPECT_EQ(ReasonOf(Ask("tpot_ms_max: 0").status()), reason::kFieldInvalid);
  EXPECT_EQ(known(), 1u);
}

TEST_F(PlanLookupTest, CountingReckonsAPlanWithoutAddingIt) {
  engine_.AddBranches();
  const auto count = [this](const std::string& selector) {
    return translator_.CountTokens(
        Parse<v1::CountTokensRequest>(absl::StrFormat("text: 'hi' plan { %s }", selector)), facts_);
  };
  const auto active = count("");
  ASSERT_TRUE(active.ok()) << active.status();
  EXPECT_EQ(active->plan_id(), engine_.plans().active()->id());
  EXPECT_EQ(active->cached_tokens(), 2u);
  EXPECT_EQ(engine_.asked(), absl::StrFormat("plan=%s salt=team/ tokens=3", active->plan_id()));
  const auto budget = count("full_layers: 1");
  ASSERT_TRUE(budget.ok()) << budget.status();
  EXPECT_EQ(budget->plan_id(), FakePlan("LFL")->id());
  EXPECT_TRUE(budget->has_cached_tokens());
  EXPECT_EQ(budget->cached_tokens(), 0u) << "nobody can have run on it";
  EXPECT_EQ(known(), 1u);
  EXPECT_EQ(ReasonOf(count("plan_id: 'p-9999'").status()), reason::kPlanNotFound);
  EXPECT_EQ(ReasonOf(count("full_layers: 4").status()), reason::kFieldInvalid);
}

TEST_F(PlanLookupTest, OperatorsReachWithdrawnAndForgottenPlans) {
  const std::string full = engine_.plans().active()->id();
  const std::string hybrid = Add("LFL");
  ASSERT_TRUE(engine_.plans().Withdraw(hybrid, "trips").ok());
  EXPECT_EQ(CompletePlanId(&engine_, hybrid.substr(0, 8)).value(), hybrid);
  EXPECT_EQ(CompletePlanId(&engine_, "p-0123456789abcdef").value(), "p-0123456789abcdef");
  for (const std::string& text : {std::string(""), std::string("p-"), full.substr(0, 5),
                                  std::string("p-0123456789abcdeg"), std::string("p-01234567")}) {
    EXPECT_EQ(ReasonOf(CompletePlanId(&engine_, text).status()), reason::kPlanNotFound) << text;
  }
}

}  // namespace
}  // namespace morphserve
