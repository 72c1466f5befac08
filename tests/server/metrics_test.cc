// Catches a family without a row in the table or the manual, an event counted under the wrong
// label, a gauge that is not refreshed, and label values that a client could add to.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "server/metric_table.h"
#include "server/server_metrics.h"
#include "tests/server/process_fakes.h"

namespace morphserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

using testing::MetricValue;

void DriveEverything(ServerMetrics* metrics, Engine* engine) {
  metrics->SetModelName("tiny");
  metrics->AttachEngine(engine);
  metrics->SetStartupSeconds("load", 1.5);
  metrics->OnRpcStart("morphserve.v1.Inference", "Chat");
  metrics->OnRpcEnd("morphserve.v1.Inference", "Chat", 8, 0.2);
  metrics->OnStep({.kind = StepKind::kMixed,
                   .seconds = 0.01,
                   .rows = 7,
                   .prompt_tokens = 5,
                   .output_tokens = 2,
                   .plans = 2,
                   .recomputed_tokens = 3,
                   .by_plan = {{"p-00112233445566aa", 4, 2}, {"p-00112233445566bb", 1, 0}}});
  metrics->OnPrefixLookup("p-00112233445566aa", 9, {.tokens = 6, .limit = HitLimit::kState});
  metrics->OnFirstToken("p-00112233445566aa", 0.1);
  metrics->OnTokenGap("p-00112233445566aa", 0.02);
  metrics->OnRequestEnd({.plan_id = "p-00112233445566aa",
                         .prompt_tokens = 5,
                         .completion_tokens = 2,
                         .max_tokens = 9,
                         .queue_s = 0.1,
                         .prefill_s = 0.2,
                         .decode_s = 0.3,
                         .total_s = 0.6,
                         .tpot_s = 0.02,
                         .ok = true,
                         .reason = "stop"});
}

TEST(Metrics, EveryRowOfTheTableIsShownAndNothingElse) {
  testing::StubEngine engine;
  ServerMetrics metrics;
  DriveEverything(&metrics, &engine);
  std::set<std::string> shown;
  std::istringstream lines(metrics.Render());
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, kind, name, type;
    if (words >> hash >> kind >> name >> type && hash == "#" && kind == "TYPE") {
      shown.insert(name);
      const MetricRow* row = FindMetric(name);
      ASSERT_NE(row, nullptr) << name;
      EXPECT_EQ(type, row->type == MetricType::kCounter ? "counter"
                      : row->type == MetricType::kGauge ? "gauge"
                                                        : "histogram");
    }
  }
  const std::vector<std::string> names = ServerMetrics::Names();
  EXPECT_EQ(shown, std::set<std::string>(names.begin(), names.end()));
  metrics.AttachEngine(nullptr);
}

TEST(Metrics, TheAutopilotsDecisionsAndState) {
  ServerMetrics metrics;
  AutopilotState state;
  state.standing.target.enabled = true;
  state.standing.target.tpot_ms = 12;
  state.measured.gap_ms = 20;
  state.decision.reason = AutopilotReason::kTooSlow;
  metrics.OnAutopilot(state);
  state.decision.reason = AutopilotReason::kCoolDown;
  metrics.OnAutopilot(state);
  metrics.OnAutopilot(state);
  const std::string text = metrics.Render();
  EXPECT_EQ(MetricValue(text, "morphserve_autopilot_decisions_total", {"reason=\"TOO_SLOW\""}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_autopilot_decisions_total", {"reason=\"COOL_DOWN\""}), 2);
  EXPECT_EQ(MetricValue(text, "morphserve_autopilot_decisions_total", {"reason=\"ROOM\""}), 0);
  EXPECT_EQ(MetricValue(text, "morphserve_autopilot_state", {"state=\"cool_down\""}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_autopilot_state", {"state=\"morphing\""}), 0);
  EXPECT_EQ(MetricValue(text, "morphserve_autopilot_tpot_seconds", {"source=\"measured\""}), 0.02);
  EXPECT_EQ(MetricValue(text, "morphserve_autopilot_tpot_seconds", {"source=\"target\""}), 0.012);
}

TEST(Metrics, EveryRowOfTheTableIsInTheManual) {
  std::ifstream file(std::string(MORPHSERVE_SOURCE_DIR) + "/server/README.md");
  std::stringstream manual;
  manual << file.rdbuf();
  for (const std::string& name : ServerMetrics::Names()) {
    EXPECT_THAT(manual.str(), HasSubstr("| `" + name + "` |"));
  }
}

TEST(Metrics, EventsAreCountedUnderTheirLabels) {
  testing::StubEngine engine;
  ServerMetrics metrics;
  DriveEverything(&metrics, &engine);
  metrics.OnPreemption(PreemptedBy::kPage, false);
  metrics.OnPreemption(PreemptedBy::kSlot, true);
  metrics.OnNonFinite("p-00112233445566aa", "state");
  metrics.OnPrefixLookup("p-00112233445566aa", 3, {.tokens = 2, .limit = HitLimit::kNone});
  metrics.OnSlowReader();
  metrics.AddOutboxBytes(100);
  metrics.AddOutboxBytes(-40);
  metrics.OnRejection("DEADLINE_UNREACHABLE");
  metrics.OnRequestEnd({.plan_id = "p-00112233445566aa", .ok = false, .reason = "DEADLINE_PASSED"});
  const std::string text = metrics.Render();
  const std::string plan = "plan=\"p-00112233445566aa\"";
  const std::string other = "plan=\"p-00112233445566bb\"";
  EXPECT_EQ(MetricValue(text, "morphserve_prompt_tokens_total", {plan}), 4 + 6 + 2)
      << "computed or cached";
  EXPECT_EQ(MetricValue(text, "morphserve_prompt_tokens_total", {other}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_prompt_tokens_cached_total", {plan}), 8);
  EXPECT_EQ(MetricValue(text, "morphserve_prefix_cache_queries_total", {plan}), 12);
  EXPECT_EQ(MetricValue(text, "morphserve_prefix_cache_hits_total", {plan}), 8);
  EXPECT_EQ(MetricValue(text, "morphserve_prefix_hit_limited_total", {"by=\"state\""}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_prefix_hit_limited_total", {"by=\"kv\""}), 0);
  EXPECT_EQ(MetricValue(text, "morphserve_prefix_hit_limited_total", {"by=\"none\""}), 0);
  EXPECT_EQ(MetricValue(text, "morphserve_step_plans_sum"), 2);
  EXPECT_EQ(MetricValue(text, "morphserve_generation_tokens_total", {plan}), 2);
  EXPECT_EQ(MetricValue(text, "morphserve_recomputed_tokens_total", {"preempted"}), 3);
  EXPECT_EQ(MetricValue(text, "morphserve_request_success_total", {plan, "\"stop\""}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_request_success_total", {plan, "\"eos\""}), 0);
  EXPECT_EQ(MetricValue(text, "morphserve_num_preemptions_total", {"page", "recompute"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_num_preemptions_total", {"slot", "spill"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_num_preemptions_total", {"slot", "recompute"}), 0);
  EXPECT_EQ(MetricValue(text, "morphserve_corrupted_requests_total", {plan}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_guard_trips_total", {plan, "state"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_guard_trips_total", {plan, "logits"}), 0);
  EXPECT_EQ(MetricValue(text, "morphserve_stream_write_stalls_total"), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_stream_outbox_bytes"), 60);
  EXPECT_EQ(MetricValue(text, "morphserve_admission_rejections_total", {"DEADLINE_UNREACHABLE"}),
            1);
  EXPECT_EQ(MetricValue(text, "morphserve_deadline_refusals_total", {"certain"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_deadline_missed_total", {"waiting"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_deadline_missed_total", {"running"}), 0);
  EXPECT_EQ(MetricValue(text, "morphserve_step_duration_seconds_count", {"mixed"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_step_duration_seconds_bucket", {"mixed", "le=\"0.008\""}),
            0);
  EXPECT_EQ(MetricValue(text, "morphserve_step_duration_seconds_bucket", {"mixed", "le=\"0.01\""}),
            1);
  EXPECT_EQ(MetricValue(text, "morphserve_time_to_first_token_seconds_sum", {plan}), 0.1);
  EXPECT_EQ(
      MetricValue(text, "morphserve_grpc_server_handled_total", {"Chat", "RESOURCE_EXHAUSTED"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_startup_seconds", {"load"}), 1.5);
  metrics.AttachEngine(nullptr);
}

TEST(Metrics, GaugesFollowTheEngineUntilItIsDetached) {
  testing::StubEngine engine;
  ServerMetrics metrics;
  metrics.AttachEngine(&engine);
  EngineLoad load;
  load.running = 3;
  load.waiting = 4;
  load.waiting_tokens = 50;
  load.arena_bytes = 20000;  // Of pages of 1000 bytes and slots of 2000.
  load.cache.pages_running = 4;
  load.cache.pages_cached = 1;
  load.cache.slots_running = 2;
  load.cache.slots_cached = 3;
  load.cache.slots_quarantined = 1;
  load.cache.slots_free = 4;
  load.cache.snapshots = 2;
  load.cache.spilled_bytes = 77;
  load.cache.snapshots_stored[0] = 5;
  load.cache.snapshots_hit[4] = 6;
  load.cache.snapshots_evicted = 7;
  load.cache.hit_copy_bytes = 8;
  load.cache.reload_bytes = 9;
  load.step_age_s = 2.5;
  engine.SetLoad(load);
  std::string text = metrics.Render();
  EXPECT_EQ(MetricValue(text, "morphserve_num_requests_running"), 3);
  EXPECT_EQ(MetricValue(text, "morphserve_num_requests_waiting"), 4);
  EXPECT_EQ(MetricValue(text, "morphserve_waiting_tokens"), 50);
  EXPECT_EQ(MetricValue(text, "morphserve_kv_cache_usage_perc"), 0.4);
  EXPECT_EQ(MetricValue(text, "morphserve_arena_bytes", {"page", "running"}), 4000);
  EXPECT_EQ(MetricValue(text, "morphserve_arena_bytes", {"page", "cached"}), 1000);
  EXPECT_EQ(MetricValue(text, "morphserve_arena_bytes", {"slot", "running"}), 4000);
  EXPECT_EQ(MetricValue(text, "morphserve_arena_bytes", {"slot", "cached"}), 6000);
  EXPECT_EQ(MetricValue(text, "morphserve_arena_bytes", {"slot", "quarantined"}), 2000);
  EXPECT_EQ(MetricValue(text, "morphserve_arena_bytes", {"free"}), 3000);
  EXPECT_EQ(MetricValue(text, "morphserve_state_slots", {"running"}), 2);
  EXPECT_EQ(MetricValue(text, "morphserve_state_slots", {"free"}), 4);
  EXPECT_EQ(MetricValue(text, "morphserve_state_snapshots"), 2);
  EXPECT_EQ(MetricValue(text, "morphserve_host_spill_bytes"), 77);
  EXPECT_EQ(MetricValue(text, "morphserve_snapshots_stored_total", {"prompt_end"}), 5);
  EXPECT_EQ(MetricValue(text, "morphserve_snapshots_hit_total", {"ladder"}), 6);
  EXPECT_EQ(MetricValue(text, "morphserve_snapshots_evicted_total"), 7);
  EXPECT_EQ(MetricValue(text, "morphserve_state_copy_bytes_total", {"hit"}), 8);
  EXPECT_EQ(MetricValue(text, "morphserve_state_copy_bytes_total", {"reload"}), 9);
  // Counters of the engine are told as they stand, not added again by each scrape.
  EXPECT_EQ(MetricValue(metrics.Render(), "morphserve_snapshots_stored_total", {"prompt_end"}), 5);
  EXPECT_EQ(MetricValue(text, "morphserve_engine_step_age_seconds"), 2.5);
  EXPECT_EQ(MetricValue(text, "morphserve_cache_config_info", {"block_size=\"64\"", "\"10\""}), 1);
  metrics.AttachEngine(nullptr);
  load.running = 9;
  engine.SetLoad(load);
  EXPECT_EQ(MetricValue(metrics.Render(), "morphserve_num_requests_running"), 3);
}

TEST(Metrics, PointersAndPlansComeAndGoWithTheTable) {
  testing::StubEngine engine;  // Two layers.
  PlanRegistry& plans = engine.plans();
  const std::string full = plans.active()->id();
  const std::string hybrid = testing::FakePlan("FL")->id();
  ServerMetrics metrics;
  metrics.AttachEngine(&engine);
  EngineLoad load;
  load.running_by_plan = {{full, 2}, {hybrid, 3}, {"p-gone", 4}};
  engine.SetLoad(load);
  std::string text = metrics.Render();
  EXPECT_EQ(MetricValue(text, "morphserve_plan_info", {"active", full, "full_layers=\"2\""}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_plan_epoch", {"active"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_plan_requests_running", {full}), 2);
  EXPECT_EQ(MetricValue(text, "morphserve_plan_requests_running", {"other"}), 7)
      << "plans that are in no table must not make series";
  ASSERT_TRUE(plans.Register(testing::FakePlan("FL"), "", "request").ok());
  ASSERT_TRUE(plans.Point(PlanPointer::kActive, hybrid).ok());
  text = metrics.Render();
  EXPECT_EQ(MetricValue(text, "morphserve_plan_info", {"active", hybrid, "full_layers=\"1\""}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_plan_info", {"active", full}), -1) << "a stale pointer";
  EXPECT_EQ(MetricValue(text, "morphserve_plan_info", {"highest", full}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_plan_epoch", {"active"}), 2);
  EXPECT_EQ(MetricValue(text, "morphserve_plan_epoch", {"highest"}), 1);
  EXPECT_EQ(MetricValue(text, "morphserve_plan_requests_running", {hybrid}), 3);
  ASSERT_TRUE(plans.Point(PlanPointer::kActive, full).ok());
  ASSERT_TRUE(plans.Remove(hybrid).ok());
  EXPECT_EQ(MetricValue(metrics.Render(), "morphserve_plan_requests_running", {hybrid}), -1);
  metrics.AttachEngine(nullptr);
}

TEST(Metrics, WhatAClientSendsMakesNoSeries) {
  ServerMetrics metrics;
  const auto series = [&] {
    const std::string text = metrics.Render();
    return std::count(text.begin(), text.end(), '\n');
  };
  metrics.OnRpcStart("evil.Service", "M0");
  metrics.OnRpcEnd("evil.Service", "M0", 99, 0.1);
  metrics.OnRejection("REASON 0");
  const auto before = series();
  for (int i = 1; i < 50; ++i) {
    metrics.OnRpcStart("evil.Service", "M" + std::to_string(i));
    metrics.OnRpcEnd("evil.Service", "M" + std::to_string(i), 99, 0.1);
    metrics.OnRejection("REASON " + std::to_string(i));
  }
  EXPECT_EQ(series(), before);
  const std::string text = metrics.Render();
  EXPECT_THAT(text, Not(HasSubstr("evil")));
  EXPECT_EQ(MetricValue(text, "morphserve_grpc_server_started_total", {"other"}), 50);
  EXPECT_EQ(MetricValue(text, "morphserve_grpc_server_handled_total", {"UNKNOWN"}), 50);
  EXPECT_EQ(MetricValue(text, "morphserve_admission_rejections_total", {"other"}), 50);
}

TEST(Metrics, PlansBeyondTheBoundShareOneSeries) {
  ServerMetrics metrics;
  for (int i = 0; i < 200; ++i) metrics.OnFirstToken("p-" + std::to_string(i), 0.1);
  const std::string text = metrics.Render();
  EXPECT_EQ(MetricValue(text, "morphserve_time_to_first_token_seconds_count", {"plan=\"other\""}),
            136);
  EXPECT_EQ(MetricValue(text, "morphserve_time_to_first_token_seconds_count", {"plan=\"p-63\""}),
            1);
  EXPECT_EQ(MetricValue(text, "morphserve_time_to_first_token_seconds_count", {"plan=\"p-64\""}),
            -1);
}

TEST(Metrics, ConstantLabelsAreOnOursAndNotOnTheProcess) {
  ServerMetrics metrics;
  metrics.SetModelName("a\"b\\c");
  std::istringstream lines(metrics.Render());
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, 11, "morphserve_") == 0) {
      EXPECT_THAT(line, HasSubstr("model_name=\"a\\\"b\\\\c\",engine=\"0\""));
    } else if (line[0] != '#') {
      EXPECT_THAT(line, Not(HasSubstr("model_name")));
    }
  }
  EXPECT_GT(MetricValue(metrics.Render(), "process_resident_memory_bytes"), 1e5);
  EXPECT_GT(MetricValue(metrics.Render(), "process_open_fds"), 2);
  EXPECT_GE(MetricValue(metrics.Render(), "process_threads"), 1);
}

TEST(Metrics, TheLastStepsAreKeptInOrder) {
  ServerMetrics metrics;
  for (int i = 0; i < 50; ++i) {
    const std::string plan = "p-" + std::to_string(i);
    metrics.OnStep({.seconds = 0.001, .rows = i, .by_plan = {{plan, 1, 0}}});
  }
  const auto steps = metrics.LastSteps();
  ASSERT_EQ(steps.size(), ServerMetrics::kStepsKept);
  EXPECT_EQ(steps.front().report.rows, 30);
  EXPECT_TRUE(steps.front().report.by_plan.empty()) << "its names are gone by now";
  EXPECT_EQ(steps.back().report.rows, 49);
}

TEST(Metrics, ScrapesAndEventsMayCross) {
  testing::StubEngine engine;
  ServerMetrics metrics;
  metrics.AttachEngine(&engine);
  std::thread scraper([&] {
    for (int i = 0; i < 20; ++i) metrics.Render();
  });
  std::thread caller([&] {
    for (int i = 0; i < 500; ++i) metrics.OnRpcEnd("morphserve.v1.Models", "ListModels", 0, 0.001);
  });
  for (int i = 0; i < 500; ++i) {
    metrics.OnStep(
        {.seconds = 0.001, .rows = 1, .output_tokens = 1, .by_plan = {{"p-00112233", 0, 1}}});
  }
  scraper.join();
  caller.join();
  EXPECT_EQ(MetricValue(metrics.Render(), "morphserve_generation_tokens_total"), 500);
  EXPECT_EQ(MetricValue(metrics.Render(), "morphserve_grpc_server_handled_total", {"\"OK\""}), 500);
  metrics.AttachEngine(nullptr);
}

}  // namespace
}  // namespace morphserve
