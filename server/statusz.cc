#include "server/statusz.h"

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "server/settings_load.h"
#include "server/version.h"

namespace morphserve {
namespace {

std::string ModelPart(const ServedModel& model) {
  const EngineInfo& info = model.engine->info();
  return absl::StrFormat(
      "model\n"
      "  name: %s\n"
      "  architecture: %s, %d layers, %d parameters, vocabulary %d\n"
      "  branches: %s\n"
      "  weights: %s, KV: %s, context: %d tokens\n"
      "  device: %s\n"
      "  chat template: %s\n"
      "  memory: %s\n\n",
      model.name, info.architecture, info.layers, info.parameters, info.vocab,
      info.branch_kind.empty()
          ? "none"
          : absl::StrFormat("%s, %d parameters", info.branch_kind, info.branch_parameters),
      info.weight_dtype, info.kv_dtype, info.context_tokens, info.device_name,
      model.chat_template != nullptr ? "yes" : "none", info.memory.text);
}

std::string LoadPart(const Engine& engine) {
  const EngineLoad load = engine.GetLoad();
  const CacheUsage& use = load.cache;
  return absl::StrFormat(
      "load\n"
      "  step: %d, median %.2f ms, age %.1f s\n"
      "  running: %d, waiting: %d with %d prompt tokens, preempted: %d, oldest wait %.0f ms\n"
      "  tokens per second: %.1f\n"
      "  pages: %d in all, %d running, %d cached, %d free\n"
      "  slots: %d in all, %d running, %d cached, %d free, %d quarantined\n"
      "  prefix cache: %d entries, %d with a state; spilled: %d bytes; moved units: %d\n\n",
      load.step, load.step_ms_p50, load.step_age_s, load.running, load.waiting, load.waiting_tokens,
      load.preempted, load.oldest_wait_ms, load.tokens_per_second, use.pages_total,
      use.pages_running, use.pages_cached, use.pages_free, use.slots_total, use.slots_running,
      use.slots_cached, use.slots_free, use.slots_quarantined, use.entries, use.snapshots,
      use.spilled_bytes, use.units_moved);
}

// "active highest", the pointers that name the plan.
std::string PointersTo(const LayerPlan& plan, const PlanRegistry& plans) {
  constexpr const char* kNames[kPlanPointers] = {"active", "fastest", "balanced", "highest"};
  std::string out;
  for (int32_t i = 0; i < kPlanPointers; ++i) {
    if (plans.Get(static_cast<PlanPointer>(i))->id() != plan.id()) continue;
    out += absl::StrFormat("%s%s", out.empty() ? "" : " ", kNames[i]);
  }
  return out;
}

std::string PlanPart(Engine* engine) {
  constexpr const char* kStates[] = {"cold", "ready", "withdrawn"};
  std::string out = absl::StrFormat("plans, epoch %d\n", engine->plans().epoch());
  const int64_t context = engine->info().context_tokens;
  for (const PlanStatus& status : engine->PlanStatuses()) {
    const LayerPlan& plan = *status.entry.plan;
    const std::string pointers = PointersTo(plan, engine->plans());
    std::string kinds;
    for (const LayerKind kind : plan.kinds()) kinds += kind == LayerKind::kFull ? 'F' : 'L';
    out += absl::StrFormat(
        "  %s %s %dF/%dL, %.1f MiB per sequence of %d tokens, running %d, %s%s, from %s%s%s\n",
        plan.id(), kinds, plan.full_layers(), plan.layers() - plan.full_layers(),
        static_cast<double>(status.memory.SequenceBytes(context)) / (1 << 20), context,
        status.running, kStates[static_cast<size_t>(status.entry.state)],
        status.measured.has_value()
            ? absl::StrFormat(", step %.2f ms at %.1f sequences of %.0f tokens",
                              status.measured->step_ms, status.measured->running,
                              status.measured->context)
            : "",
        status.entry.origin, pointers.empty() ? "" : ": ", pointers);
  }
  return out + "\n";
}

std::string StepPart(const ServerMetrics& metrics) {
  constexpr const char* kKinds[] = {"decode", "prefill", "mixed"};
  std::string out = "last steps\n";
  for (const ServerMetrics::Step& step : metrics.LastSteps()) {
    out += absl::StrFormat("  %s %-7s %8.2f ms, %4d rows, %4d prompt, %4d output, %d plans\n",
                           absl::FormatTime("%H:%M:%E3S", step.at, absl::UTCTimeZone()),
                           kKinds[static_cast<size_t>(step.report.kind)], step.report.seconds * 1e3,
                           step.report.rows, step.report.prompt_tokens, step.report.output_tokens,
                           step.report.plans);
  }
  return out + "\n";
}

}  // namespace

std::string RenderStatus(const ServingState& state, const ServerMetrics& metrics,
                         const std::string& drain) {
  std::string out = absl::StrFormat(
      "%s\n\nserver\n  state: %s%s%s\n  started: %s (%s ago)\n  instance: %s\n"
      "  settings digest: %s\n\n",
      VersionLine(), ServingPhaseName(state.phase()), drain.empty() ? "" : ", ", drain,
      absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", state.started_at(), absl::UTCTimeZone()),
      absl::FormatDuration(absl::Trunc(absl::Now() - state.started_at(), absl::Seconds(1))),
      state.instance_id(), state.config_digest());
  if (const ServedModel* model = state.model()) {
    out += ModelPart(*model) + LoadPart(*model->engine) + PlanPart(model->engine);
  }
  out += StepPart(metrics);
  out += "settings\n" + PrintSettings(state.config(), nullptr);
  return out;
}

}  // namespace morphserve
