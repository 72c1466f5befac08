#include "server/translate.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/text/detokenizer.h"
#include "server/plan_lookup.h"
#include "server/request_id.h"
#include "server/translate_chat.h"
#include "server/translate_options.h"

namespace morphserve {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// The most levels any message of this API has is far below this.
constexpr int kMessageDepthMax = 16;

absl::Status CheckKnownFieldsAt(const Message& message, int depth) {
  const google::protobuf::Reflection* reflection = message.GetReflection();
  const google::protobuf::UnknownFieldSet& unknown = reflection->GetUnknownFields(message);
  if (unknown.field_count() > 0) {
    return FeatureUnavailable(absl::StrFormat("field number %d of %s", unknown.field(0).number(),
                                              message.GetDescriptor()->name()));
  }
  if (depth >= kMessageDepthMax) return absl::OkStatus();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE || field->is_map()) continue;
    if (!field->is_repeated()) {
      MS_RETURN_IF_ERROR(CheckKnownFieldsAt(reflection->GetMessage(message, field), depth + 1));
      continue;
    }
    for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
      MS_RETURN_IF_ERROR(
          CheckKnownFieldsAt(reflection->GetRepeatedMessage(message, field, i), depth + 1));
    }
  }
  return absl::OkStatus();
}

std::string PieceOf(const Tokenizer& tokenizer, int32_t id) {
  return std::string(tokenizer.piece_bytes(id));
}

}  // namespace

absl::Status CheckKnownFields(const Message& message) { return CheckKnownFieldsAt(message, 0); }

absl::StatusOr<std::string> ChooseRequestId(const v1::GenerationOptions& options,
                                            const CallFacts& facts) {
  constexpr char kRule[] = "must be 1 to 64 of A-Z a-z 0-9 . _ : -";
  if (options.has_request_id()) {
    if (!IsValidRequestId(options.request_id())) {
      return FieldInvalid("options.request_id", kRule);
    }
    return options.request_id();
  }
  if (facts.header_request_id.empty()) return MakeRequestId();
  if (!IsValidRequestId(facts.header_request_id)) {
    return FieldInvalid("metadata x-request-id", kRule);
  }
  return facts.header_request_id;
}

absl::Status Translator::CheckModel(std::string_view name) const {
  if (name.empty() || name == model_->name) return absl::OkStatus();
  return WithReason(
      absl::NotFoundError(absl::StrFormat("model %s is not served; the only one is %s",
                                          Quoted(name), Quoted(model_->name))),
      reason::kModelNotFound);
}

absl::Status Translator::NeedTokenizer() const {
  if (tokenizer() != nullptr) return absl::OkStatus();
  return WithReason(
      absl::FailedPreconditionError("the model has no tokenizer; only token ids are served"),
      reason::kNoTokenizer);
}

absl::Status Translator::NeedChatTemplate() const {
  MS_RETURN_IF_ERROR(NeedTokenizer());
  if (model_->chat_template != nullptr) return absl::OkStatus();
  return WithReason(absl::FailedPreconditionError("the model has no chat template"),
                    reason::kNoChatTemplate);
}

absl::Status Translator::Options(const v1::GenerationOptions& options, const CallFacts& facts,
                                 Request* request, FaultList* faults) const {
  const OptionBounds bounds{.limits = limits_,
                            .info = &model_->engine->info(),
                            .tokenizer = tokenizer(),
                            .defaults = &model_->generation,
                            .priority_max = facts.priority_max};
  request->tenant = facts.tenant;
  request->received = facts.received;
  const absl::Time cap = facts.received + absl::Seconds(limits_->deadline_max_s);
  request->deadline = facts.deadline == absl::InfiniteFuture()
                          ? facts.received + absl::Seconds(limits_->deadline_default_s)
                          : std::min(facts.deadline, cap);
  TranslateOptions(options, bounds, request, faults);
  CheckPlan(options.plan(), "options.plan", *bounds.info, faults);
  MS_RETURN_IF_ERROR(faults->ToStatus());
  if (options.output().text()) MS_RETURN_IF_ERROR(NeedTokenizer());
  return absl::OkStatus();
}

absl::Status Translator::Prompt(const v1::GenerateRequest& request,
                                std::vector<int32_t>* prompt) const {
  const EngineInfo& info = model_->engine->info();
  if (request.prompt_case() == v1::GenerateRequest::kText) {
    MS_RETURN_IF_ERROR(NeedTokenizer());
    const EncodeOptions encode{.add_special_tokens = request.has_add_special_tokens()
                                                         ? request.add_special_tokens()
                                                         : true};
    MS_ASSIGN_OR_RETURN(
        *prompt, TokenizeText(request.text(), "text", encode, *tokenizer(), info.context_tokens));
    if (prompt->empty()) return FieldInvalid("text", "has no tokens");
    return absl::OkStatus();
  }
  const auto& ids = request.tokens().ids();
  if (ids.size() > info.context_tokens) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrFormat("prompt has %d tokens; limit is %d", ids.size(),
                                                   info.context_tokens - 1)),
        reason::kContextTooLong);
  }
  FaultList faults;
  for (int i = 0; i < ids.size(); ++i) {
    if (ids.Get(i) >= static_cast<uint32_t>(info.vocab)) {
      faults.Add(absl::StrFormat("tokens.ids[%d]", i),
                 absl::StrFormat("is %d; must be below %d", ids.Get(i), info.vocab));
    }
  }
  if (ids.empty()) faults.Add("tokens.ids", "is empty");
  MS_RETURN_IF_ERROR(faults.ToStatus());
  prompt->assign(ids.begin(), ids.end());
  return absl::OkStatus();
}

absl::StatusOr<Request> Translator::Generate(const v1::GenerateRequest& request,
                                             const CallFacts& facts) const {
  MS_RETURN_IF_ERROR(CheckKnownFields(request));
  MS_RETURN_IF_ERROR(CheckModel(request.model()));
  FaultList faults;
  switch (request.prompt_case()) {
    case v1::GenerateRequest::PROMPT_NOT_SET:
      faults.Add("prompt", "is missing; set text or tokens");
      break;
    case v1::GenerateRequest::kText:
      if (request.text().empty()) faults.Add("text", "is empty");
      faults.CheckCount("text", request.text().size(), limits_->prompt_bytes, "bytes");
      break;
    case v1::GenerateRequest::kTokens:
      if (request.has_add_special_tokens()) {
        faults.Add("add_special_tokens", "applies to text; tokens are taken as they are");
      }
      break;
  }
  Request out;
  MS_RETURN_IF_ERROR(Options(request.options(), facts, &out, &faults));
  MS_RETURN_IF_ERROR(Prompt(request, &out.prompt));
  MS_RETURN_IF_ERROR(Finish(request.options(), &out));
  return out;
}

absl::StatusOr<Request> Translator::Chat(const v1::ChatRequest& request,
                                         const CallFacts& facts) const {
  MS_RETURN_IF_ERROR(CheckKnownFields(request));
  MS_RETURN_IF_ERROR(CheckModel(request.model()));
  MS_RETURN_IF_ERROR(NeedChatTemplate());
  FaultList faults;
  CheckChat(request, "", *limits_, &faults);
  Request out;
  MS_RETURN_IF_ERROR(Options(request.options(), facts, &out, &faults));
  const ChatTokenizer chats(limits_, model_->chat_template, tokenizer());
  const int32_t context_tokens = model_->engine->info().context_tokens;
  MS_ASSIGN_OR_RETURN(const ChatTokenizer::Rendered rendered,
                      chats.Render(request, "", context_tokens, facts.received));
  out.prompt = rendered.tokens;
  if (out.prompt.empty()) return FieldInvalid("messages", "render to no tokens");
  MS_RETURN_IF_ERROR(Finish(request.options(), &out));
  if (prefix_cache_ && !out.cache.bypass) {
    out.cache.stable_tokens = chats.StableTokens(request, rendered, context_tokens, facts.received);
  }
  return out;
}

absl::Status Translator::Finish(const v1::GenerationOptions& options, Request* request) const {
  const OptionBounds bounds{.limits = limits_, .info = &model_->engine->info()};
  MS_RETURN_IF_ERROR(TranslateLengths(options, bounds, request));
  // Last: a request that cannot be served shall not add a plan to the table.
  if (options.plan().by_case() != v1::PlanSelector::BY_NOT_SET) {
    const auto context =
        static_cast<int32_t>(request->prompt.size()) + request->stopping.max_tokens;
    MS_ASSIGN_OR_RETURN(request->plan_id, ResolvePlan(options.plan(), *model_, context, true));
  }
  return absl::OkStatus();
}

absl::Status Translator::CheckTokenInput(const v1::ChatRequest& chat, FaultList* faults) const {
  MS_RETURN_IF_ERROR(NeedChatTemplate());
  CheckChat(chat, "chat.", *limits_, faults);
  if (!chat.model().empty()) faults->Add("chat.model", "belongs beside chat, not inside it");
  if (chat.has_options()) faults->Add("chat.options", "do not apply here");
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<std::vector<int32_t>> Translator::Input(const T& request, bool add_special,
                                                       absl::Time now) const {
  // The limit on bytes bounds the work; a text that is longer than the context may well be counted.
  const int32_t tokens_max = static_cast<int32_t>(
      std::min<int64_t>(limits_->prompt_bytes, std::numeric_limits<int32_t>::max()));
  FaultList faults;
  switch (request.input_case()) {
    case T::INPUT_NOT_SET: return FieldInvalid("input", "is missing; set text or chat");
    case T::kText: {
      faults.CheckCount("text", request.text().size(), limits_->prompt_bytes, "bytes");
      MS_RETURN_IF_ERROR(faults.ToStatus());
      const EncodeOptions encode{.add_special_tokens = add_special};
      return TokenizeText(request.text(), "text", encode, *tokenizer(), tokens_max);
    }
    case T::kChat:
      MS_RETURN_IF_ERROR(CheckTokenInput(request.chat(), &faults));
      MS_RETURN_IF_ERROR(faults.ToStatus());
      MS_ASSIGN_OR_RETURN(ChatTokenizer::Rendered rendered,
                          ChatTokenizer(limits_, model_->chat_template, tokenizer())
                              .Render(request.chat(), "chat.", tokens_max, now));
      return std::move(rendered.tokens);
  }
  return absl::InternalError("a oneof has a case without a meaning");
}

absl::StatusOr<v1::TokenizeResponse> Translator::Tokenize(const v1::TokenizeRequest& request,
                                                          absl::Time now) const {
  MS_RETURN_IF_ERROR(CheckKnownFields(request));
  MS_RETURN_IF_ERROR(CheckModel(request.model()));
  MS_RETURN_IF_ERROR(NeedTokenizer());
  if (request.has_chat() && request.has_add_special_tokens()) {
    return FieldInvalid("add_special_tokens", "applies to text; a template writes its own");
  }
  const bool add_special = request.has_add_special_tokens() ? request.add_special_tokens() : true;
  MS_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, Input(request, add_special, now));
  v1::TokenizeResponse response;
  for (const int32_t id : ids) {
    response.add_token_ids(static_cast<uint32_t>(id));
    if (request.pieces()) response.add_pieces(PieceOf(*tokenizer(), id));
  }
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> Translator::Detokenize(
    const v1::DetokenizeRequest& request) const {
  MS_RETURN_IF_ERROR(CheckKnownFields(request));
  MS_RETURN_IF_ERROR(CheckModel(request.model()));
  MS_RETURN_IF_ERROR(NeedTokenizer());
  FaultList faults;
  // No sequence is longer than the longest prompt in bytes.
  if (!faults.CheckCount("token_ids", static_cast<uint64_t>(request.token_ids_size()),
                         limits_->prompt_bytes, "ids")) {
    return faults.ToStatus();
  }
  const Tokenizer& pieces = *tokenizer();
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(request.token_ids_size()));
  for (int i = 0; i < request.token_ids_size(); ++i) {
    const uint32_t id = request.token_ids(i);
    if (id >= static_cast<uint32_t>(pieces.vocab_size())) {
      faults.Add(absl::StrFormat("token_ids[%d]", i),
                 absl::StrFormat("is %d; must be below %d", id, pieces.vocab_size()));
    } else if (!pieces.has_piece(static_cast<int32_t>(id))) {
      faults.Add(absl::StrFormat("token_ids[%d]", i),
                 absl::StrFormat("is %d, which stands for no text", id));
    } else {
      ids.push_back(static_cast<int32_t>(id));
    }
  }
  MS_RETURN_IF_ERROR(faults.ToStatus());
  v1::DetokenizeResponse response;
  Detokenizer detokenizer(&pieces, request.skip_special_tokens(), /*at_text_start=*/true);
  std::string text;
  for (const int32_t id : ids) detokenizer.Append(id, &text);
  response.set_incomplete_tail(std::string(detokenizer.held()));
  response.set_text(std::move(text));
  return response;
}

absl::StatusOr<v1::CountTokensResponse> Translator::CountTokens(
    const v1::CountTokensRequest& request, const CallFacts& facts) const {
  MS_RETURN_IF_ERROR(CheckKnownFields(request));
  MS_RETURN_IF_ERROR(CheckModel(request.model()));
  MS_RETURN_IF_ERROR(NeedTokenizer());
  Engine* const engine = model_->engine;
  FaultList faults;
  CheckPlan(request.plan(), "plan", engine->info(), &faults);
  MS_RETURN_IF_ERROR(faults.ToStatus());
  v1::CountTokensResponse response;
  if (request.has_plan()) {
    const bool named = request.plan().by_case() != v1::PlanSelector::BY_NOT_SET;
    std::string plan_id = engine->plans().active()->id();
    if (named) {
      MS_ASSIGN_OR_RETURN(plan_id,
                          ResolvePlan(request.plan(), *model_, engine->info().context_tokens / 2,
                                      /*add=*/false));
    }
    response.set_plan_id(std::move(plan_id));
  }
  MS_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                      Input(request, /*add_special=*/true, facts.received));
  response.set_tokens(static_cast<uint32_t>(ids.size()));
  response.set_context_tokens_max(static_cast<uint32_t>(engine->info().context_tokens));
  if (request.has_plan()) {
    // What no request can have computed needs no look: a plan outside the table, a longer prompt.
    const bool possible = IsKnownPlan(engine, response.plan_id()) &&
                          ids.size() < static_cast<size_t>(engine->info().context_tokens);
    const int32_t cached =
        possible
            ? engine->CachedTokens(response.plan_id(), EngineSalt(facts.tenant, ""), std::move(ids))
            : 0;
    response.set_cached_tokens(static_cast<uint32_t>(cached));
  }
  return response;
}

}  // namespace morphserve
