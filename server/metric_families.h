// The families and series behind ServerMetrics, and the values of their labels. For
// server_metrics.cc and metric_families.cc only. Families come before the series below them, which
// exist from the start where nothing a client or a plan does could add to them, so that a rate has
// its zero. Thread rule: as ServerMetrics; Prometheus' own types take any thread.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <atomic>
#include <map>
#include <string>
#include <string_view>

#include "engine/engine.h"
#include "morph/autopilot.h"
#include "server/metric_buckets.h"
#include "server/server_metrics.h"

namespace morphserve {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
template <typename T>
using Family = prometheus::Family<T>;

namespace labels {

inline constexpr int kCodes = 17;  // grpc::StatusCode is 0 to 16.

inline constexpr std::array<const char*, kCodes> kCodeNames = {
    "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED"};

inline constexpr std::array<const char*, 20> kRejections = {
    "FIELD_INVALID",       "CONTEXT_TOO_LONG", "NEVER_FITS",
    "TEMPLATE_FAILED",     "MODEL_NOT_FOUND",  "PLAN_NOT_FOUND",
    "REQUEST_ID_IN_USE",   "NO_CHAT_TEMPLATE", "NO_TOKENIZER",
    "FEATURE_UNAVAILABLE", "QUEUE_FULL",       "DEADLINE_UNREACHABLE",
    "DEADLINE_PASSED",     "STARTING",         "DRAINING",
    "CREDENTIAL",          "SCOPE_MISSING",    "PLAN_WITHDRAWN",
    "NOT_MORPHABLE",       "PLANS_LIVE_MAX"};

// By SnapshotPoint.
inline constexpr std::array<const char*, 5> kPoints = {"prompt_end", "generation_end", "branch",
                                                       "asked", "ladder"};
static_assert(sizeof(CacheUsage::snapshots_stored) == kPoints.size() * sizeof(int64_t));

// By PlanPointer.
inline constexpr std::array<const char*, kPlanPointers> kPointers = {"active", "fastest",
                                                                     "balanced", "highest"};

// By HitLimit, after kNone: a lookup that found all was not limited.
inline constexpr std::array<const char*, 3> kLimits = {"kv", "state", "none"};

inline constexpr std::array<std::string_view, 3> kGuards = {"logits", "mixer", "state"};

inline constexpr std::array<std::string_view, 4> kAuthCauses = {"missing", "malformed", "unknown",
                                                                "scope"};

// Phases of a morph that is under way, by MorphPhase from kSelecting on.
inline constexpr std::array<const char*, 5> kMorphPhases = {"selecting", "preparing", "canary",
                                                            "switched", "watching"};
inline constexpr std::array<const char*, 3> kMorphResults = {"applied", "rolled_back", "failed"};
// The last stands for every other.
inline constexpr std::array<std::string_view, 6> kRollbackCauses = {
    "TARGET_MISSED", "GUARD_TRIPPED", "ERROR_RATE", "PLAN_WITHDRAWN", "ROLLED_BACK", "other"};

// By what follows from an AutopilotReason.
inline constexpr std::array<const char*, 4> kAutopilotStates = {"off", "measuring", "cool_down",
                                                                "morphing"};

// A family of the table of metrics, with its help. CHECKs that the table has it, with this type.
Family<Counter>& Counters(prometheus::Registry& registry, const char* name);
Family<Gauge>& Gauges(prometheus::Registry& registry, const char* name);
Family<Histogram>& Histograms(prometheus::Registry& registry, const char* name);

}  // namespace labels

// A counter of the engine or the system, told as it stands.
void RaiseTo(double value, Counter* counter);

struct ServerMetrics::Families {
  prometheus::Registry registry;

#define MS_FAMILY(maker, member, name) \
  decltype(labels::maker(registry, "")) member = labels::maker(registry, name)
  MS_FAMILY(Gauges, running, "morphserve_num_requests_running");
  MS_FAMILY(Gauges, waiting, "morphserve_num_requests_waiting");
  MS_FAMILY(Gauges, waiting_tokens, "morphserve_waiting_tokens");
  MS_FAMILY(Gauges, cache_usage, "morphserve_kv_cache_usage_perc");
  MS_FAMILY(Gauges, cache_config, "morphserve_cache_config_info");
  MS_FAMILY(Gauges, arena, "morphserve_arena_bytes");
  MS_FAMILY(Gauges, slots, "morphserve_state_slots");
  MS_FAMILY(Gauges, snapshots, "morphserve_state_snapshots");
  MS_FAMILY(Gauges, spilled, "morphserve_host_spill_bytes");
  MS_FAMILY(Counters, prompt_tokens, "morphserve_prompt_tokens_total");
  MS_FAMILY(Counters, cached_tokens, "morphserve_prompt_tokens_cached_total");
  MS_FAMILY(Counters, prefix_queries, "morphserve_prefix_cache_queries_total");
  MS_FAMILY(Counters, prefix_hits, "morphserve_prefix_cache_hits_total");
  MS_FAMILY(Counters, hit_limited, "morphserve_prefix_hit_limited_total");
  MS_FAMILY(Counters, snapshots_stored, "morphserve_snapshots_stored_total");
  MS_FAMILY(Counters, snapshots_hit, "morphserve_snapshots_hit_total");
  MS_FAMILY(Counters, snapshots_evicted, "morphserve_snapshots_evicted_total");
  MS_FAMILY(Counters, copied, "morphserve_state_copy_bytes_total");
  MS_FAMILY(Counters, generation_tokens, "morphserve_generation_tokens_total");
  MS_FAMILY(Counters, recomputed, "morphserve_recomputed_tokens_total");
  MS_FAMILY(Counters, success, "morphserve_request_success_total");
  MS_FAMILY(Counters, rejections, "morphserve_admission_rejections_total");
  MS_FAMILY(Counters, deadline_refusals, "morphserve_deadline_refusals_total");
  MS_FAMILY(Counters, deadline_missed, "morphserve_deadline_missed_total");
  MS_FAMILY(Counters, preemptions, "morphserve_num_preemptions_total");
  MS_FAMILY(Counters, corrupted, "morphserve_corrupted_requests_total");
  MS_FAMILY(Counters, guard_trips, "morphserve_guard_trips_total");
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
  MS_FAMILY(Histograms, step_plans, "morphserve_step_plans");
  MS_FAMILY(Gauges, plan_info, "morphserve_plan_info");
  MS_FAMILY(Gauges, plan_epoch, "morphserve_plan_epoch");
  MS_FAMILY(Gauges, plan_running, "morphserve_plan_requests_running");
  MS_FAMILY(Gauges, predicted_tpot, "morphserve_plan_predicted_tpot_seconds");
  MS_FAMILY(Gauges, quality_ratio, "morphserve_plan_quality_ratio");
  MS_FAMILY(Counters, morphs, "morphserve_morphs_total");
  MS_FAMILY(Counters, rollbacks, "morphserve_plan_rollbacks_total");
  MS_FAMILY(Gauges, morph_phase, "morphserve_morph_phase");
  MS_FAMILY(Histograms, morph_duration, "morphserve_morph_duration_seconds");
  MS_FAMILY(Histograms, morph_switch, "morphserve_morph_switch_seconds");
  MS_FAMILY(Counters, autopilot_decisions, "morphserve_autopilot_decisions_total");
  MS_FAMILY(Gauges, autopilot_state, "morphserve_autopilot_state");
  MS_FAMILY(Gauges, autopilot_tpot, "morphserve_autopilot_tpot_seconds");
  MS_FAMILY(Gauges, cost_error, "morphserve_cost_model_error_ratio");
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
  Gauge& pages_running = arena.Add({{"class", "page"}, {"use", "running"}});
  Gauge& pages_cached = arena.Add({{"class", "page"}, {"use", "cached"}});
  Gauge& slots_running = arena.Add({{"class", "slot"}, {"use", "running"}});
  Gauge& slots_cached = arena.Add({{"class", "slot"}, {"use", "cached"}});
  Gauge& slots_quarantined = arena.Add({{"class", "slot"}, {"use", "quarantined"}});
  Gauge& arena_free = arena.Add({{"class", "any"}, {"use", "free"}});
  Gauge& slot_count_running = slots.Add({{"use", "running"}});
  Gauge& slot_count_cached = slots.Add({{"use", "cached"}});
  Gauge& slot_count_quarantined = slots.Add({{"use", "quarantined"}});
  Gauge& slot_count_free = slots.Add({{"use", "free"}});
  Gauge& snapshots_now = snapshots.Add({});
  Gauge& spilled_now = spilled.Add({});
  Counter& copied_hit = copied.Add({{"direction", "hit"}});
  Counter& copied_fork = copied.Add({{"direction", "fork"}});
  Counter& copied_spill = copied.Add({{"direction", "spill"}});
  Counter& copied_reload = copied.Add({{"direction", "reload"}});
  Counter& snapshots_evicted_all = snapshots_evicted.Add({});
  Counter& recomputed_preempted = recomputed.Add({{"cause", "preempted"}});
  Counter& refused_certain = deadline_refusals.Add({{"basis", "certain"}});
  Counter& missed_waiting = deadline_missed.Add({{"phase", "waiting"}});
  Counter& missed_running = deadline_missed.Add({{"phase", "running"}});
  // By PreemptedBy, then by whether the sequence was spilled.
  std::array<std::array<Counter*, 2>, 2> preempted = {
      {{&preemptions.Add({{"resource", "page"}, {"action", "recompute"}}),
        &preemptions.Add({{"resource", "page"}, {"action", "spill"}})},
       {&preemptions.Add({{"resource", "slot"}, {"action", "recompute"}}),
        &preemptions.Add({{"resource", "slot"}, {"action", "spill"}})}}};
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
  Histogram& step_plans_all = step_plans.Add({}, PlanBuckets());
  Gauge& predicted_tpot_now = predicted_tpot.Add({});
  Gauge& quality_predicted = quality_ratio.Add({{"source", "branches_file"}});
  Gauge& quality_measured = quality_ratio.Add({{"source", "measured"}});
  Histogram& morph_switch_all = morph_switch.Add({}, LongBuckets());
  Gauge& autopilot_measured = autopilot_tpot.Add({{"source", "measured"}});
  Gauge& autopilot_target = autopilot_tpot.Add({{"source", "target"}});
  Gauge& cost_error_step = cost_error.Add({{"what", "step"}});
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

  std::array<Counter*, labels::kRejections.size() + 1>
      rejection_by_reason{};  // The last is "other".
  std::array<Counter*, 4> auth_by_cause{};
  std::array<Gauge*, labels::kMorphPhases.size()> morph_in_phase{};
  std::array<Counter*, labels::kMorphResults.size()> morphs_by_result{};
  std::array<Histogram*, labels::kMorphResults.size()> morph_time_by_result{};
  std::array<Counter*, labels::kRollbackCauses.size()> rollback_by_cause{};
  std::array<Counter*, kAutopilotReasons> autopilot_by_reason{};
  std::array<Gauge*, labels::kAutopilotStates.size()> autopilot_in_state{};
  std::array<Counter*, labels::kLimits.size()> limited_by{};
  std::array<Counter*, labels::kPoints.size()> stored_at{};
  std::array<Counter*, labels::kPoints.size()> hit_at{};

  void UpdateCache(const EngineLoad& load, const MemoryVerdict& memory);
};

// Gauges whose labels name plans: series come and go with pointers and the plan table.
struct ServerMetrics::PlanGauges {
  struct Named {
    std::string plan;
    Gauge* info = nullptr;
    Gauge* epoch = nullptr;
  };
  std::array<Named, labels::kPointers.size()> pointers;
  std::map<std::string, Gauge*> running;

  void Update(Families* families, Engine* engine, const EngineLoad& load);
};

struct ServerMetrics::PlanSeries {
  PlanSeries(Families& families, const std::string& name)
      : plan(name),
        prompt_tokens(families.prompt_tokens.Add({{"plan", name}})),
        cached_tokens(families.cached_tokens.Add({{"plan", name}})),
        prefix_queries(families.prefix_queries.Add({{"plan", name}})),
        prefix_hits(families.prefix_hits.Add({{"plan", name}})),
        generation_tokens(families.generation_tokens.Add({{"plan", name}})),
        corrupted(families.corrupted.Add({{"plan", name}})),
        first_token(families.first_token.Add({{"plan", name}}, FirstTokenBuckets())),
        token_gap(families.token_gap.Add({{"plan", name}}, FineBuckets())),
        per_output_token(families.per_output_token.Add({{"plan", name}}, FineBuckets())),
        eos(families.success.Add({{"finished_reason", "eos"}, {"plan", name}})),
        stop(families.success.Add({{"finished_reason", "stop"}, {"plan", name}})),
        length(families.success.Add({{"finished_reason", "length"}, {"plan", name}})) {
    for (size_t i = 0; i < labels::kGuards.size(); ++i) {
      trips[i] =
          &families.guard_trips.Add({{"plan", name}, {"where", std::string(labels::kGuards[i])}});
    }
  }

  const std::string plan;
  Counter& prompt_tokens;
  Counter& cached_tokens;
  Counter& prefix_queries;
  Counter& prefix_hits;
  Counter& generation_tokens;
  Counter& corrupted;
  Histogram& first_token;
  Histogram& token_gap;
  Histogram& per_output_token;
  Counter& eos;
  Counter& stop;
  Counter& length;
  std::array<Counter*, labels::kGuards.size()> trips{};
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
    labels.emplace("grpc_code", labels::kCodeNames[static_cast<size_t>(code)]);
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
  std::array<std::atomic<Counter*>, labels::kCodes> handled{};
  std::atomic<Histogram*> seconds{nullptr};
};

}  // namespace morphserve
