#include "server/statusz.h"

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "server/settings_load.h"
#include "server/version.h"

namespace morphserve {
namespace {

std::string ModelPart(const ServedModel& model) {
  const EngineInfo& info = model.engine->info();
  std::string out = absl::StrFormat(
      "model\n"
      "  name: %s\n"
      "  architecture: %s, %d layers, %d parameters, vocabulary %d\n"
      "  weights: %s, KV: %s, context: %d tokens\n"
      "  device: %s\n"
      "  chat template: %s\n"
      "  active plan: %s, %d of %d layers full\n"
      "  memory: %s\n\n",
      model.name, info.architecture, info.layers, info.parameters, info.vocab, info.weight_dtype,
      info.kv_dtype, info.context_tokens, info.device_name,
      model.chat_template != nullptr ? "yes" : "none", info.active_plan_id, info.full_layers,
      info.layers, info.memory.text);
  const EngineLoad load = model.engine->GetLoad();
  out += absl::StrFormat(
      "load\n"
      "  step: %d, median %.2f ms, age %.1f s\n"
      "  running: %d, waiting: %d with %d prompt tokens, preempted: %d, oldest wait %.0f ms\n"
      "  tokens per second: %.1f\n"
      "  pages: %d in all, %d running, %d cached, %d free\n\n",
      load.step, load.step_ms_p50, load.step_age_s, load.running, load.waiting, load.waiting_tokens,
      load.preempted, load.oldest_wait_ms, load.tokens_per_second, load.pages_total,
      load.pages_running, load.pages_cached, load.pages_free);
  return out;
}

std::string StepPart(const ServerMetrics& metrics) {
  constexpr const char* kKinds[] = {"decode", "prefill", "mixed"};
  std::string out = "last steps\n";
  for (const ServerMetrics::Step& step : metrics.LastSteps()) {
    out += absl::StrFormat("  %s %-7s %8.2f ms, %4d rows, %4d prompt, %4d output\n",
                           absl::FormatTime("%H:%M:%E3S", step.at, absl::UTCTimeZone()),
                           kKinds[static_cast<size_t>(step.report.kind)], step.report.seconds * 1e3,
                           step.report.rows, step.report.prompt_tokens, step.report.output_tokens);
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
  if (const ServedModel* model = state.model()) out += ModelPart(*model);
  out += StepPart(metrics);
  out += "settings\n" + PrintSettings(state.config(), nullptr);
  return out;
}

}  // namespace morphserve
