#include "server/ctl/bench_report.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "absl/strings/str_format.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

double Quantile(const std::vector<double>& sorted, double q) {
  const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(sorted.size())));
  return sorted[std::min(rank == 0 ? 0 : rank - 1, sorted.size() - 1)];
}

struct Latencies {
  double ttft_ms = 0, e2el_ms = 0;
  std::optional<double> tpot_ms;
};

std::optional<Latencies> LatenciesOf(const Outcome& outcome) {
  if (!outcome.ok || outcome.messages.empty()) return std::nullopt;
  Latencies out;
  out.ttft_ms = (outcome.messages.front().at - outcome.sent_at) * 1000;
  out.e2el_ms = (outcome.ended_at - outcome.sent_at) * 1000;
  if (outcome.completion_tokens >= 2) {
    out.tpot_ms = (out.e2el_ms - out.ttft_ms) / static_cast<double>(outcome.completion_tokens - 1);
  }
  return out;
}

bool Meets(const Latencies& l, const Objectives& o) {
  return (!o.ttft_ms || l.ttft_ms <= *o.ttft_ms) && (!o.e2el_ms || l.e2el_ms <= *o.e2el_ms) &&
         (!o.tpot_ms || !l.tpot_ms || *l.tpot_ms <= *o.tpot_ms);
}

void AddGaps(const Outcome& outcome, std::vector<double>* itl_ms, int64_t* messages,
             int64_t* coalesced) {
  for (size_t i = 0; i < outcome.messages.size(); ++i) {
    const TokenMessage& message = outcome.messages[i];
    ++*messages;
    if (message.tokens > 1) ++*coalesced;
    if (i == 0) continue;
    const double gap_ms = (message.at - outcome.messages[i - 1].at) * 1000;
    for (int32_t t = 0; t < message.tokens; ++t) itl_ms->push_back(gap_ms / message.tokens);
  }
}

std::vector<std::string> Row(const char* name, const Summary& s) {
  const auto ms = [](double value) { return absl::StrFormat("%.2f", value); };
  return {name, ms(s.mean), ms(s.p50), ms(s.p90), ms(s.p99), absl::StrFormat("%d", s.count)};
}

nlohmann::json SummaryJson(const Summary& s) {
  return {{"count", s.count}, {"mean", s.mean}, {"p50", s.p50}, {"p90", s.p90}, {"p99", s.p99}};
}

}  // namespace

Summary Summarize(std::vector<double> samples) {
  Summary out;
  out.count = static_cast<int64_t>(samples.size());
  if (samples.empty()) return out;
  std::sort(samples.begin(), samples.end());
  out.mean =
      std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
  out.p50 = Quantile(samples, 0.50);
  out.p90 = Quantile(samples, 0.90);
  out.p99 = Quantile(samples, 0.99);
  return out;
}

Outcome ToOutcome(const StreamResult& result) {
  Outcome out;
  out.ok = result.status.ok();
  if (!out.ok) {
    out.error = ReasonOf(result.status);
    if (out.error.empty()) out.error = Explain(result.status);
  }
  out.sent_at = result.sent_at;
  out.ended_at = result.ended_at;
  if (const v1::PlanRef& plan = result.started.plan(); !plan.plan_id().empty()) {
    out.plan = absl::StrFormat("%s %dF/%dL", plan.plan_id(), plan.full_layers(),
                               plan.layers() - plan.full_layers());
  }
  out.cached_tokens = result.done.usage().cached_tokens();
  out.prompt_tokens = result.done.usage().prompt_tokens();
  out.completion_tokens = result.done.usage().completion_tokens();
  out.messages = result.messages;
  return out;
}

BenchReport Measure(std::vector<Outcome> outcomes, const Objectives& objectives, int64_t ramp) {
  BenchReport report;
  report.has_objectives = objectives.ttft_ms || objectives.tpot_ms || objectives.e2el_ms;
  std::sort(outcomes.begin(), outcomes.end(),
            [](const Outcome& a, const Outcome& b) { return a.sent_at < b.sent_at; });
  const auto all = static_cast<int64_t>(outcomes.size());
  if (all - 2 * ramp < 1) ramp = 0;
  // Throughput counts what happened inside the window: whole requests by when they ended, tokens by
  // when they came.
  const double begin = outcomes.empty() ? 0 : outcomes[static_cast<size_t>(ramp)].sent_at;
  double end = begin;
  for (int64_t i = 0; i < all; ++i) {
    const Outcome& outcome = outcomes[static_cast<size_t>(i)];
    if (ramp == 0) end = std::max(end, outcome.ended_at);
  }
  if (ramp > 0) end = outcomes[static_cast<size_t>(all - ramp)].sent_at;
  report.window_s = end - begin;
  std::vector<double> ttft, tpot, itl, e2el;
  std::map<std::string, int64_t> errors, plans;
  int64_t messages = 0, coalesced = 0, good = 0, ended = 0, output = 0, prompt = 0;
  int64_t all_prompt = 0, cached = 0;
  for (int64_t i = 0; i < all; ++i) {
    const Outcome& outcome = outcomes[static_cast<size_t>(i)];
    for (const TokenMessage& message : outcome.messages) {
      if (message.at >= begin && message.at <= end) output += message.tokens;
    }
    const bool inside = outcome.ended_at >= begin && outcome.ended_at <= end;
    const auto latencies = LatenciesOf(outcome);
    if (inside && outcome.ok) {
      ++ended;
      prompt += outcome.prompt_tokens;
      if (latencies && Meets(*latencies, objectives)) ++good;
    }
    ++report.requests;
    outcome.ok ? ++report.ok : ++report.failed;
    if (!outcome.plan.empty()) ++plans[outcome.plan];
    all_prompt += outcome.prompt_tokens;
    cached += outcome.cached_tokens;
    if (!outcome.ok) ++errors[outcome.error];
    if (i < ramp || i >= all - ramp || !latencies) continue;
    ttft.push_back(latencies->ttft_ms);
    e2el.push_back(latencies->e2el_ms);
    if (latencies->tpot_ms) tpot.push_back(*latencies->tpot_ms);
    AddGaps(outcome, &itl, &messages, &coalesced);
  }
  const double seconds = std::max(report.window_s, 1e-9);
  report.requests_per_s = static_cast<double>(ended) / seconds;
  report.output_tokens_per_s = static_cast<double>(output) / seconds;
  report.total_tokens_per_s = static_cast<double>(output + prompt) / seconds;
  report.goodput_per_s = static_cast<double>(good) / seconds;
  report.coalesced_share =
      messages == 0 ? 0 : static_cast<double>(coalesced) / static_cast<double>(messages);
  report.ttft_ms = Summarize(std::move(ttft));
  report.tpot_ms = Summarize(std::move(tpot));
  report.itl_ms = Summarize(std::move(itl));
  report.e2el_ms = Summarize(std::move(e2el));
  report.cached_share =
      all_prompt == 0 ? 0 : static_cast<double>(cached) / static_cast<double>(all_prompt);
  report.plans.assign(plans.begin(), plans.end());
  report.errors.assign(errors.begin(), errors.end());
  return report;
}

std::string ToText(const BenchReport& r) {
  std::string out = absl::StrFormat(
      "requests   %d: %d ok, %d failed; window %.2f s\n"
      "throughput %.2f requests/s, %.1f output tokens/s, %.1f tokens/s with prompts\n",
      r.requests, r.ok, r.failed, r.window_s, r.requests_per_s, r.output_tokens_per_s,
      r.total_tokens_per_s);
  if (r.has_objectives) {
    out += absl::StrFormat("goodput    %.2f requests/s met every objective\n", r.goodput_per_s);
  }
  for (const auto& [plan, count] : r.plans) {
    out += absl::StrFormat("plan       %s: %d requests\n", plan, count);
  }
  out += absl::StrFormat("cached     %.1f %% of prompt tokens\n", r.cached_share * 100);
  out += absl::StrFormat("coalesced  %.1f %% of token messages carried several tokens\n\n",
                         r.coalesced_share * 100);
  out += RenderTable({{"ms", "mean", "p50", "p90", "p99", "count"},
                      Row("TTFT", r.ttft_ms),
                      Row("TPOT", r.tpot_ms),
                      Row("ITL", r.itl_ms),
                      Row("E2EL", r.e2el_ms)});
  for (const auto& [error, count] : r.errors) {
    out += absl::StrFormat("\n%d failed with %s", count, error);
  }
  if (!r.errors.empty()) out += "\n";
  return out;
}

std::string ToJson(const BenchReport& r) {
  nlohmann::ordered_json out;
  out["requests"] = r.requests;
  out["ok"] = r.ok;
  out["failed"] = r.failed;
  out["window_s"] = r.window_s;
  out["requests_per_s"] = r.requests_per_s;
  out["output_tokens_per_s"] = r.output_tokens_per_s;
  out["total_tokens_per_s"] = r.total_tokens_per_s;
  if (r.has_objectives) out["goodput_per_s"] = r.goodput_per_s;
  for (const auto& [plan, count] : r.plans) out["plans"][plan] = count;
  out["cached_share"] = r.cached_share;
  out["coalesced_share"] = r.coalesced_share;
  out["ttft_ms"] = SummaryJson(r.ttft_ms);
  out["tpot_ms"] = SummaryJson(r.tpot_ms);
  out["itl_ms"] = SummaryJson(r.itl_ms);
  out["e2el_ms"] = SummaryJson(r.e2el_ms);
  for (const auto& [error, count] : r.errors) out["errors"][error] = count;
  return out.dump();
}

}  // namespace morphserve::ctl
