#include "server/translate_options.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "server/request_id.h"

namespace morphserve {
namespace {

constexpr double kTemperatureMax = 2;
constexpr double kPenaltyMax = 2;
constexpr double kLogitBiasMax = 100;
constexpr int32_t kPriorityMax = 100;

bool IsId(uint32_t id, const EngineInfo& info) { return id < static_cast<uint32_t>(info.vocab); }

std::string IdProblem(uint32_t id, const EngineInfo& info) {
  return absl::StrFormat("is %d; must be below %d", id, info.vocab);
}

// Copies a list of ids, sorted and distinct: it is a set.
template <typename Ids>
void TranslateIds(const Ids& ids, std::string_view field, int64_t limit, const EngineInfo& info,
                  std::vector<int32_t>* out, FaultList* faults) {
  if (!faults->CheckCount(field, static_cast<uint64_t>(ids.size()), limit, "ids")) return;
  for (int i = 0; i < ids.size(); ++i) {
    const uint32_t id = ids.Get(i);
    if (IsId(id, info)) {
      out->push_back(static_cast<int32_t>(id));
    } else {
      faults->Add(absl::StrFormat("%s[%d]", field, i), IdProblem(id, info));
    }
  }
  std::sort(out->begin(), out->end());
  out->erase(std::unique(out->begin(), out->end()), out->end());
}

void TranslateFloat(std::string_view field, float value, double low, double high, float* out,
                    FaultList* faults) {
  if (faults->CheckNumber(field, static_cast<double>(value), low, high)) *out = value;
}

void TranslateFloatAbove(std::string_view field, float value, double low, double high, float* out,
                         FaultList* faults) {
  if (faults->CheckNumberAbove(field, static_cast<double>(value), low, high)) *out = value;
}

void TranslateBias(const v1::Sampling& from, const OptionBounds& bounds, SamplingParams* to,
                   FaultList* faults) {
  constexpr std::string_view kField = "options.sampling.logit_bias";
  if (!faults->CheckCount(kField, from.logit_bias().size(), bounds.limits->logit_bias, "entries")) {
    return;
  }
  for (const auto& [id, bias] : from.logit_bias()) {
    const std::string field = absl::StrFormat("%s[%d]", kField, id);
    if (!IsId(id, *bounds.info)) {
      faults->Add(field, absl::StrFormat("has a key that is no token id; must be below %d",
                                         bounds.info->vocab));
    } else if (faults->CheckNumber(field, static_cast<double>(bias), -kLogitBiasMax,
                                   kLogitBiasMax)) {
      to->logit_bias.emplace_back(static_cast<int32_t>(id), bias);
    }
  }
  // A map has no order; the engine's work shall not depend on one.
  std::sort(to->logit_bias.begin(), to->logit_bias.end());
}

void TranslateSampling(const v1::Sampling& from, const OptionBounds& bounds, SamplingParams* to,
                       FaultList* faults) {
  const int32_t vocab = bounds.info->vocab;
  if (from.has_temperature()) {
    TranslateFloat("options.sampling.temperature", from.temperature(), 0, kTemperatureMax,
                   &to->temperature, faults);
  }
  if (from.has_top_p()) {
    TranslateFloatAbove("options.sampling.top_p", from.top_p(), 0, 1, &to->top_p, faults);
  }
  if (from.has_top_k() && faults->CheckInteger("options.sampling.top_k", from.top_k(), 0, vocab)) {
    to->top_k = static_cast<int32_t>(from.top_k());
  }
  if (from.has_min_p()) {
    TranslateFloat("options.sampling.min_p", from.min_p(), 0, 1, &to->min_p, faults);
  }
  if (from.has_presence_penalty()) {
    TranslateFloat("options.sampling.presence_penalty", from.presence_penalty(), -kPenaltyMax,
                   kPenaltyMax, &to->presence_penalty, faults);
  }
  if (from.has_frequency_penalty()) {
    TranslateFloat("options.sampling.frequency_penalty", from.frequency_penalty(), -kPenaltyMax,
                   kPenaltyMax, &to->frequency_penalty, faults);
  }
  if (from.has_repetition_penalty()) {
    TranslateFloatAbove("options.sampling.repetition_penalty", from.repetition_penalty(), 0,
                        kPenaltyMax, &to->repetition_penalty, faults);
  }
  to->seed = from.has_seed() ? from.seed() : MakeSeed();
  if (from.has_n() && faults->CheckInteger("options.sampling.n", from.n(), 1, bounds.limits->n)) {
    to->n = static_cast<int32_t>(from.n());
  }
  TranslateBias(from, bounds, to, faults);
  TranslateIds(from.allowed_token_ids(), "options.sampling.allowed_token_ids",
               bounds.limits->allowed_token_ids, *bounds.info, &to->allowed, faults);
  TranslateIds(from.banned_token_ids(), "options.sampling.banned_token_ids",
               bounds.limits->allowed_token_ids, *bounds.info, &to->banned, faults);
}

void TranslateStopping(const v1::Stopping& from, const OptionBounds& bounds, StoppingParams* to,
                       FaultList* faults) {
  const ServerConfig::Limits& limits = *bounds.limits;
  if (faults->CheckCount("options.stopping.stop", static_cast<uint64_t>(from.stop_size()),
                         limits.stop_strings, "strings")) {
    for (int i = 0; i < from.stop_size(); ++i) {
      const std::string& stop = from.stop(i);
      const std::string field = absl::StrFormat("options.stopping.stop[%d]", i);
      if (stop.empty()) {
        faults->Add(field, "is empty");
      } else if (faults->CheckCount(field, stop.size(), limits.stop_string_bytes, "bytes")) {
        to->stop.push_back(stop);
      }
    }
  }
  TranslateIds(from.stop_token_ids(), "options.stopping.stop_token_ids", limits.stop_token_ids,
               *bounds.info, &to->stop_token_ids, faults);
  to->include_stop = from.include_stop();
  to->ignore_eos = from.ignore_eos();
}

void TranslateOutput(const v1::Output& from, const OptionBounds& bounds, OutputParams* to,
                     FaultList* faults) {
  if (from.has_logprobs() && faults->CheckInteger("options.output.logprobs", from.logprobs(), 0,
                                                  bounds.limits->logprobs)) {
    to->logprobs = static_cast<int32_t>(from.logprobs());
  }
  if (from.has_prompt_logprobs() &&
      faults->CheckInteger("options.output.prompt_logprobs", from.prompt_logprobs(), 0,
                           std::min(kPromptLogprobsMax, bounds.limits->logprobs))) {
    to->prompt_logprobs = static_cast<int32_t>(from.prompt_logprobs());
  }
  if (from.has_skip_special_tokens()) to->skip_special_tokens = from.skip_special_tokens();
  to->text = from.has_text() ? from.text() : bounds.tokenizer != nullptr;
}

void TranslateScheduling(const v1::Scheduling& from, const OptionBounds& bounds, Request* to,
                         FaultList* faults) {
  constexpr std::string_view kField = "options.scheduling.priority";
  to->priority = std::min(0, bounds.priority_max);
  if (from.has_priority() &&
      faults->CheckInteger(kField, from.priority(), -kPriorityMax, kPriorityMax)) {
    to->priority = from.priority();
    if (from.priority() > bounds.priority_max) {
      faults->Add(kField, absl::StrFormat("is %d; the credential allows at most %d",
                                          from.priority(), bounds.priority_max));
    }
  }
  to->require_complete = from.require_complete();
  if (from.has_ttft_slo_ms()) faults->AddUnavailable("options.scheduling.ttft_slo_ms");
  if (from.has_tpot_slo_ms()) faults->AddUnavailable("options.scheduling.tpot_slo_ms");
}

void CheckUnavailable(const v1::GenerationOptions& options, FaultList* faults) {
  if (options.constraint().kind_case() != v1::Constraint::KIND_NOT_SET) {
    const auto* descriptor = v1::Constraint::descriptor();
    faults->AddUnavailable(
        "options.constraint." +
        descriptor->FindFieldByNumber(static_cast<int>(options.constraint().kind_case()))->name());
  }
}

void TranslateCache(const v1::CacheOptions& from, const OptionBounds& bounds, Request* to,
                    FaultList* faults) {
  faults->CheckCount("options.cache.salt", from.salt().size(), kCacheSaltBytesMax, "bytes");
  faults->CheckCount("options.cache.snapshot_at", static_cast<uint64_t>(from.snapshot_at_size()),
                     bounds.limits->snapshot_marks, "marks");
  to->cache.salt = EngineSalt(to->tenant, from.salt());
  // The probabilities of tokens that were not computed are not known.
  to->cache.bypass = from.bypass() || to->output.prompt_logprobs >= 0;
}

// Where the prompt's state is to be kept, rising.
void TranslateMarks(const v1::CacheOptions& from, int64_t prompt, Request* to, FaultList* faults) {
  std::vector<int32_t>* marks = &to->cache.snapshot_at;
  for (int i = 0; i < from.snapshot_at_size(); ++i) {
    if (faults->CheckInteger(absl::StrFormat("options.cache.snapshot_at[%d]", i),
                             from.snapshot_at(i), 1, prompt)) {
      marks->push_back(static_cast<int32_t>(from.snapshot_at(i)));
    }
  }
  std::sort(marks->begin(), marks->end());
  marks->erase(std::unique(marks->begin(), marks->end()), marks->end());
}

// Something must be left that can be drawn, in every state of the generation.
void CheckDrawable(const Request& request, const OptionBounds& bounds, uint32_t min_tokens,
                   FaultList* faults) {
  const SamplingParams& sampling = request.sampling;
  absl::flat_hash_set<int32_t> barred(sampling.banned.begin(), sampling.banned.end());
  const size_t banned = barred.size();
  if (min_tokens > 0) {
    barred.insert(request.stopping.stop_token_ids.begin(), request.stopping.stop_token_ids.end());
    if (bounds.tokenizer != nullptr) {
      const std::vector<int32_t>& ends = bounds.tokenizer->special().end_of_generation;
      barred.insert(ends.begin(), ends.end());
    }
  }
  const auto drawable = [&](int32_t id) {
    if (barred.contains(id)) return false;
    return bounds.tokenizer == nullptr ||
           (id < bounds.tokenizer->vocab_size() && bounds.tokenizer->has_piece(id));
  };
  bool found = false;
  if (!sampling.allowed.empty()) {
    found = std::any_of(sampling.allowed.begin(), sampling.allowed.end(), drawable);
  } else {
    for (int32_t id = 0; id < bounds.info->vocab && !found; ++id) found = drawable(id);
  }
  if (found) return;
  const bool only_at_first = min_tokens > 0 && barred.size() > banned;
  faults->Add(sampling.allowed.empty() ? "options.sampling.banned_token_ids"
                                       : "options.sampling.allowed_token_ids",
              only_at_first ? "leaves no token to draw before min_tokens are reached"
                            : "leaves no token to draw");
}

float InRange(std::optional<float> value, float low, float high, float otherwise) {
  return value.has_value() && *value >= low && *value <= high ? *value : otherwise;
}

}  // namespace

SamplingParams DefaultSampling(const GenerationDefaults& defaults) {
  SamplingParams sampling;
  sampling.temperature = InRange(defaults.temperature, 0, static_cast<float>(kTemperatureMax), 1);
  sampling.top_p = InRange(defaults.top_p, 0, 1, 1);
  if (sampling.top_p <= 0) sampling.top_p = 1;
  sampling.top_k = std::max(defaults.top_k.value_or(0), 0);
  sampling.min_p = InRange(defaults.min_p, 0, 1, 0);
  sampling.repetition_penalty =
      InRange(defaults.repetition_penalty, 0, static_cast<float>(kPenaltyMax), 1);
  if (sampling.repetition_penalty <= 0) sampling.repetition_penalty = 1;
  return sampling;
}

void TranslateOptions(const v1::GenerationOptions& options, const OptionBounds& bounds,
                      Request* request, FaultList* faults) {
  request->sampling = DefaultSampling(*bounds.defaults);
  request->sampling.top_k = std::min(request->sampling.top_k, bounds.info->vocab);
  TranslateSampling(options.sampling(), bounds, &request->sampling, faults);
  TranslateStopping(options.stopping(), bounds, &request->stopping, faults);
  TranslateOutput(options.output(), bounds, &request->output, faults);
  TranslateScheduling(options.scheduling(), bounds, request, faults);
  TranslateCache(options.cache(), bounds, request, faults);
  CheckUnavailable(options, faults);
  if (!request->output.text && options.stopping().stop_size() > 0) {
    faults->Add("options.stopping.stop", "needs options.output.text");
  }
  if (faults->empty()) {
    CheckDrawable(*request, bounds, options.stopping().min_tokens(), faults);
  }
}

absl::Status TranslateLengths(const v1::GenerationOptions& options, const OptionBounds& bounds,
                              Request* request) {
  const int64_t context = bounds.info->context_tokens;
  const auto prompt = static_cast<int64_t>(request->prompt.size());
  if (prompt >= context) {
    return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                          "prompt has %d tokens; limit is %d", prompt, context - 1)),
                      reason::kContextTooLong);
  }
  const v1::Stopping& stopping = options.stopping();
  const int64_t left = context - prompt;
  int64_t max_tokens = left;
  if (stopping.has_max_tokens()) {
    max_tokens = stopping.max_tokens();
    if (max_tokens < 1)
      return FieldInvalid("options.stopping.max_tokens", "is 0; must be at least 1");
    if (max_tokens > left) {
      return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                            "prompt has %d tokens and max_tokens is %d; limit of their sum is %d",
                            prompt, max_tokens, context)),
                        reason::kContextTooLong);
    }
  }
  FaultList faults;
  faults.CheckInteger("options.stopping.min_tokens", stopping.min_tokens(), 0, max_tokens);
  if (request->output.prompt_logprobs >= 0 && prompt > kPromptLogprobsTokensMax) {
    faults.Add("options.output.prompt_logprobs",
               absl::StrFormat("is asked for a prompt of %d tokens; limit is %d", prompt,
                               kPromptLogprobsTokensMax));
  }
  TranslateMarks(options.cache(), prompt, request, &faults);
  MS_RETURN_IF_ERROR(faults.ToStatus());
  request->stopping.max_tokens = static_cast<int32_t>(max_tokens);
  request->stopping.min_tokens = static_cast<int32_t>(stopping.min_tokens());
  return absl::OkStatus();
}

std::string EngineSalt(std::string_view tenant, std::string_view salt) {
  // No tenant's name holds a slash.
  return absl::StrFormat("%s/%s", tenant, salt);
}

}  // namespace morphserve
