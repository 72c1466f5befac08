// morphctl plans and scores: the layer plans that a server knows, and how its layers rank.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "morphserve/v1/morph.grpc.pb.h"
#include "server/ctl/commands.h"
#include "server/ctl/message_json.h"
#include "server/ctl/standing_target.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

using Rows = std::vector<std::vector<std::string>>;

struct PlanFlags {
  uint64_t context = 4096;
  std::string method;
  bool plans = false;
};

constexpr char kPlansHelp[] = R"(Examples:
  morphctl plans                          what is known, what is active, what it costs
  morphctl plans --context 8192           memory of a sequence of 8192 tokens
  morphctl chat --plan fastest            use a plan: an id, a number of full layers, full,
  morphctl generate --plan 8 --prompt Hi  fastest, balanced or highest

Layers: F full attention, L linear, first layer first.)";

constexpr char kScoresHelp[] = R"(Examples:
  morphctl scores                         layers, the one most worth keeping full first
  morphctl scores --method interaction    by another stored method
  morphctl scores --plans                 the plan of every number of full layers)";

std::string Strip(const v1::Plan& plan) {
  std::string out;
  for (const int kind : plan.layers()) out += kind == v1::LAYER_KIND_FULL ? 'F' : 'L';
  return out;
}

std::string MemoryAt(const v1::Estimate& estimate, uint64_t context) {
  constexpr uint64_t kPageTokens = 64;  // Pages are taken whole.
  const uint64_t held = (context + kPageTokens - 1) / kPageTokens * kPageTokens;
  const uint64_t bytes = held * estimate.kv_bytes_per_token() + estimate.state_bytes_per_sequence();
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

std::string StateName(const v1::Plan& plan) {
  switch (plan.state()) {
    case v1::Plan::STATE_COLD: return "cold";
    case v1::Plan::STATE_READY: return "ready";
    case v1::Plan::STATE_WITHDRAWN:
      return absl::StrFormat("withdrawn: %s", SafeForTerminal(plan.withdrawn_why()));
    default: return "";
  }
}

std::string PointersTo(const std::string& plan_id, const v1::PlanPointers& pointers) {
  std::string out;
  const std::pair<const char*, const v1::PlanRef*> named[] = {{"active", &pointers.active()},
                                                              {"fastest", &pointers.fastest()},
                                                              {"balanced", &pointers.balanced()},
                                                              {"highest", &pointers.highest()}};
  for (const auto& [name, ref] : named) {
    if (ref->plan_id() == plan_id) out += (out.empty() ? "" : " ") + std::string(name);
  }
  return out;
}

std::string StepTime(const v1::Plan& plan) {
  if (!plan.has_measured()) return "-";
  return absl::StrFormat("%.2f ms (%.0f x %.0f)", plan.measured().step_ms(),
                         plan.measured().running(), plan.measured().context_tokens());
}

std::string Optional(bool has, double value) { return has ? absl::StrFormat("%.4f", value) : "-"; }

int PrintPlans(const v1::ListPlansResponse& response, const PlanFlags& flags) {
  Rows rows = {{"plan", "full", "layers", absl::StrFormat("memory at %d", flags.context),
                "step (sequences x tokens)", "running", "state", "origin", "pointers"}};
  for (const v1::Plan& plan : response.plans()) {
    rows.push_back({plan.plan_id(), absl::StrFormat("%d", plan.full_layers()), Strip(plan),
                    MemoryAt(plan.estimate(), flags.context), StepTime(plan),
                    absl::StrFormat("%d", plan.running()), StateName(plan),
                    SafeForTerminal(plan.origin()),
                    PointersTo(plan.plan_id(), response.pointers())});
  }
  std::fputs(RenderTable(rows).c_str(), stdout);
  if (response.has_autopilot()) {
    std::printf("autopilot: %s; from %s\n", TargetText(response.autopilot().target()).c_str(),
                OriginText(response.autopilot().origin()).c_str());
  }
  return kExitOk;
}

int RunPlans(Context* context, const PlanFlags& flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  v1::ListPlansRequest request;
  request.set_model(context->model);
  v1::ListPlansResponse response;
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const grpc::Status status =
      v1::Morph::NewStub((*connection)->admin())->ListPlans(&call, request, &response);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (!context->json) return PrintPlans(response, flags);
  std::printf("%s\n", ToJson(response).c_str());
  return kExitOk;
}

void PrintScores(const v1::GetLayerScoresResponse& response) {
  std::vector<v1::LayerScore> scores(response.scores().begin(), response.scores().end());
  std::sort(scores.begin(), scores.end(),
            [](const auto& a, const auto& b) { return a.rank() < b.rank(); });
  constexpr double kBarColumns = 40;
  double highest = 0;
  for (const v1::LayerScore& score : scores) highest = std::max(highest, score.score());
  Rows rows = {{"rank", "layer", "score", ""}};
  for (const v1::LayerScore& score : scores) {
    const double share = highest > 0 ? std::max(score.score() / highest, 0.0) : 0;
    rows.push_back({absl::StrFormat("%d", score.rank()), absl::StrFormat("%d", score.layer()),
                    Optional(score.has_score(), score.score()),
                    std::string(static_cast<size_t>(share * kBarColumns + 0.5), '#')});
  }
  std::fputs(RenderTable(rows).c_str(), stdout);
}

void PrintBudgets(const v1::GetLayerScoresResponse& response, const PlanFlags& flags) {
  Rows rows = {{"full", "plan", "layers", absl::StrFormat("memory at %d", flags.context), "KL",
                "quality", "recall"}};
  for (const v1::Plan& plan : response.by_budget()) {
    const v1::Estimate& estimate = plan.estimate();
    rows.push_back({absl::StrFormat("%d", plan.full_layers()), plan.plan_id(), Strip(plan),
                    MemoryAt(estimate, flags.context), Optional(estimate.has_kl(), estimate.kl()),
                    Optional(estimate.has_quality(), estimate.quality()),
                    Optional(estimate.has_recall(), estimate.recall())});
  }
  std::fputs(RenderTable(rows).c_str(), stdout);
}

int RunScores(Context* context, const PlanFlags& flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  v1::GetLayerScoresRequest request;
  request.set_model(context->model);
  request.set_method(flags.method);
  v1::GetLayerScoresResponse response;
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const grpc::Status status =
      v1::Morph::NewStub((*connection)->admin())->GetLayerScores(&call, request, &response);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (context->json) {
    std::printf("%s\n", ToJson(response).c_str());
    return kExitOk;
  }
  std::string stored;
  for (const std::string& name : response.methods()) stored += " " + SafeForTerminal(name);
  std::printf("method %s; stored:%s\n\n", SafeForTerminal(response.method()).c_str(),
              stored.c_str());
  if (flags.plans) {
    PrintBudgets(response, flags);
  } else if (response.scores().empty()) {
    std::printf("no scores: evenly spaced layers stay full; --plans shows them\n");
  } else {
    PrintScores(response);
  }
  return kExitOk;
}

void AddContext(CLI::App* command, PlanFlags* flags) {
  command->add_option("--context", flags->context, "tokens of the sequence whose memory is shown")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
}

}  // namespace

void RegisterPlans(CLI::App* app, Context* context) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* plans = app->add_subcommand("plans", "the layer plans that the server knows");
  AddContext(plans, flags.get());
  plans->footer(kPlansHelp);
  plans->callback([=] { context->run = [=] { return RunPlans(context, *flags); }; });
  CLI::App* scores = app->add_subcommand("scores", "how the layers rank");
  AddContext(scores, flags.get());
  scores->add_option("--method", flags->method, "a stored method; default: the server's");
  scores->add_flag("--plans", flags->plans, "show the plan of every number of full layers");
  scores->footer(kScoresHelp);
  scores->callback([=] { context->run = [=] { return RunScores(context, *flags); }; });
}

}  // namespace morphserve::ctl
