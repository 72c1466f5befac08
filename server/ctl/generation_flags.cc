#include "server/ctl/generation_flags.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "morphserve/v1/models.grpc.pb.h"

namespace morphserve::ctl {
namespace {

constexpr char kFull[] = "full";

constexpr std::pair<std::string_view, v1::QualityTier> kTiers[] = {
    {"fastest", v1::QUALITY_TIER_FASTEST},
    {"balanced", v1::QUALITY_TIER_BALANCED},
    {"highest", v1::QUALITY_TIER_HIGHEST}};

v1::QualityTier TierOf(std::string_view name) {
  for (const auto& [known, tier] : kTiers) {
    if (known == name) return tier;
  }
  return v1::QUALITY_TIER_UNSPECIFIED;
}

// Empty, or what is wrong with the value of --plan.
std::string CheckPlanName(const std::string& name) {
  const bool number = !name.empty() && name.size() <= 5 &&
                      name.find_first_not_of("0123456789") == std::string::npos;
  if (number || name == kFull || name.rfind("p-", 0) == 0 ||
      TierOf(name) != v1::QUALITY_TIER_UNSPECIFIED) {
    return "";
  }
  return absl::StrFormat(
      "'%s' is neither a plan id (p-...), a number of full layers, full, fastest, balanced nor "
      "highest",
      name);
}

void FillPlan(const std::string& name, uint32_t layers, v1::PlanSelector* selector) {
  if (const v1::QualityTier tier = TierOf(name); tier != v1::QUALITY_TIER_UNSPECIFIED) {
    selector->set_tier(tier);
  } else if (name == kFull) {
    selector->set_full_layers(layers);
  } else if (name[0] != 'p') {
    selector->set_full_layers(static_cast<uint32_t>(std::stoul(name)));
  } else {
    selector->set_plan_id(name);
  }
}

}  // namespace

grpc::Status GenerationFlags::Prepare(const Connection& connection, const std::string& model) {
  if (plan != kFull) return grpc::Status::OK;
  v1::GetModelInfoRequest request;
  request.set_model(model);
  v1::ModelInfo info;
  grpc::ClientContext call;
  connection.Prepare(&call);
  const grpc::Status status =
      v1::Models::NewStub(connection.inference())->GetModelInfo(&call, request, &info);
  layers = info.layers();
  return status;
}

void GenerationFlags::Register(CLI::App* command) {
  const std::string group = "Generation";
  const auto add = [&](const std::string& name, auto& value, const std::string& help) {
    command->add_option(name, value, help)->group(group);
  };
  add("--temperature", temperature, "0 is greedy");
  add("--top-p", top_p, "keep the most likely tokens up to this share");
  add("--top-k", top_k, "keep this many tokens; 0: all");
  add("--min-p", min_p, "drop tokens below this share of the most likely one");
  add("--presence-penalty", presence_penalty, "subtracted from tokens that were generated");
  add("--frequency-penalty", frequency_penalty, "subtracted for each time a token was generated");
  add("--repetition-penalty", repetition_penalty, "divides the logits of tokens seen; 1: off");
  add("--seed", seed, "the same seed gives the same answer");
  add("--n", n, "number of choices");
  add("--max-tokens", max_tokens, "at most this many tokens");
  add("--min-tokens", min_tokens, "at least this many tokens");
  add("--stop", stop, "end at this string; may be given several times");
  add("--logprobs", logprobs, "log-probabilities of each token and of this many alternatives");
  add("--priority", priority, "-100 to 100; higher is served first");
  command
      ->add_option("--plan", plan,
                   "layer plan: id or unique prefix, number of full layers, full, fastest, "
                   "balanced or highest")
      ->check(CheckPlanName)
      ->group(group);
  command->add_flag("--ignore-eos", ignore_eos, "do not end at the model's end token")
      ->group(group);
}

void GenerationFlags::Fill(v1::GenerationOptions* options) const {
  v1::Sampling* s = options->mutable_sampling();
  if (temperature) s->set_temperature(*temperature);
  if (top_p) s->set_top_p(*top_p);
  if (top_k) s->set_top_k(*top_k);
  if (min_p) s->set_min_p(*min_p);
  if (presence_penalty) s->set_presence_penalty(*presence_penalty);
  if (frequency_penalty) s->set_frequency_penalty(*frequency_penalty);
  if (repetition_penalty) s->set_repetition_penalty(*repetition_penalty);
  if (seed) s->set_seed(*seed);
  if (n) s->set_n(*n);
  v1::Stopping* stopping = options->mutable_stopping();
  if (max_tokens) stopping->set_max_tokens(*max_tokens);
  if (min_tokens) stopping->set_min_tokens(*min_tokens);
  for (const std::string& text : stop) stopping->add_stop(text);
  if (ignore_eos) stopping->set_ignore_eos(true);
  if (logprobs) options->mutable_output()->set_logprobs(*logprobs);
  if (priority) options->mutable_scheduling()->set_priority(*priority);
  if (!plan.empty()) FillPlan(plan, layers, options->mutable_plan());
}

}  // namespace morphserve::ctl
