#include "server/server_metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "server/metric_families.h"
#include "server/metric_table.h"
#include "server/process_stats.h"
#include "server/version.h"

namespace morphserve {

using labels::kAuthCauses;
using labels::kAutopilotStates;
using labels::kCodes;
using labels::kGuards;
using labels::kLimits;
using labels::kMorphPhases;
using labels::kMorphResults;
using labels::kPoints;
using labels::kRejections;
using labels::kRollbackCauses;

namespace {

constexpr size_t kPlansMax = 64;  // More plans than this share one series, "other".
// Every method of both listeners. The list bounds the label values: nothing a client sends makes
// one.
constexpr std::array<std::pair<const char*, const char*>, 28> kMethods = {{
    {"morphserve.v1.Inference", "Generate"},    {"morphserve.v1.Inference", "GenerateStream"},
    {"morphserve.v1.Inference", "Chat"},        {"morphserve.v1.Inference", "ChatStream"},
    {"morphserve.v1.Inference", "Tokenize"},    {"morphserve.v1.Inference", "Detokenize"},
    {"morphserve.v1.Inference", "CountTokens"}, {"morphserve.v1.Models", "ListModels"},
    {"morphserve.v1.Models", "GetModelInfo"},   {"morphserve.v1.Models", "GetServerInfo"},
    {"morphserve.v1.Admin", "Abort"},           {"morphserve.v1.Admin", "GetLoad"},
    {"morphserve.v1.Admin", "WatchLoad"},       {"morphserve.v1.Admin", "FlushPrefixCache"},
    {"morphserve.v1.Admin", "Pause"},           {"morphserve.v1.Admin", "Resume"},
    {"morphserve.v1.Admin", "Drain"},           {"morphserve.v1.Admin", "SetLogLevel"},
    {"morphserve.v1.Morph", "ListPlans"},       {"morphserve.v1.Morph", "GetActivePlan"},
    {"morphserve.v1.Morph", "ProposePlan"},     {"morphserve.v1.Morph", "Morph"},
    {"morphserve.v1.Morph", "WatchMorph"},      {"morphserve.v1.Morph", "RollbackPlan"},
    {"morphserve.v1.Morph", "GetLayerScores"},  {"morphserve.v1.Morph", "GetCosts"},
    {"morphserve.v1.Morph", "GetAutopilot"},    {"morphserve.v1.Morph", "SetAutopilot"},
}};

}  // namespace

ServerMetrics::ServerMetrics()
    : families_(std::make_unique<Families>()), plan_gauges_(std::make_unique<PlanGauges>()) {
  for (size_t i = 0; i < kRejections.size(); ++i) {
    families_->rejection_by_reason[i] = &families_->rejections.Add({{"reason", kRejections[i]}});
  }
  families_->rejection_by_reason.back() = &families_->rejections.Add({{"reason", "other"}});
  for (size_t i = 0; i < kAuthCauses.size(); ++i) {
    families_->auth_by_cause[i] =
        &families_->auth_failures.Add({{"cause", std::string(kAuthCauses[i])}});
  }
  for (size_t i = 0; i < kMorphPhases.size(); ++i) {
    families_->morph_in_phase[i] = &families_->morph_phase.Add({{"phase", kMorphPhases[i]}});
  }
  for (size_t i = 0; i < kMorphResults.size(); ++i) {
    const prometheus::Labels result = {{"result", kMorphResults[i]}};
    families_->morphs_by_result[i] = &families_->morphs.Add(result);
    families_->morph_time_by_result[i] = &families_->morph_duration.Add(result, LongBuckets());
  }
  for (size_t i = 0; i < kRollbackCauses.size(); ++i) {
    families_->rollback_by_cause[i] =
        &families_->rollbacks.Add({{"cause", std::string(kRollbackCauses[i])}});
  }
  for (int i = 0; i < kAutopilotReasons; ++i) {
    const AutopilotDecision decision{.reason = static_cast<AutopilotReason>(i)};
    families_->autopilot_by_reason[static_cast<size_t>(i)] =
        &families_->autopilot_decisions.Add({{"decision", decision.acts() ? "morph" : "stay"},
                                             {"reason", AutopilotReasonName(decision.reason)}});
  }
  for (size_t i = 0; i < kAutopilotStates.size(); ++i) {
    families_->autopilot_in_state[i] =
        &families_->autopilot_state.Add({{"state", kAutopilotStates[i]}});
  }
  for (size_t i = 0; i < kLimits.size(); ++i) {
    families_->limited_by[i] = &families_->hit_limited.Add({{"by", kLimits[i]}});
  }
  for (size_t i = 0; i < kPoints.size(); ++i) {
    families_->stored_at[i] = &families_->snapshots_stored.Add({{"point", kPoints[i]}});
    families_->hit_at[i] = &families_->snapshots_hit.Add({{"point", kPoints[i]}});
  }
  for (const auto& [service, method] : kMethods) {
    rpcs_.push_back(std::make_unique<RpcSeries>(*families_, service, method));
  }
  rpcs_.push_back(std::make_unique<RpcSeries>(*families_, "other", "other"));
  families_->build_info.Add({{"version", VersionString()}, {"commit", CommitString()}}).Set(1);
  families_->start_time_fixed.Set(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
}

ServerMetrics::~ServerMetrics() = default;

ServerMetrics::RpcSeries& ServerMetrics::Rpc(std::string_view service, std::string_view method) {
  for (const auto& rpc : rpcs_) {
    if (rpc->method == method && rpc->service == service) return *rpc;
  }
  return *rpcs_.back();
}

void ServerMetrics::OnRpcStart(std::string_view service, std::string_view method) {
  Rpc(service, method).Started().Increment();
}

void ServerMetrics::OnRpcEnd(std::string_view service, std::string_view method, int grpc_code,
                             double seconds) {
  RpcSeries& rpc = Rpc(service, method);
  const int code = grpc_code >= 0 && grpc_code < kCodes ? grpc_code : 2;  // UNKNOWN.
  rpc.Handled(code).Increment();
  rpc.Seconds().Observe(seconds);
}

void ServerMetrics::OnRejection(std::string_view reason) {
  const auto found = std::find(kRejections.begin(), kRejections.end(), reason);
  families_->rejection_by_reason[static_cast<size_t>(found - kRejections.begin())]->Increment();
  if (reason == "DEADLINE_UNREACHABLE") families_->refused_certain.Increment();
}

void ServerMetrics::OnSlowReader() { families_->write_stalls_all.Increment(); }

void ServerMetrics::AddOutboxBytes(int64_t delta) {
  families_->outbox_all.Increment(static_cast<double>(delta));
}

void ServerMetrics::OnAuthFailure(std::string_view cause) {
  const auto found = std::find(kAuthCauses.begin(), kAuthCauses.end(), cause);
  MS_CHECK(found != kAuthCauses.end());
  families_->auth_by_cause[static_cast<size_t>(found - kAuthCauses.begin())]->Increment();
}

ServerMetrics::PlanSeries& ServerMetrics::Plan(std::string_view plan_id) {
  if (last_plan_ != nullptr && last_plan_->plan == plan_id) return *last_plan_;
  for (const auto& plan : plans_) {
    if (plan->plan == plan_id) return *(last_plan_ = plan.get());
  }
  if (plans_.size() >= kPlansMax && plan_id != "other") return Plan("other");
  plans_.push_back(std::make_unique<PlanSeries>(*families_, std::string(plan_id)));
  return *(last_plan_ = plans_.back().get());
}

void ServerMetrics::OnStep(const StepReport& report) {
  const auto kind = static_cast<size_t>(report.kind);
  MS_CHECK(kind < families_->step_by_kind.size());
  families_->step_by_kind[kind]->Observe(report.seconds);
  families_->iteration_tokens_all.Observe(report.rows);
  if (report.recomputed_tokens > 0) {
    families_->recomputed_preempted.Increment(report.recomputed_tokens);
  }
  families_->step_plans_all.Observe(report.plans);
  for (const StepReport::PlanTokens& tokens : report.by_plan) {
    PlanSeries& plan = Plan(tokens.plan_id);
    plan.prompt_tokens.Increment(tokens.prompt_tokens);
    plan.generation_tokens.Increment(tokens.output_tokens);
  }
  Step step{absl::Now(), report};
  step.report.by_plan.clear();  // Its names live no longer than the report.
  MutexLock lock(&mutex_);
  steps_.push_back(std::move(step));
  if (steps_.size() > kStepsKept) steps_.pop_front();
}

void ServerMetrics::OnFirstToken(std::string_view plan_id, double ttft_s) {
  Plan(plan_id).first_token.Observe(ttft_s);
}

void ServerMetrics::OnTokenGap(std::string_view plan_id, double gap_s) {
  Plan(plan_id).token_gap.Observe(gap_s);
}

void ServerMetrics::OnPreemption(PreemptedBy resource, bool spilled) {
  families_->preempted[static_cast<size_t>(resource)][spilled ? 1 : 0]->Increment();
}

void ServerMetrics::OnNonFinite(std::string_view plan_id, std::string_view where) {
  PlanSeries& plan = Plan(plan_id);
  const auto found = std::find(kGuards.begin(), kGuards.end(), where);
  MS_CHECK(found != kGuards.end());
  plan.trips[static_cast<size_t>(found - kGuards.begin())]->Increment();
  plan.corrupted.Increment();
}

void ServerMetrics::OnPrefixLookup(std::string_view plan_id, int32_t prompt_tokens,
                                   const CacheHit& hit) {
  PlanSeries& plan = Plan(plan_id);
  plan.prefix_queries.Increment(prompt_tokens);
  plan.prefix_hits.Increment(hit.tokens);
  plan.cached_tokens.Increment(hit.tokens);
  // Steps report what they compute; what a hit spares them is a prompt's token all the same.
  plan.prompt_tokens.Increment(hit.tokens);
  if (hit.limit != HitLimit::kNone) {
    families_->limited_by[static_cast<size_t>(hit.limit) - 1]->Increment();
  }
}

void ServerMetrics::OnRequestEnd(const RequestReport& report) {
  PlanSeries& plan = Plan(report.plan_id);
  if (report.ok) {
    Counter& ended = report.reason == "eos"    ? plan.eos
                     : report.reason == "stop" ? plan.stop
                                               : plan.length;
    ended.Increment();
  } else if (report.reason == "DEADLINE_PASSED") {
    const bool started = report.prefill_s > 0 || report.completion_tokens > 0;
    (started ? families_->missed_running : families_->missed_waiting).Increment();
  }
  if (report.tpot_s >= 0) plan.per_output_token.Observe(report.tpot_s);
  families_->e2e_all.Observe(report.total_s);
  families_->queue_time_all.Observe(report.queue_s);
  families_->prefill_time_all.Observe(report.prefill_s);
  families_->decode_time_all.Observe(report.decode_s);
  families_->request_prompt_all.Observe(report.prompt_tokens);
  families_->request_generation_all.Observe(report.completion_tokens);
  families_->request_max_all.Observe(report.max_tokens);
}

void ServerMetrics::SetModelName(std::string name) {
  MutexLock lock(&mutex_);
  model_name_ = std::move(name);
}

void ServerMetrics::AttachEngine(Engine* engine) {
  MutexLock render_lock(&render_mutex_);
  engine_ = engine;
  if (engine == nullptr) return;
  families_->cache_config
      .Add({{"block_size", std::to_string(kPageTokens)},
            {"num_gpu_blocks", std::to_string(engine->info().memory.pages_total)}})
      .Set(1);
}

void ServerMetrics::SetStartupSeconds(std::string_view phase, double seconds) {
  families_->startup.Add({{"phase", std::string(phase)}}).Set(seconds);
}

void ServerMetrics::RefreshGauges() {
  if (engine_ != nullptr) {
    const EngineLoad load = engine_->GetLoad();
    families_->running_now.Set(load.running);
    families_->waiting_now.Set(load.waiting);
    families_->waiting_tokens_now.Set(static_cast<double>(load.waiting_tokens));
    families_->UpdateCache(load, engine_->info().memory);
    plan_gauges_->Update(families_.get(), engine_, load);
    families_->step_age_now.Set(load.step_age_s);
    families_->token_rate_now.Set(load.tokens_per_second);
  }
  const ProcessStats process = ReadProcessStats();
  RaiseTo(process.cpu_seconds, &families_->cpu_all);
  families_->resident_now.Set(static_cast<double>(process.resident_bytes));
  families_->virtual_now.Set(static_cast<double>(process.virtual_bytes));
  families_->threads_now.Set(static_cast<double>(process.threads));
  families_->open_fds_now.Set(static_cast<double>(process.open_files));
  families_->max_fds_fixed.Set(static_cast<double>(process.open_files_max));
}

std::string ServerMetrics::Render() {
  {
    // So that the engine cannot be detached while it is read, and two scrapes do not both add the
    // same processor time. Not mutex_: the engine thread takes that one inside a step.
    MutexLock lock(&render_mutex_);
    RefreshGauges();
  }
  std::string model_name;
  {
    MutexLock lock(&mutex_);
    model_name = model_name_;
  }
  std::vector<prometheus::MetricFamily> collected = families_->registry.Collect();
  for (prometheus::MetricFamily& family : collected) {
    if (family.name.compare(0, 11, "morphserve_") != 0) continue;
    for (prometheus::ClientMetric& metric : family.metric) {
      metric.label.push_back({"model_name", model_name});
      metric.label.push_back({"engine", "0"});
    }
  }
  return prometheus::TextSerializer().Serialize(collected);
}

std::vector<ServerMetrics::Step> ServerMetrics::LastSteps() const {
  MutexLock lock(&mutex_);
  return {steps_.begin(), steps_.end()};
}

std::vector<std::string> ServerMetrics::Names() {
  std::vector<std::string> names;
  for (const MetricRow& row : MetricTable()) names.emplace_back(row.name);
  return names;
}

}  // namespace morphserve
