// The report's first section: the model, the server, the active plan and how it came to be.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/ctl/chart_ticks.h"
#include "server/ctl/html_text.h"
#include "server/ctl/report_page.h"
#include "server/ctl/svg_chart.h"

namespace morphserve::ctl {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string MiB(uint64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

std::string Millions(uint64_t count) {
  return absl::StrFormat("%.1f M", static_cast<double>(count) / 1e6);
}

std::string Share(uint32_t full, uint32_t layers) {
  return absl::StrFormat("%d of %d layers full", full, layers);
}

std::string Facts(const ReportData& data) {
  const v1::ModelInfo& model = data.model;
  const v1::ServerInfo& server = data.server;
  std::string version = server.version();
  if (!server.commit().empty()) version += " (" + server.commit() + ")";
  const absl::Time started = absl::FromUnixSeconds(server.started_at().seconds());
  const std::pair<const char*, std::string> facts[] = {
      {"Model", absl::StrFormat("%s, %s, %s parameters, %d layers, context of %d tokens",
                                model.name(), model.family(), Millions(model.parameters()),
                                model.layers(), model.context_tokens_max())},
      {"Base id", model.base_id()},
      {"Numbers",
       absl::StrFormat("weights %s, cache %s%s", model.weight_dtype(), model.kv_dtype(),
                       model.state_dtype().empty() ? "" : ", states " + model.state_dtype())},
      {"Linear branches", model.morphable()
                              ? absl::StrFormat("%s, %s parameters", model.branch_kind(),
                                                Millions(model.branch_parameters()))
                              : "none: every plan is the dense model"},
      {"Server",
       absl::StrFormat("morphserve %s, %s since %s", version, server.state(),
                       absl::FormatTime("%Y-%m-%d %H:%M UTC", started, absl::UTCTimeZone()))},
      {"Device", server.device() + ": " + server.device_name()},
      {"Cache memory", MiB(server.arena_bytes())},
  };
  std::string out = "<dl>\n";
  for (const auto& [name, value] : facts) {
    if (value.empty()) continue;
    absl::StrAppendFormat(&out, "<dt>%s</dt><dd>%s</dd>\n", name, EscapeHtml(value));
  }
  return out + "</dl>\n";
}

std::string PointersTable(const v1::PlanPointers& pointers) {
  Rows rows = {{"pointer", "plan", "full layers", "set in epoch"}};
  const std::pair<const char*, const v1::PlanRef*> named[] = {{"active", &pointers.active()},
                                                              {"fastest", &pointers.fastest()},
                                                              {"balanced", &pointers.balanced()},
                                                              {"highest", &pointers.highest()}};
  for (const auto& [name, ref] : named) {
    rows.push_back({name, ref->plan_id(), absl::StrFormat("%d", ref->full_layers()),
                    absl::StrFormat("%d", ref->epoch())});
  }
  return HtmlTable(rows);
}

std::string HistoryTable(const v1::GetActivePlanResponse& active) {
  Rows rows = {{"epoch", "plan", "layers"}};
  for (const v1::PlanRef& ref : active.history()) {
    rows.push_back({absl::StrFormat("%d", ref.epoch()), ref.plan_id(),
                    Share(ref.full_layers(), ref.layers())});
  }
  return HtmlTable(rows);
}

std::string StateName(const v1::Plan& plan) {
  switch (plan.state()) {
    case v1::Plan::STATE_COLD: return "not yet checked";
    case v1::Plan::STATE_READY: return "ready";
    case v1::Plan::STATE_WITHDRAWN: return "withdrawn: " + plan.withdrawn_why();
    default: return "";
  }
}

std::string PlansTable(const v1::ListPlansResponse& plans) {
  Rows rows = {{"plan", "full layers", "origin", "state", "running now", "KL", "quality"}};
  for (const v1::Plan& plan : plans.plans()) {
    const v1::Estimate& e = plan.estimate();
    rows.push_back({plan.plan_id(), absl::StrFormat("%d", plan.full_layers()), plan.origin(),
                    StateName(plan), absl::StrFormat("%d", plan.running()),
                    e.has_kl() ? FigureText(e.kl()) : "-",
                    e.has_quality() ? FigureText(e.quality()) : "-"});
  }
  return HtmlTable(rows);
}

}  // namespace

std::string NowSection(const ReportData& data) {
  std::string out = Facts(data);
  const v1::Plan& plan = data.active.plan();
  std::vector<bool> full;
  for (const int kind : plan.layers()) full.push_back(kind == v1::LAYER_KIND_FULL);
  out += RenderStrip(
      absl::StrFormat("Active plan %s: %s", plan.plan_id(),
                      Share(plan.full_layers(), static_cast<uint32_t>(plan.layers_size()))),
      full);
  if (!data.active.running_morph_id().empty()) {
    out += Paragraph("A morph runs now: " + data.active.running_morph_id() + ".");
  }
  out += "<div class=\"charts\"><div><h3>Pointers</h3>\n" + PointersTable(data.active.pointers());
  out += "</div><div><h3>What was active, newest first</h3>\n" + HistoryTable(data.active);
  out += "</div></div>\n<h3>Plan table</h3>\n" + PlansTable(data.plans);
  out += Paragraph(
      "KL is the divergence from the full model in nats a token; quality is the full model's "
      "perplexity over the plan's. A dash: not measured for exactly this set of layers.");
  return out;
}

}  // namespace morphserve::ctl
