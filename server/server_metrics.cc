#include "server/server_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "server/metric_buckets.h"
#include "server/metric_table.h"
#include "server/process_stats.h"
#include "server/version.h"

namespace morphserve {
namespace {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
template <typename T>
using Family = prometheus::Family<T>;

constexpr size_t kPlansMax = 64;  // More plans than this share one series, "other".
constexpr int kCodes = 17;        // grpc::StatusCode is 0 to 16.

constexpr std::array<const char*, kCodes> kCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

// Every method of both listeners. The list bounds the label values: nothing a client sends makes
// one.
constexpr std::array<std::pair<const char*, const char*>, 18> kMethods = {{
    {"morphserve.v1.Inference", "Generate"},
    {"morphserve.v1.Inference", "GenerateStream"},
    {"morphserve.v1.Inference", "Chat"},
    {"morphserve.v1.Inference", "ChatStream"},
    {"morphserve.v1.Inference", "Tokenize"},
    {"morphserve.v1.Inference", "Detokenize"},
    {"morphserve.v1.Inference", "CountTokens"},
    {"morphserve.v1.Models", "ListModels"},
    {"morphserve.v1.Models", "GetModelInfo"},
    {"morphserve.v1.Models", "GetServerInfo"},
    {"morphserve.v1.Admin", "Abort"},
    {"morphserve.v1.Admin", "GetLoad"},
    {"morphserve.v1.Admin", "WatchLoad"},
    {"morphserve.v1.Admin", "FlushPrefixCache"},
    {"morphserve.v1.Admin", "Pause"},
    {"morphserve.v1.Admin", "Resume"},
    {"morphserve.v1.Admin", "Drain"},
    {"morphserve.v1.Admin", "SetLogLevel"},
}};

constexpr std::array<const char*, 17> kRejections = {
    "FIELD_INVALID",       "CONTEXT_TOO_LONG", "NEVER_FITS",
    "TEMPLATE_FAILED",     "MODEL_NOT_FOUND",  "PLAN_NOT_FOUND",
    "REQUEST_ID_IN_USE",   "NO_CHAT_TEMPLATE", "NO_TOKENIZER",
    "FEATURE_UNAVAILABLE", "QUEUE_FULL",       "DEADLINE_UNREACHABLE",
    "DEADLINE_PASSED",     "STARTING",         "DRAINING",
    "CREDENTIAL",          "SCOPE_MISSING"};

std::string HelpOf(const char* name, MetricType type) {
  const MetricRow* row = FindMetric(name);
  MS_CHECK(row != nullptr && row->type == type);
  return std::string(row->help);
}

Family<Counter>& Counters(prometheus::Registry& registry, const char* name) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(HelpOf(name, MetricType::kCounter))
      .Register(registry);
}
Family<Gauge>& Gauges(prometheus::Registry& registry, const char* name) {
  return prometheus::BuildGauge()
      .Name(name)
      .Help(HelpOf(name, MetricType::kGauge))
      .Register(registry);
}
Family<Histogram>& Histograms(prometheus::Registry& registry, const char* name) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(HelpOf(name, MetricType::kHistogram))
      .Register(registry);
}

}  // namespace

// Families come first; the series below them exist from the start, so that a rate has its zero.
struct ServerMetrics::Families {
  prometheus::Registry registry;

#define MS_FAMILY(maker, member, name) decltype(maker(registry, "")) member = maker(registry, name)
  MS_FAMILY(Gauges, running, "morphserve_num_requests_running");
  MS_FAMILY(Gauges, waiting, "morphserve_num_requests_waiting");
  MS_FAMILY(Gauges, waiting_tokens, "morphserve_waiting_tokens");
  MS_FAMILY(Gauges, cache_usage, "morphserve_kv_cache_usage_perc");
  MS_FAMILY(Gauges, cache_config, "morphserve_cache_config_info");
  MS_FAMILY(Gauges, arena, "morphserve_arena_bytes");
  MS_FAMILY(Counters, prompt_tokens, "morphserve_prompt_tokens_total");
  MS_FAMILY(Counters, generation_tokens, "morphserve_generation_tokens_total");
  MS_FAMILY(Counters, recomputed, "morphserve_recomputed_tokens_total");
  MS_FAMILY(Counters, success, "morphserve_request_success_total");
  MS_FAMILY(Counters, rejections, "morphserve_admission_rejections_total");
  MS_FAMILY(Counters, deadline_refusals, "morphserve_deadline_refusals_total");
  MS_FAMILY(Counters, deadline_missed, "morphserve_deadline_missed_total");
  MS_FAMILY(Counters, preemptions, "morphserve_num_preemptions_total");
  MS_FAMILY(Counters, corrupted, "morphserve_corrupted_requests_total");
  MS_FAMILY(Histograms, first_token, "morphserve_time_to_first_token_seconds");
  MS_FAMILY(Histograms, token_gap, "morphserve_inter_token_latency_seconds");
  MS_FAMILY(Histograms, per_output_token, "morphserve_request_time_per_output_token_seconds");
  MS_FAMILY(Histograms, e2e, "morphserve_e2e_request_latency_seconds");
  MS_FAMILY(Histograms, queue_time, "morphserve_request_queue_time_seconds");
  MS_FAMILY(Histograms, prefill_time, "morphserve_request_prefill_time_seconds");
  MS_FAMILY(Histograms, decode_time, "morphserve_request_decode_time_seconds");
  MS_FAMILY(Histograms, request_prompt, "morphserve_request_prompt_tokens");
  MS_FAMILY(Histograms, request_generation, "morphserve_request_generation_tokens");
  MS_FAMILY(Histograms, request_max, "morphserve_request_params_max_tokens");
  MS_FAMILY(Histograms, iteration_tokens, "morphserve_iteration_tokens");
  MS_FAMILY(Histograms, step_duration, "morphserve_step_duration_seconds");
  MS_FAMILY(Gauges, step_age, "morphserve_engine_step_age_seconds");
  MS_FAMILY(Gauges, token_rate, "morphserve_tokens_per_second");
  MS_FAMILY(Counters, rpc_started, "morphserve_grpc_server_started_total");
  MS_FAMILY(Counters, rpc_handled, "morphserve_grpc_server_handled_total");
  MS_FAMILY(Histograms, rpc_seconds, "morphserve_grpc_server_handling_seconds");
  MS_FAMILY(Counters, write_stalls, "morphserve_stream_write_stalls_total");
  MS_FAMILY(Gauges, outbox, "morphserve_stream_outbox_bytes");
  MS_FAMILY(Counters, auth_failures, "morphserve_auth_failures_total");
  MS_FAMILY(Gauges, build_info, "morphserve_build_info");
  MS_FAMILY(Gauges, startup, "morphserve_startup_seconds");
  MS_FAMILY(Counters, cpu_seconds, "process_cpu_seconds_total");
  MS_FAMILY(Gauges, resident, "process_resident_memory_bytes");
  MS_FAMILY(Gauges, virtual_memory, "process_virtual_memory_bytes");
  MS_FAMILY(Gauges, start_time, "process_start_time_seconds");
  MS_FAMILY(Gauges, threads, "process_threads");
  MS_FAMILY(Gauges, open_fds, "process_open_fds");
  MS_FAMILY(Gauges, max_fds, "process_max_fds");
#undef MS_FAMILY

  // Series without a label that a client or a plan could add to.
  Gauge& running_now = running.Add({});
  Gauge& waiting_now = waiting.Add({});
  Gauge& waiting_tokens_now = waiting_tokens.Add({});
  Gauge& cache_usage_now = cache_usage.Add({});
  Gauge& arena_running = arena.Add({{"class", "page"}, {"use", "running"}});
  Gauge& arena_cached = arena.Add({{"class", "page"}, {"use", "cached"}});
  Gauge& arena_free = arena.Add({{"class", "page"}, {"use", "free"}});
  Counter& recomputed_preempted = recomputed.Add({{"cause", "preempted"}});
  Counter& refused_certain = deadline_refusals.Add({{"basis", "certain"}});
  Counter& missed_waiting = deadline_missed.Add({{"phase", "waiting"}});
  Counter& missed_running = deadline_missed.Add({{"phase", "running"}});
  Counter& preempted_pages = preemptions.Add({{"resource", "page"}, {"action", "recompute"}});
  Histogram& e2e_all = e2e.Add({}, LongBuckets());
  Histogram& queue_time_all = queue_time.Add({}, LongBuckets());
  Histogram& prefill_time_all = prefill_time.Add({}, LongBuckets());
  Histogram& decode_time_all = decode_time.Add({}, LongBuckets());
  Histogram& request_prompt_all = request_prompt.Add({}, TokenBuckets());
  Histogram& request_generation_all = request_generation.Add({}, TokenBuckets());
  Histogram& request_max_all = request_max.Add({}, TokenBuckets());
  Histogram& iteration_tokens_all = iteration_tokens.Add({}, TokenBuckets());
  std::array<Histogram*, 3> step_by_kind = {
      &step_duration.Add({{"kind", "decode"}}, FineBuckets()),
      &step_duration.Add({{"kind", "prefill"}}, FineBuckets()),
      &step_duration.Add({{"kind", "mixed"}}, FineBuckets())};
  Gauge& step_age_now = step_age.Add({});
  Gauge& token_rate_now = token_rate.Add({});
  Counter& write_stalls_all = write_stalls.Add({});
  Gauge& outbox_all = outbox.Add({});
  Counter& cpu_all = cpu_seconds.Add({});
  Gauge& resident_now = resident.Add({});
  Gauge& virtual_now = virtual_memory.Add({});
  Gauge& start_time_fixed = start_time.Add({});
  Gauge& threads_now = threads.Add({});
  Gauge& open_fds_now = open_fds.Add({});
  Gauge& max_fds_fixed = max_fds.Add({});

  std::array<Counter*, kRejections.size() + 1> rejection_by_reason{};  // The last is "other".
  std::array<Counter*, 4> auth_by_cause{};
};

struct ServerMetrics::PlanSeries {
  PlanSeries(Families& families, const std::string& name)
      : plan(name),
        prompt_tokens(families.prompt_tokens.Add({{"plan", name}})),
        generation_tokens(families.generation_tokens.Add({{"plan", name}})),
        corrupted(families.corrupted.Add({{"plan", name}})),
        first_token(families.first_token.Add({{"plan", name}}, FirstTokenBuckets())),
        token_gap(families.token_gap.Add({{"plan", name}}, FineBuckets())),
        per_output_token(families.per_output_token.Add({{"plan", name}}, FineBuckets())),
        eos(families.success.Add({{"finished_reason", "eos"}, {"plan", name}})),
        stop(families.success.Add({{"finished_reason", "stop"}, {"plan", name}})),
        length(families.success.Add({{"finished_reason", "length"}, {"plan", name}})) {}

  const std::string plan;
  Counter& prompt_tokens;
  Counter& generation_tokens;
  Counter& corrupted;
  Histogram& first_token;
  Histogram& token_gap;
  Histogram& per_output_token;
  Counter& eos;
  Counter& stop;
  Counter& length;
};

// Series of one method, made when it is first called: an unused method costs no scrape.
struct ServerMetrics::RpcSeries {
  RpcSeries(Families& owner, const char* service_name, const char* method_name)
      : families(owner), service(service_name), method(method_name) {}

  prometheus::Labels Labels() const { return {{"grpc_service", service}, {"grpc_method", method}}; }

  // Family::Add of the same labels gives the same series, so a race here is harmless.
  Counter& Started() { return Kept(&started, families.rpc_started, Labels()); }
  Counter& Handled(int code) {
    prometheus::Labels labels = Labels();
    labels.emplace("grpc_code", kCodeNames[static_cast<size_t>(code)]);
    return Kept(&handled[static_cast<size_t>(code)], families.rpc_handled, labels);
  }
  Histogram& Seconds() {
    Histogram* known = seconds.load(std::memory_order_acquire);
    if (known == nullptr) {
      known = &families.rpc_seconds.Add(Labels(), LongBuckets());
      seconds.store(known, std::memory_order_release);
    }
    return *known;
  }

  static Counter& Kept(std::atomic<Counter*>* slot, Family<Counter>& family,
                       const prometheus::Labels& labels) {
    Counter* known = slot->load(std::memory_order_acquire);
    if (known == nullptr) {
      known = &family.Add(labels);
      slot->store(known, std::memory_order_release);
    }
    return *known;
  }

  Families& families;
  const std::string service;
  const std::string method;
  std::atomic<Counter*> started{nullptr};
  std::array<std::atomic<Counter*>, kCodes> handled{};
  std::atomic<Histogram*> seconds{nullptr};
};

namespace {

constexpr std::array<std::string_view, 4> kAuthCauses = {"missing", "malformed", "unknown",
                                                         "scope"};

}  // namespace

ServerMetrics::ServerMetrics() : families_(std::make_unique<Families>()) {
  for (size_t i = 0; i < kRejections.size(); ++i) {
    families_->rejection_by_reason[i] = &families_->rejections.Add({{"reason", kRejections[i]}});
  }
  families_->rejection_by_reason.back() = &families_->rejections.Add({{"reason", "other"}});
  for (size_t i = 0; i < kAuthCauses.size(); ++i) {
    families_->auth_by_cause[i] =
        &families_->auth_failures.Add({{"cause", std::string(kAuthCauses[i])}});
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
  std::string plan_id;
  {
    MutexLock lock(&mutex_);
    steps_.push_back({absl::Now(), report});
    if (steps_.size() > kStepsKept) steps_.pop_front();
    plan_id = active_plan_;
  }
  // Reports do not split their tokens by plan; while one plan serves, all are its own.
  if (plan_id.empty()) return;
  PlanSeries& plan = Plan(plan_id);
  plan.prompt_tokens.Increment(report.prompt_tokens);
  plan.generation_tokens.Increment(report.output_tokens);
}

void ServerMetrics::OnFirstToken(std::string_view plan_id, double ttft_s) {
  Plan(plan_id).first_token.Observe(ttft_s);
}

void ServerMetrics::OnTokenGap(std::string_view plan_id, double gap_s) {
  Plan(plan_id).token_gap.Observe(gap_s);
}

void ServerMetrics::OnPreemption() { families_->preempted_pages.Increment(); }

void ServerMetrics::OnNonFinite(std::string_view plan_id) { Plan(plan_id).corrupted.Increment(); }

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

void ServerMetrics::AttachEngine(const Engine* engine) {
  MutexLock render_lock(&render_mutex_);
  engine_ = engine;
  if (engine == nullptr) return;
  {
    MutexLock lock(&mutex_);
    active_plan_ = engine->info().active_plan_id;
  }
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
    const auto page_bytes = static_cast<double>(engine_->info().memory.page_bytes);
    const auto total = static_cast<double>(load.pages_total);
    const auto running = static_cast<double>(load.pages_running);
    families_->running_now.Set(load.running);
    families_->waiting_now.Set(load.waiting);
    families_->waiting_tokens_now.Set(static_cast<double>(load.waiting_tokens));
    families_->cache_usage_now.Set(total > 0 ? running / total : 0);
    families_->arena_running.Set(running * page_bytes);
    families_->arena_cached.Set(static_cast<double>(load.pages_cached) * page_bytes);
    families_->arena_free.Set(static_cast<double>(load.pages_free) * page_bytes);
    families_->step_age_now.Set(load.step_age_s);
    families_->token_rate_now.Set(load.tokens_per_second);
  }
  const ProcessStats process = ReadProcessStats();
  families_->cpu_all.Increment(std::max(0.0, process.cpu_seconds - families_->cpu_all.Value()));
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
