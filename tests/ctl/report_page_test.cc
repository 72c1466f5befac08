// Catches a page that is not well-formed, that loads something, that lets a server's text become
// markup, or that shows an empty plot where it should say what is missing.
#include "server/ctl/report_page.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/ctl/markup.h"

namespace morphserve::ctl {
namespace {

using testing::CountOf;
using ::testing::HasSubstr;
using testing::MarkupFault;
using ::testing::Not;

constexpr uint32_t kLayers = 4;

v1::Plan MakePlan(const std::string& id, uint32_t full) {
  v1::Plan plan;
  plan.set_plan_id(id);
  plan.set_full_layers(full);
  for (uint32_t i = 0; i < kLayers; ++i) {
    plan.add_layers(i < full ? v1::LAYER_KIND_FULL : v1::LAYER_KIND_LINEAR);
  }
  plan.set_origin("start");
  plan.mutable_estimate()->set_kv_bytes_per_token(1024 * full);
  plan.mutable_estimate()->set_state_bytes_per_sequence(65536 * (kLayers - full));
  return plan;
}

// A dense model: what a server without branches answers.
ReportData DenseData() {
  ReportData data;
  data.server.set_version("0.1.0");
  data.server.set_state("ready");
  data.server.set_device("cpu");
  data.server.set_page_tokens(64);
  data.model.set_name("tiny <model>");
  data.model.set_family("llama");
  data.model.set_layers(kLayers);
  data.model.set_context_tokens_max(8192);
  data.model.set_base_id("0123abcd");
  *data.plans.add_plans() = MakePlan("p-full", kLayers);
  *data.active.mutable_plan() = data.plans.plans(0);
  data.scores_missing = data.costs_missing = "Not known: NOT_MORPHABLE.";
  data.contexts = {1024, 8192};
  data.batches = {1, 4};
  data.made_at = absl::FromUnixSeconds(1'700'000'000);
  return data;
}

void AddRanking(const std::string& selector, uint32_t context, const std::vector<uint32_t>& order,
                v1::GetLayerScoresResponse* scores) {
  v1::Ranking* ranking = scores->add_rankings();
  ranking->set_method(selector + "/" + std::to_string(context) + "/0");
  ranking->set_selector(selector);
  ranking->set_context_tokens(context);
  ranking->mutable_order()->Assign(order.begin(), order.end());
}

v1::MeasuredSet* AddMeasured(const std::string& selector, uint32_t k, double kl,
                             v1::GetLayerScoresResponse* scores) {
  v1::MeasuredSet* row = scores->add_measured();
  row->set_selector(selector);
  row->set_full_layers(k);
  row->set_kl(kl);
  row->set_perplexity(15 + kl);
  (*row->mutable_recall())["passkey"] = 1 - kl;
  (*row->mutable_recall())["copy"] = 0.5;
  row->set_source(v1::RANKING_SOURCE_BRANCHES_FILE);
  return row;
}

v1::GetCostsResponse MakeCosts() {
  v1::GetCostsResponse costs;
  costs.set_layers(kLayers);
  costs.set_points(20);
  for (const uint32_t rows : {1u, 4u}) {
    v1::CostTerms* terms = costs.add_terms();
    terms->set_rows(rows);
    terms->set_base_ms(5);
    terms->set_layer_ms(-0.5);
    terms->set_token_ms(0.001);
  }
  v1::CostTerms* prefill = costs.add_terms();
  prefill->set_prefill(true);
  prefill->set_rows(256);
  prefill->set_base_ms(100);
  prefill->set_token_ms(0.01);
  return costs;
}

ReportData FullData() {
  ReportData data = DenseData();
  data.model.set_morphable(true);
  v1::GetLayerScoresResponse scores;
  AddRanking("flashmorph", 1024, {0, 1, 2, 3}, &scores);
  AddRanking("flashmorph", 8192, {0, 2, 1, 3}, &scores);
  scores.mutable_rankings(1)->set_is_default(true);
  for (const double gate : {0.9, 0.2, 0.7, 0.1}) scores.mutable_rankings(1)->add_gates(gate);
  AddRanking("<b>local</b>", 8192, {3, 2, 1, 0}, &scores);
  for (int i = 0; i < 16; ++i) scores.add_interaction(i % 5 == 0 ? 4 - i / 5 : -0.25);
  AddMeasured("all_linear", 0, 0.2, &scores);
  AddMeasured("flashmorph", 2, 0.03, &scores);
  AddMeasured("uniform", 2, 0.1, &scores);
  AddMeasured("uniform", 2, 0.3, &scores);
  for (uint32_t k = 0; k <= kLayers; ++k) *scores.add_by_budget() = MakePlan("p", k);
  for (const v1::Ranking& ranking : scores.rankings()) {
    data.rankings.push_back(MakeRankedLayers(ranking, kLayers, {}));
  }
  data.scores = scores;
  data.costs = MakeCosts();
  v1::Plan* plan = data.plans.add_plans();
  *plan = MakePlan("p-half", 2);
  plan->mutable_measured()->set_step_ms(6);
  plan->mutable_measured()->set_running(1);
  plan->mutable_measured()->set_context_tokens(1000);
  *data.active.mutable_plan() = *plan;
  return data;
}

TEST(ReportPage, IsOneWellFormedPageThatLoadsNothing) {
  const std::string page = RenderReport(FullData());
  EXPECT_EQ(MarkupFault(page), "");
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  EXPECT_THAT(page, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(page, HasSubstr("@media print"));
  EXPECT_THAT(page, HasSubstr("2023-11-14 22:13 UTC"));
  EXPECT_THAT(page, Not(HasSubstr("nan")));
}

TEST(ReportPage, TextOfTheServerIsNoMarkup) {
  ReportData data = FullData();
  data.plans.mutable_plans(0)->set_state(v1::Plan::STATE_WITHDRAWN);
  data.plans.mutable_plans(0)->set_withdrawn_why("<script>alert(1)</script>");
  data.active.set_running_morph_id("\"><img src=x>");
  (*data.scores->mutable_measured(1)->mutable_recall())["<i>"] = 0.1;
  const std::string page = RenderReport(data);
  EXPECT_EQ(MarkupFault(page), "");
  EXPECT_THAT(page, HasSubstr("tiny &lt;model&gt;"));
  EXPECT_THAT(page, HasSubstr("withdrawn: &lt;script&gt;"));
}

TEST(ReportPage, WhatIsMissingIsSaidAndNotDrawn) {
  ReportData data = DenseData();
  EXPECT_EQ(MarkupFault(RenderReport(data)), "");
  for (const auto section : {GatesSection, InteractionSection, QualitySection, StabilitySection}) {
    EXPECT_EQ(CountOf(section(data), "<svg"), 0);
    EXPECT_THAT(section(data), HasSubstr("--branches FILE|window:256"));
  }
  EXPECT_EQ(CountOf(CostsSection(data), "<svg class=\"chart\""), 1) << "memory is always known";
  data.scores = v1::GetLayerScoresResponse();  // Branches without a ranking.
  for (const auto section : {GatesSection, InteractionSection, QualitySection, StabilitySection}) {
    EXPECT_EQ(CountOf(section(data), "<svg"), 0);
    EXPECT_THAT(section(data), HasSubstr("morphctl morph --reselect"));
  }
  EXPECT_EQ(MarkupFault(RenderReport(data)), "");
  data = FullData();
  data.plans.mutable_plans(1)->clear_measured();
  data.costs.reset();
  data.costs_missing = "Not known: the server <is> busy.";
  EXPECT_THAT(CostsSection(data), HasSubstr("the server &lt;is&gt; busy."));
  data.costs = MakeCosts();
  EXPECT_THAT(CostsSection(data), HasSubstr("morphctl bench --plan"));
}

TEST(ReportPage, QualityIsOneLineASelectorWithTheMeanOfSeveralSets) {
  const std::string section = QualitySection(FullData());
  EXPECT_THAT(section, HasSubstr("<title>uniform (mean of up to 2 sets): 0.200 at 2.00</title>"))
      << "0.1 and 0.3";
  EXPECT_THAT(section, HasSubstr("<title>flashmorph: 0.200 at 0</title>"))
      << "the all-linear plan is an end of every line";
  EXPECT_THAT(section, HasSubstr("<title>flashmorph: 0 at 4.00</title>"))
      << "the full model diverges from itself by nothing";
  EXPECT_THAT(section, HasSubstr("Test passkey"));
  EXPECT_THAT(section, Not(HasSubstr("all_linear")));
}

TEST(ReportPage, CostsMarkTheActivePlanAndCompareWhatWasMeasured) {
  const std::string section = CostsSection(FullData());
  // 5 + 2 (-0.5 + 0.001 * 1024), and at 8192.
  EXPECT_THAT(section, HasSubstr(">6.05</text>"));
  EXPECT_THAT(section, HasSubstr(">20.4</text>"));
  EXPECT_THAT(section, HasSubstr("Linear layers are faster from 500 tokens of context on."));
  EXPECT_THAT(section, HasSubstr("active plan, K = 2"));
  // Two full layers of 1024 bytes a token at 8192 tokens, two states of 64 KiB.
  EXPECT_THAT(section, HasSubstr(">16.1</text>"));
  // Measured 6, predicted 5 + 2 (-0.5 + 0.001 * 1000) = 6.
  EXPECT_THAT(section, HasSubstr("<td class=\"figure\">1.00</td>"));
}

TEST(ReportPage, StabilityAnswersForTheBudgetThatRuns) {
  const std::string section = StabilitySection(FullData());
  EXPECT_THAT(section, HasSubstr("at K = 2 yes, the sets share 50 % of their layers"));
  EXPECT_THAT(section, HasSubstr("When the batch size changes: no."));
  EXPECT_THAT(section, HasSubstr("Layers in common at K = 2"));
  EXPECT_THAT(section, HasSubstr("Agreement of whole orders"));
}

TEST(ReportPage, FocusIsTheActiveBudgetElseEveryFourthLayer) {
  ReportData data = FullData();
  EXPECT_EQ(FocusBudget(data), 2u);
  *data.active.mutable_plan() = MakePlan("p-full", kLayers);
  EXPECT_EQ(FocusBudget(data), 1u);
  data.rankings.clear();
  EXPECT_EQ(FocusBudget(data), 1u);
}

}  // namespace
}  // namespace morphserve::ctl
