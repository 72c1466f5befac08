#include "server/metric_table.h"

namespace morphserve {
namespace {

constexpr MetricType kC = MetricType::kCounter;
constexpr MetricType kG = MetricType::kGauge;
constexpr MetricType kH = MetricType::kHistogram;

constexpr MetricRow kTable[] = {
    {"morphserve_num_requests_running", kG, "Sequences in the batch"},
    {"morphserve_num_requests_waiting", kG, "Requests that wait, preempted ones included"},
    {"morphserve_waiting_tokens", kG, "Prompt tokens of the waiting requests"},
    {"morphserve_kv_cache_usage_perc", kG,
     "Share of the arena pinned by running sequences, 0 to 1"},
    {"morphserve_cache_config_info", kG, "Fixed at 1; labels tell the page size and page count"},
    {"morphserve_arena_bytes", kG, "Bytes of the arena by class and use"},
    {"morphserve_state_slots", kG, "Slots, each the state of one linear layer, by use"},
    {"morphserve_state_snapshots", kG, "Kept states of whole sequences in the prefix cache"},
    {"morphserve_host_spill_bytes", kG, "Memory outside the arena that preempted sequences hold"},
    {"morphserve_prompt_tokens_total", kC, "Prompt tokens computed or taken from the prefix cache"},
    {"morphserve_prompt_tokens_cached_total", kC, "Prompt tokens taken from the prefix cache"},
    {"morphserve_prefix_cache_queries_total", kC, "Prompt tokens looked up in the prefix cache"},
    {"morphserve_prefix_cache_hits_total", kC, "Of them found"},
    {"morphserve_prefix_hit_limited_total", kC,
     "Lookups that found less than all, by what ended it"},
    {"morphserve_snapshots_stored_total", kC, "States put into the prefix cache, by kind of place"},
    {"morphserve_snapshots_hit_total", kC, "Lookups that ended at a kept state, by kind of place"},
    {"morphserve_snapshots_evicted_total", kC, "Kept states that made room"},
    {"morphserve_state_copy_bytes_total", kC, "Bytes of pages and slots that were copied"},
    {"morphserve_generation_tokens_total", kC, "Tokens produced"},
    {"morphserve_recomputed_tokens_total", kC, "Tokens computed again, by cause"},
    {"morphserve_request_success_total", kC, "Requests that ended with Done, per finish reason"},
    {"morphserve_admission_rejections_total", kC, "Requests refused at admission, by reason"},
    {"morphserve_deadline_refusals_total", kC, "Requests refused because of their deadline"},
    {"morphserve_deadline_missed_total", kC, "Requests whose deadline passed, by phase"},
    {"morphserve_num_preemptions_total", kC,
     "Sequences that lost their pages and slots to others, by what was short and what became of "
     "them"},
    {"morphserve_corrupted_requests_total", kC, "Requests ended by a value that is not finite"},
    {"morphserve_guard_trips_total", kC, "Values found that are not finite, by place"},
    {"morphserve_time_to_first_token_seconds", kH, "Acceptance to the first token"},
    {"morphserve_inter_token_latency_seconds", kH, "Gap between tokens of a sequence"},
    {"morphserve_request_time_per_output_token_seconds", kH, "Mean gap of a request"},
    {"morphserve_e2e_request_latency_seconds", kH, "Acceptance to the end of a request"},
    {"morphserve_request_queue_time_seconds", kH, "Acceptance to the first scheduled chunk"},
    {"morphserve_request_prefill_time_seconds", kH, "First scheduled chunk to the first token"},
    {"morphserve_request_decode_time_seconds", kH, "First token to the last"},
    {"morphserve_request_prompt_tokens", kH, "Prompt tokens of a request"},
    {"morphserve_request_generation_tokens", kH, "Tokens a request produced"},
    {"morphserve_request_params_max_tokens", kH, "Tokens a request allowed"},
    {"morphserve_iteration_tokens", kH, "Token rows of a step"},
    {"morphserve_step_duration_seconds", kH, "Time of a step, by kind"},
    {"morphserve_step_plans", kH, "Layer plans in one step"},
    {"morphserve_plan_info", kG, "Fixed at 1; labels tell what each pointer names"},
    {"morphserve_plan_epoch", kG, "Epoch of the last move of a pointer"},
    {"morphserve_plan_requests_running", kG, "Sequences in the batch, by layer plan"},
    {"morphserve_plan_predicted_tpot_seconds", kG,
     "Time per output token that the last morph predicted of its plan, at its target's load"},
    {"morphserve_plan_quality_ratio", kG,
     "Perplexity of the all-full plan over that of the last morph's plan, by source"},
    {"morphserve_morphs_total", kC, "Morphs that ended, by result"},
    {"morphserve_plan_rollbacks_total", kC, "Morphs that went back, by cause"},
    {"morphserve_morph_phase", kG, "1 for the phase that a morph is in, all 0 when none runs"},
    {"morphserve_morph_duration_seconds", kH, "Start of a morph to its end, by result"},
    {"morphserve_morph_switch_seconds", kH, "Start of a morph to its switch"},
    {"morphserve_autopilot_decisions_total", kC,
     "What the autopilot decided, once a second, by reason"},
    {"morphserve_autopilot_state", kG, "1 for what the autopilot does now"},
    {"morphserve_autopilot_tpot_seconds", kG,
     "Time between tokens at the autopilot's percentile, by source"},
    {"morphserve_cost_model_error_ratio", kG,
     "Predicted over measured time of a step, in the last canary"},
    {"morphserve_engine_step_age_seconds", kG, "Age of the last step while there is work, else 0"},
    {"morphserve_tokens_per_second", kG, "Tokens produced a second, recent mean"},
    {"morphserve_grpc_server_started_total", kC, "Calls begun"},
    {"morphserve_grpc_server_handled_total", kC, "Calls ended, by status code"},
    {"morphserve_grpc_server_handling_seconds", kH, "Time of a call"},
    {"morphserve_stream_write_stalls_total", kC, "Streams ended because nobody read them"},
    {"morphserve_stream_outbox_bytes", kG, "Bytes waiting to be written, all streams"},
    {"morphserve_auth_failures_total", kC, "Calls refused for their credential, by cause"},
    {"morphserve_build_info", kG, "Fixed at 1; labels tell version and commit"},
    {"morphserve_startup_seconds", kG, "Duration of the phases of the start"},
    {"process_cpu_seconds_total", kC, "User and system time of the process"},
    {"process_resident_memory_bytes", kG, "Resident memory"},
    {"process_virtual_memory_bytes", kG, "Virtual memory"},
    {"process_start_time_seconds", kG, "Start of the process, seconds since 1970"},
    {"process_threads", kG, "Threads of the process"},
    {"process_open_fds", kG, "Open file descriptors"},
    {"process_max_fds", kG, "Limit of open file descriptors"},
};

}  // namespace

std::span<const MetricRow> MetricTable() { return kTable; }

const MetricRow* FindMetric(std::string_view name) {
  for (const MetricRow& row : kTable) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

}  // namespace morphserve
