// morphctl autopilot: the standing target of a server, and what its autopilot makes of it.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "morphserve/v1/morph.grpc.pb.h"
#include "server/ctl/commands.h"
#include "server/ctl/message_json.h"
#include "server/ctl/standing_target.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

struct Flags {
  double tpot_ms = 0, percentile = 0, window_s = 0, cool_down_s = 0, hysteresis = 0;
  double quality_min = -1;
  int min_full = -1, max_full = -1;
  uint64_t samples_min = 0;
  bool on = false, off = false, reset = false;
};

constexpr char kHelp[] = R"(Examples:
  morphctl autopilot                               the target, what is measured, the last decision
  morphctl autopilot --tpot-ms 12                  keep 12 ms between tokens from now on
  morphctl autopilot --min-full 6 --max-full 20    with six to twenty full layers
  morphctl autopilot --off                         stop; what serves stays
  morphctl autopilot --reset                       back to the settings morph.autopilot.*

What it sets outlives a restart where the server has a morph.autopilot.target_file.)";

google::protobuf::Duration DurationOf(double seconds) {
  google::protobuf::Duration out;
  out.set_seconds(static_cast<int64_t>(seconds));
  out.set_nanos(static_cast<int32_t>((seconds - static_cast<double>(out.seconds())) * 1e9));
  return out;
}

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9;
}

// The changes; false when there are none and the state is only to be shown.
bool Fill(const Flags& flags, v1::SetAutopilotRequest* request) {
  const size_t before = request->ByteSizeLong();
  if (flags.tpot_ms > 0) request->set_tpot_ms(flags.tpot_ms);
  if (flags.percentile > 0) request->set_percentile(flags.percentile);
  if (flags.min_full >= 0) request->set_full_layers_min(static_cast<uint32_t>(flags.min_full));
  if (flags.max_full >= 0) request->set_full_layers_max(static_cast<uint32_t>(flags.max_full));
  if (flags.window_s > 0) *request->mutable_window() = DurationOf(flags.window_s);
  if (flags.cool_down_s > 0) *request->mutable_cool_down() = DurationOf(flags.cool_down_s);
  if (flags.hysteresis > 0) request->set_hysteresis(flags.hysteresis);
  if (flags.quality_min >= 0) request->set_quality_min(flags.quality_min);
  if (flags.samples_min > 0) request->set_samples_min(flags.samples_min);
  if (flags.off) request->set_enabled(false);
  if (flags.on || (flags.tpot_ms > 0 && !flags.off)) request->set_enabled(true);
  request->set_reset(flags.reset);
  return request->ByteSizeLong() != before;
}

void Print(const v1::AutopilotState& state) {
  const v1::AutopilotTarget& t = state.target();
  std::printf("target    %s\n", TargetText(t).c_str());
  std::printf("source    %s\n", OriginText(state.origin()).c_str());
  std::printf("timing    window %g s, cool-down %g s, hysteresis %g, %d samples\n",
              Seconds(t.window()), Seconds(t.cool_down()), t.hysteresis(),
              static_cast<int>(t.samples_min()));
  if (!state.has_plan()) {
    std::printf("decision  none yet\n");
    return;
  }
  std::printf("plan      %s (%d of %d full)\n", state.plan().plan_id().c_str(),
              state.plan().full_layers(), state.plan().layers());
  const v1::AutopilotMeasurement& m = state.measured();
  if (m.samples() > 0) {
    std::printf("measured  p%g %.3g ms over %d samples at %.1f sequences of %.0f tokens\n",
                t.percentile(), m.tpot_ms(), static_cast<int>(m.samples()), m.running(),
                m.context_tokens());
  } else {
    std::printf("measured  nothing in the window\n");
  }
  std::printf("decision  %s %s: %s\n",
              state.decision() == v1::AUTOPILOT_DECISION_MORPH ? "morph" : "stay",
              SafeForTerminal(state.reason()).c_str(), SafeForTerminal(state.message()).c_str());
  const double left = Seconds(state.cool_down_left());
  if (left > 0) std::printf("waits     %.0f s more\n", left);
  if (!state.last_morph_id().empty()) {
    std::printf("morph     %s was its last\n", SafeForTerminal(state.last_morph_id()).c_str());
  }
  for (const uint32_t k : state.barred_full_layers()) {
    std::printf("barred    %d full layers: its canary failed or a guard tripped\n", k);
  }
}

int Run(Context* context, const Flags& flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const Interrupt::Scope scope(context->interrupt, &call);
  const auto stub = v1::Morph::NewStub((*connection)->admin());
  v1::SetAutopilotRequest change;
  change.set_model(context->model);
  v1::AutopilotState state;
  grpc::Status status;
  if (Fill(flags, &change)) {
    v1::SetAutopilotResponse response;
    status = stub->SetAutopilot(&call, change, &response);
    state = response.state();
  } else {
    v1::GetAutopilotRequest request;
    request.set_model(context->model);
    v1::GetAutopilotResponse response;
    status = stub->GetAutopilot(&call, request, &response);
    state = response.state();
  }
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (context->json) {
    std::printf("%s\n", ToJson(state).c_str());
  } else {
    Print(state);
  }
  return kExitOk;
}

}  // namespace

void RegisterAutopilot(CLI::App* app, Context* context) {
  auto flags = std::make_shared<Flags>();
  CLI::App* autopilot = app->add_subcommand(
      "autopilot", "a standing target that the server morphs towards by itself");
  autopilot->add_option("--tpot-ms", flags->tpot_ms, "time between tokens to keep; switches it on")
      ->check(CLI::PositiveNumber);
  autopilot->add_option("--percentile", flags->percentile, "of the measured times");
  autopilot->add_option("--min-full", flags->min_full, "fewest full layers")
      ->check(CLI::NonNegativeNumber);
  autopilot->add_option("--max-full", flags->max_full, "most full layers")
      ->check(CLI::NonNegativeNumber);
  autopilot->add_option("--window", flags->window_s, "seconds over which it measures");
  autopilot->add_option("--cool-down", flags->cool_down_s, "seconds it waits after a morph");
  autopilot->add_option("--hysteresis", flags->hysteresis, "width of the band around the target");
  autopilot->add_option("--quality-min", flags->quality_min, "least stored quality of a plan");
  autopilot->add_option("--samples-min", flags->samples_min, "times that the window must hold");
  CLI::Option* on = autopilot->add_flag("--on", flags->on, "with the target that it has");
  CLI::Option* off =
      autopilot->add_flag("--off", flags->off, "stop; what serves stays")->excludes(on);
  autopilot->add_flag("--reset", flags->reset, "back to the server's settings")
      ->excludes(on)
      ->excludes(off);
  autopilot->footer(kHelp);
  autopilot->callback([=] { context->run = [=] { return Run(context, *flags); }; });
}

}  // namespace morphserve::ctl
