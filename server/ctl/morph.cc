// morphctl morph, rollback and costs: from a latency target to another active plan while requests
// run, and back.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "morphserve/v1/morph.grpc.pb.h"
#include "server/ctl/commands.h"
#include "server/ctl/message_json.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

struct MorphFlags {
  double tpot_ms = 0, ttft_ms = 0, quality_min = 0, percentile = 0;
  uint64_t kv_bytes = 0;
  int full_layers = -1;
  uint32_t batch = 0, context = 0, prompt = 0;
  std::string plan, selector, key, expect, pointer;
  bool reselect = false, dry_run = false, retry_lower = false, no_auto_rollback = false;
  double watch_s = -1, traffic = 0, kl_max = -1;
  double recall_min = -1;
  int canary = -1;
  int retry_min_full = -1, retries_max = 0;
};
struct RollbackFlags {
  std::string to, expect, pointer, key;
  bool withdraw = false, abort_running = false;
};

constexpr char kMorphHelp[] = R"(Examples:
  morphctl morph --tpot-ms 12 --context 4096 --batch 4   the best plan that meets 12 ms a token
  morphctl morph --full-layers 10 --watch 0              ten layers stay full; no watching
  morphctl morph --tpot-ms 12 --dry-run                  what it would do
  morphctl morph --full-layers 10 --reselect --selector interaction
                                                         rank the layers anew, on this server
  morphctl morph --plan p-1f20                           a plan of `morphctl plans`
  morphctl rollback                                      back to the plan before

Exit code: 0 applied, 1 failed, rolled back or refused.)";

// Sent again it attaches to the same morph; so it must not be guessed twice.
std::string RandomKey() {
  std::random_device device;
  return absl::StrFormat("ctl-%08x%08x", device(), device());
}

v1::QualityTier PointerOf(const std::string& name) {
  if (name == "fastest") return v1::QUALITY_TIER_FASTEST;
  if (name == "balanced") return v1::QUALITY_TIER_BALANCED;
  if (name == "highest") return v1::QUALITY_TIER_HIGHEST;
  return v1::QUALITY_TIER_UNSPECIFIED;
}

v1::PlanSpec SpecOf(const MorphFlags& flags) {
  v1::PlanSpec spec;
  if (!flags.plan.empty()) {
    spec.set_plan_id(flags.plan);
    return spec;
  }
  v1::Target* target = spec.mutable_target();
  if (flags.tpot_ms > 0) target->set_tpot_ms(flags.tpot_ms);
  if (flags.ttft_ms > 0) target->set_ttft_ms(flags.ttft_ms);
  if (flags.kv_bytes > 0) target->set_kv_bytes(flags.kv_bytes);
  if (flags.full_layers >= 0) target->set_full_layers(static_cast<uint32_t>(flags.full_layers));
  if (flags.quality_min > 0) target->set_quality_min(flags.quality_min);
  if (flags.percentile > 0) target->set_percentile(flags.percentile);
  if (!flags.selector.empty()) target->set_selector(flags.selector);
  if (flags.reselect) target->set_mode(v1::SELECT_MODE_RESELECT);
  if (flags.batch > 0) target->mutable_workload()->set_running(flags.batch);
  if (flags.context > 0) target->mutable_workload()->set_context_tokens(flags.context);
  if (flags.prompt > 0) target->mutable_workload()->set_prompt_tokens(flags.prompt);
  return spec;
}

std::string Ms(bool has, double value) { return has ? absl::StrFormat("%.2f ms", value) : "-"; }

std::string PhaseName(v1::MorphProgress::Phase phase) {
  const std::string name = v1::MorphProgress::Phase_Name(phase);
  constexpr size_t kPrefix = sizeof("PHASE_") - 1;
  return name.size() > kPrefix ? name.substr(kPrefix) : name;
}

std::string RefText(const v1::PlanRef& ref) {
  return absl::StrFormat("%s (%d of %d full)", ref.plan_id(), ref.full_layers(), ref.layers());
}

void PrintEvent(const v1::MorphProgress& event) {
  std::string line =
      absl::StrFormat("%-11s %s", PhaseName(event.phase()), SafeForTerminal(event.message()));
  if (!event.reason().empty()) line += " [" + SafeForTerminal(event.reason()) + "]";
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

void PrintOutcome(const v1::MorphProgress& last) {
  const auto estimate = [](const char* name, const v1::Estimate& e) {
    std::printf("%s %s a token", name, Ms(e.has_tpot_ms(), e.tpot_ms()).c_str());
    if (e.has_samples()) {
      std::printf(" at p%g of %d", e.percentile(), static_cast<int>(e.samples()));
    } else if (e.has_tpot_margin_ms()) {
      std::printf(" (p%g: %.2f ms)", e.percentile(), e.tpot_ms() + e.tpot_margin_ms());
    }
    std::printf(" at %d x %d tokens", e.at().running(), e.at().context_tokens());
    if (e.has_kl()) std::printf(", KL %.4f", e.kl());
    if (e.has_quality()) std::printf(", quality %.4f", e.quality());
    if (e.has_recall()) std::printf(", recall %.3f", e.recall());
    std::printf("\n");
  };
  std::printf("from      %s\n", RefText(last.from()).c_str());
  if (last.has_to()) std::printf("to        %s\n", RefText(last.to()).c_str());
  if (last.has_predicted()) estimate("predicted", last.predicted());
  if (last.has_measured()) estimate("measured ", last.measured());
}

int RunDry(Context* context, const Connection& connection, const MorphFlags& flags) {
  v1::ProposePlanRequest request;
  request.set_model(context->model);
  *request.mutable_spec() = SpecOf(flags);
  request.set_alternatives(3);
  v1::ProposePlanResponse response;
  grpc::ClientContext call;
  connection.Prepare(&call);
  const Interrupt::Scope scope(context->interrupt, &call);
  const grpc::Status status =
      v1::Morph::NewStub(connection.admin())->ProposePlan(&call, request, &response);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (context->json) {
    std::printf("%s\n", ToJson(response).c_str());
    return response.feasible() ? kExitOk : kExitFailed;
  }
  std::printf("%s\n", SafeForTerminal(response.why()).c_str());
  std::vector<std::vector<std::string>> rows = {
      {"plan", "full", "a token", "first token", "KL", "quality", "to linear", "to full"}};
  for (const v1::Proposal& p : response.proposals()) {
    const v1::Estimate& e = p.plan().estimate();
    rows.push_back({p.plan().plan_id(), absl::StrFormat("%d", p.plan().full_layers()),
                    Ms(e.has_tpot_ms(), e.tpot_ms()), Ms(e.has_ttft_ms(), e.ttft_ms()),
                    e.has_kl() ? absl::StrFormat("%.4f", e.kl()) : "-",
                    e.has_quality() ? absl::StrFormat("%.4f", e.quality()) : "-",
                    absl::StrFormat("%d", p.to_linear_size()),
                    absl::StrFormat("%d", p.to_full_size())});
  }
  if (response.feasible()) std::fputs(RenderTable(rows).c_str(), stdout);
  return response.feasible() ? kExitOk : kExitFailed;
}

v1::MorphRequest RequestOf(const Context& context, const MorphFlags& flags) {
  v1::MorphRequest request;
  request.set_model(context.model);
  request.set_idempotency_key(flags.key.empty() ? RandomKey() : flags.key);
  *request.mutable_spec() = SpecOf(flags);
  if (!flags.expect.empty()) request.set_expected_active_plan(flags.expect);
  request.set_pointer(PointerOf(flags.pointer));
  if (flags.canary >= 0) request.mutable_canary()->set_prompts(static_cast<uint32_t>(flags.canary));
  if (flags.kl_max >= 0) request.mutable_canary()->set_kl_max(flags.kl_max);
  if (flags.recall_min >= 0) request.mutable_canary()->set_recall_min(flags.recall_min);
  if (flags.watch_s >= 0) {
    request.mutable_watch()->set_seconds(static_cast<int64_t>(flags.watch_s));
    const double rest = flags.watch_s - static_cast<double>(request.watch().seconds());
    request.mutable_watch()->set_nanos(static_cast<int32_t>(rest * 1e9));
  }
  if (flags.no_auto_rollback) request.set_auto_rollback(false);
  if (flags.traffic > 0) request.set_traffic(flags.traffic);
  request.set_retry_lower(flags.retry_lower);
  if (flags.retry_min_full >= 0) {
    request.set_retry_full_layers_min(static_cast<uint32_t>(flags.retry_min_full));
  }
  if (flags.retries_max > 0) request.set_retries_max(static_cast<uint32_t>(flags.retries_max));
  return request;
}

int RunMorph(Context* context, const MorphFlags& flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  if (flags.dry_run) return RunDry(context, **connection, flags);
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const Interrupt::Scope scope(context->interrupt, &call);
  const auto reader =
      v1::Morph::NewStub((*connection)->admin())->Morph(&call, RequestOf(*context, flags));
  constexpr double kShown = 0.1;  // Progress between two lines where nothing can be rewritten.
  v1::MorphProgress event, last;
  ProgressLine progress;
  double shown = 0;
  while (reader->Read(&event)) {
    if (context->json) {
      std::printf("%s\n", ToJson(event).c_str());
      std::fflush(stdout);
    } else if (event.phase() == last.phase() && event.fraction() > 0 && event.fraction() < 1) {
      progress.Show(static_cast<int64_t>(event.fraction() * 100), 100,
                    PhaseName(event.phase()) + " " + SafeForTerminal(event.message()));
      const bool news = event.message() != last.message() && event.fraction() >= shown + kShown;
      if (news && !progress.enabled()) {
        PrintEvent(event);
        shown = event.fraction();
      }
    } else if (event.phase() != last.phase() || event.message() != last.message()) {
      progress.Clear();
      PrintEvent(event);
      shown = event.fraction() < 1 ? event.fraction() : 0;
    }
    last = event;
  }
  progress.Clear();
  const grpc::Status status = reader->Finish();
  if (!status.ok()) {
    if (context->interrupt->requested() && !last.morph_id().empty()) {
      std::fprintf(stderr, "the morph goes on; `morphctl rollback` ends it\n");
    }
    return Complain(Explain(status), kExitFailed);
  }
  if (!context->json) PrintOutcome(last);
  return last.phase() == v1::MorphProgress::PHASE_APPLIED && last.reason().empty() ? kExitOk
                                                                                   : kExitFailed;
}

int RunRollback(Context* context, const RollbackFlags& flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  v1::RollbackPlanRequest request;
  request.set_model(context->model);
  request.set_idempotency_key(flags.key.empty() ? RandomKey() : flags.key);
  request.set_pointer(PointerOf(flags.pointer));
  if (!flags.to.empty()) request.set_to_plan_id(flags.to);
  if (!flags.expect.empty()) request.set_expected_active_plan(flags.expect);
  request.set_withdraw(flags.withdraw);
  request.set_abort_running(flags.abort_running);
  v1::RollbackPlanResponse response;
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const Interrupt::Scope scope(context->interrupt, &call);
  const grpc::Status status =
      v1::Morph::NewStub((*connection)->admin())->RollbackPlan(&call, request, &response);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (context->json) {
    std::printf("%s\n", ToJson(response).c_str());
    return kExitOk;
  }
  std::printf("from      %s\nto        %s\n", RefText(response.from()).c_str(),
              RefText(response.to()).c_str());
  if (flags.abort_running) std::printf("ended     %d requests\n", response.aborted());
  return kExitOk;
}

int RunCosts(Context* context, bool refresh) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  v1::GetCostsRequest request;
  request.set_model(context->model);
  request.set_refresh(refresh);
  v1::GetCostsResponse response;
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const Interrupt::Scope scope(context->interrupt, &call);
  const grpc::Status status =
      v1::Morph::NewStub((*connection)->admin())->GetCosts(&call, request, &response);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (context->json) {
    std::printf("%s\n", ToJson(response).c_str());
    return kExitOk;
  }
  const auto at = [&](const v1::CostTerms& t, uint32_t k, double tokens) {
    return absl::StrFormat("%.2f ms", t.base_ms() + k * (t.layer_ms() + t.token_ms() * tokens));
  };
  const uint32_t all = response.layers();
  std::vector<std::vector<std::string>> rows = {{"step", "rows", "all linear", "all full at 1K",
                                                 "all full at 8K", "half full at 8K",
                                                 "break-even"}};
  for (const v1::CostTerms& t : response.terms()) {
    rows.push_back(
        {t.prefill() ? "prefill" : "decode", absl::StrFormat("%d", t.rows()), at(t, 0, 0),
         at(t, all, 1024), at(t, all, 8192), at(t, all / 2, 8192),
         t.has_break_even_tokens() ? absl::StrFormat("%.0f", t.break_even_tokens()) : "-"});
  }
  std::fputs(RenderTable(rows).c_str(), stdout);
  std::printf("%d measured steps; error %.1f %% of decode steps, %.1f %% of prefill chunks\n",
              response.points(), 100 * response.decode_error(), 100 * response.prefill_error());
  return kExitOk;
}

void AddPointer(CLI::App* command, std::string* pointer) {
  command->add_option("--pointer", *pointer, "active (default), fastest, balanced or highest")
      ->check(CLI::IsMember({"active", "fastest", "balanced", "highest"}));
}

void AddTarget(CLI::App* morph, MorphFlags* flags) {
  morph->add_option("--tpot-ms", flags->tpot_ms, "time per output token to reach")
      ->check(CLI::PositiveNumber);
  morph->add_option("--ttft-ms", flags->ttft_ms, "time to the first token to reach")
      ->check(CLI::PositiveNumber);
  morph->add_option("--kv-bytes", flags->kv_bytes, "memory of one sequence to stay within");
  morph->add_option("--full-layers", flags->full_layers, "exactly so many full layers")
      ->check(CLI::NonNegativeNumber);
  morph->add_option("--batch", flags->batch, "sequences running together; default: as lately");
  morph->add_option("--context", flags->context, "tokens of each; default: as lately");
  morph->add_option("--prompt", flags->prompt, "tokens of a prompt; default: the context");
  morph->add_option("--quality-min", flags->quality_min, "least quality, relative to all full");
  morph->add_option("--percentile", flags->percentile, "of the latency goals; default 50");
  morph->add_option("--plan", flags->plan, "a known plan instead of a target");
  morph->add_option("--selector", flags->selector, "whose ranking of the layers");
  morph->add_flag(
      "--reselect", flags->reselect,
      "rank the layers anew, on this server; --selector: flashmorph, the default and longest, "
      "interaction, interaction_gates, local_kl, halo, uniform or random");
}

}  // namespace

void RegisterMorph(CLI::App* app, Context* context) {
  auto flags = std::make_shared<MorphFlags>();
  CLI::App* morph = app->add_subcommand("morph", "change the plan that serves, live");
  AddTarget(morph, flags.get());
  AddPointer(morph, &flags->pointer);
  morph->add_flag("--dry-run", flags->dry_run, "show the plan, change nothing");
  morph->add_option("--watch", flags->watch_s, "seconds to watch the plan; default: the server's");
  morph->add_option("--canary", flags->canary, "probe prompts, 0 to 8; default: the server's");
  morph->add_option("--kl-max", flags->kl_max, "divergence that the canary passes");
  morph->add_option("--recall-min", flags->recall_min, "share of passkeys it must get right");
  morph->add_option("--traffic", flags->traffic, "share of new requests until applied");
  CLI::Option* retry = morph->add_flag("--retry-lower", flags->retry_lower,
                                       "--tpot-ms missed: try every lower number of full layers");
  morph->add_option("--retry-min-full", flags->retry_min_full, "but not fewer than these")
      ->check(CLI::NonNegativeNumber)
      ->needs(retry);
  morph->add_option("--retries-max", flags->retries_max, "and no more plans than these")
      ->check(CLI::PositiveNumber)
      ->needs(retry);
  morph->add_flag("--no-auto-rollback", flags->no_auto_rollback, "only report a disappointment");
  morph->add_option("--expect", flags->expect, "refuse unless this plan is active");
  morph->add_option("--key", flags->key, "idempotency key; default: random");
  morph->footer(kMorphHelp);
  morph->callback([=] { context->run = [=] { return RunMorph(context, *flags); }; });

  auto back = std::make_shared<RollbackFlags>();
  CLI::App* rollback = app->add_subcommand("rollback", "go back to the plan before");
  AddPointer(rollback, &back->pointer);
  rollback->add_option("--to", back->to, "a plan id instead of the one before");
  rollback->add_option("--expect", back->expect, "refuse unless this plan is active");
  rollback->add_flag("--withdraw", back->withdraw, "bar the plan that is left from new use");
  rollback->add_flag("--abort-running", back->abort_running, "end its requests");
  rollback->add_option("--key", back->key, "idempotency key; default: random");
  rollback->callback([=] { context->run = [=] { return RunRollback(context, *back); }; });

  auto refresh = std::make_shared<bool>(false);
  CLI::App* costs = app->add_subcommand("costs", "what steps cost on the server's machine");
  costs->add_flag("--refresh", *refresh, "measure anew");
  costs->callback([=] { context->run = [=] { return RunCosts(context, *refresh); }; });
}

}  // namespace morphserve::ctl
