#include "server/translate_chat.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/base/text_view.h"
#include "engine/engine.h"
#include "server/translate_json.h"

namespace morphserve {
namespace {

// Variables that the request sets by other fields.
constexpr std::array<std::string_view, 5> kReservedArguments = {
    "messages", "tools", "add_generation_prompt", "bos_token", "eos_token"};

// Normalisation can shrink text by this much, and stripped spaces count as nothing.
constexpr size_t kShrinkMax = 4;

// Longer than any piece that a tokenizer cuts text into around a place where two texts part.
constexpr size_t kBeyondCommonBytes = 256;

uint64_t BytesOf(const v1::ChatRequest& chat) {
  uint64_t bytes = chat.template_args_json().size();
  for (const v1::ChatMessage& message : chat.messages()) {
    bytes += message.role().size() + message.content().size() + message.name().size() +
             message.reasoning().size() + message.tool_call_id().size();
    for (const v1::ToolCall& call : message.tool_calls()) {
      bytes += call.id().size() + call.name().size() + call.arguments_json().size();
    }
  }
  for (const v1::Tool& tool : chat.tools()) {
    bytes += tool.name().size() + tool.description().size() + tool.parameters_json().size();
  }
  return bytes;
}

void CheckJson(std::string_view field, std::string_view json, std::vector<std::string>* keys,
               FaultList* faults) {
  if (json.empty()) return;
  const absl::Status status = CheckJsonObject(json, keys);
  if (!status.ok()) faults->Add(field, std::string(status.message()));
}

void CheckMessage(const v1::ChatMessage& message, const std::string& field,
                  const ServerConfig::Limits& limits, FaultList* faults) {
  if (message.role().empty()) faults->Add(field + ".role", "is empty");
  // A call costs a template as much as a message does.
  if (!faults->CheckCount(field + ".tool_calls", static_cast<uint64_t>(message.tool_calls_size()),
                          limits.tools, "calls")) {
    return;
  }
  for (int i = 0; i < message.tool_calls_size(); ++i) {
    const v1::ToolCall& call = message.tool_calls(i);
    const std::string path = absl::StrFormat("%s.tool_calls[%d]", field, i);
    if (call.name().empty()) faults->Add(path + ".name", "is empty");
    CheckJson(path + ".arguments_json", call.arguments_json(), nullptr, faults);
  }
}

ChatInput MakeInput(const v1::ChatRequest& chat, absl::Time now) {
  ChatInput input;
  for (const v1::ChatMessage& from : chat.messages()) {
    ChatMessage message;
    message.role = from.role();
    message.content = from.content();
    message.name = from.name();
    message.reasoning = from.reasoning();
    message.tool_call_id = from.tool_call_id();
    for (const v1::ToolCall& call : from.tool_calls()) {
      message.tool_calls.push_back(
          {call.id(), call.name(), call.arguments_json().empty() ? "{}" : call.arguments_json()});
    }
    input.messages.push_back(std::move(message));
  }
  for (const v1::Tool& tool : chat.tools()) {
    input.tools.push_back({tool.name(), tool.description(), tool.parameters_json()});
  }
  input.template_args_json = chat.template_args_json();
  input.add_generation_prompt = chat.has_add_generation_prompt() ? chat.add_generation_prompt()
                                                                 : !chat.continue_final_message();
  input.continue_final_message = chat.continue_final_message();
  input.now = now;
  return input;
}

absl::Status CannotFit(size_t bytes, const Tokenizer& tokenizer, int32_t context_tokens) {
  const size_t longest = std::max<size_t>(tokenizer.longest_piece_bytes(), 1);
  const size_t limit = kShrinkMax * longest * static_cast<size_t>(std::max(context_tokens, 1));
  if (bytes <= limit) return absl::OkStatus();
  return WithReason(
      absl::InvalidArgumentError(absl::StrFormat(
          "prompt has %d bytes; no more than %d can fit %d tokens", bytes, limit, context_tokens)),
      reason::kContextTooLong);
}

// How control tokens inside messages are read. `rendered` outlives the result.
EncodeOptions EncodingOf(const v1::ChatRequest& chat, const RenderedChat& rendered) {
  if (chat.control_tokens() == v1::CONTROL_TOKENS_PARSE) return {};
  return {.trusted = &rendered.trusted};
}

// Shortens the text to at most `bytes`, on a character's boundary.
void CutText(size_t bytes, RenderedChat* rendered) {
  std::string& text = rendered->text;
  if (text.size() <= bytes) return;
  while (bytes > 0 && (static_cast<uint8_t>(text[bytes]) & 0xC0) == 0x80) --bytes;
  text.resize(bytes);
  std::vector<ByteRange>& trusted = rendered->trusted;
  while (!trusted.empty() && trusted.back().begin >= bytes) trusted.pop_back();
  if (!trusted.empty()) trusted.back().end = std::min(trusted.back().end, bytes);
}

}  // namespace

void CheckChat(const v1::ChatRequest& chat, std::string_view prefix,
               const ServerConfig::Limits& limits, FaultList* faults) {
  const std::string path(prefix);
  if (chat.messages_size() == 0) faults->Add(path + "messages", "is empty");
  const bool counted =
      faults->CheckCount(path + "messages", static_cast<uint64_t>(chat.messages_size()),
                         limits.messages, "messages") &&
      faults->CheckCount(path + "tools", static_cast<uint64_t>(chat.tools_size()), limits.tools,
                         "tools") &&
      faults->CheckCount(path + "messages", BytesOf(chat), limits.prompt_bytes,
                         "bytes with tools and arguments");
  if (!counted) return;
  for (int i = 0; i < chat.messages_size(); ++i) {
    CheckMessage(chat.messages(i), absl::StrFormat("%smessages[%d]", path, i), limits, faults);
  }
  for (int i = 0; i < chat.tools_size(); ++i) {
    const std::string field = absl::StrFormat("%stools[%d]", path, i);
    if (chat.tools(i).name().empty()) faults->Add(field + ".name", "is empty");
    CheckJson(field + ".parameters_json", chat.tools(i).parameters_json(), nullptr, faults);
  }
  std::vector<std::string> keys;
  CheckJson(path + "template_args_json", chat.template_args_json(), &keys, faults);
  for (const std::string_view reserved : kReservedArguments) {
    if (std::find(keys.begin(), keys.end(), reserved) != keys.end()) {
      faults->Add(path + "template_args_json",
                  absl::StrFormat("sets %s, which is not an argument", reserved));
    }
  }
  if (chat.continue_final_message() && chat.add_generation_prompt()) {
    faults->Add(path + "continue_final_message", "excludes add_generation_prompt");
  }
  if (!v1::ControlTokens_IsValid(static_cast<int>(chat.control_tokens()))) {
    faults->Add(path + "control_tokens", absl::StrFormat("is %d; not a value of ControlTokens",
                                                         static_cast<int>(chat.control_tokens())));
  }
}

absl::StatusOr<std::vector<int32_t>> TokenizeText(std::string_view text, std::string_view field,
                                                  const EncodeOptions& options,
                                                  const Tokenizer& tokenizer,
                                                  int32_t context_tokens) {
  MS_RETURN_IF_ERROR(CannotFit(text.size(), tokenizer, context_tokens));
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, options);
  if (!ids.ok()) return FieldInvalid(std::string(field), std::string(ids.status().message()));
  return ids;
}

TemplateLimits ChatTokenizer::Bounds() const {
  return {.steps_max = limits_->template_steps, .output_bytes_max = limits_->template_bytes};
}

absl::StatusOr<ChatTokenizer::Rendered> ChatTokenizer::Render(const v1::ChatRequest& chat,
                                                              std::string_view prefix,
                                                              int32_t context_tokens,
                                                              absl::Time now) const {
  absl::StatusOr<RenderedChat> rendered = chat_template_->Render(MakeInput(chat, now), Bounds());
  if (!rendered.ok()) {
    return WithReason(absl::InvalidArgumentError(
                          absl::StrFormat("chat template: %s", ToStd(rendered.status().message()))),
                      reason::kTemplateFailed);
  }
  const std::string field = std::string(prefix) + "messages";
  const EncodeOptions encode = EncodingOf(chat, *rendered);
  Rendered out;
  MS_ASSIGN_OR_RETURN(out.tokens,
                      TokenizeText(rendered->text, field, encode, *tokenizer_, context_tokens));
  if (chat.control_tokens() == v1::CONTROL_TOKENS_REFUSE) {
    // A control token in a message is exactly what makes the two readings differ.
    MS_ASSIGN_OR_RETURN(const std::vector<int32_t> parsed,
                        TokenizeText(rendered->text, field, {}, *tokenizer_, context_tokens));
    if (parsed != out.tokens) {
      return FieldInvalid(field, "hold a control token; control_tokens is REFUSE");
    }
  }
  out.text = std::move(rendered->text);
  return out;
}

std::optional<int32_t> ChatTokenizer::StableTokens(const v1::ChatRequest& chat,
                                                   const Rendered& rendered, int32_t context_tokens,
                                                   absl::Time now) const {
  ChatInput next = MakeInput(chat, now);
  if (!next.add_generation_prompt) return std::nullopt;
  ChatMessage answer, question;
  answer.role = "assistant";
  answer.content = "Yes.";
  question.role = "user";
  question.content = "Why?";
  next.messages.push_back(std::move(answer));
  next.messages.push_back(std::move(question));
  absl::StatusOr<RenderedChat> later = chat_template_->Render(next, Bounds());
  if (!later.ok()) return std::nullopt;
  const std::string& now_text = rendered.text;
  const auto common = static_cast<size_t>(
      std::mismatch(now_text.begin(), now_text.end(), later->text.begin(), later->text.end())
          .first -
      now_text.begin());
  // No token that both have ends beyond, so what comes much later need not be tokenised.
  CutText(common + kBeyondCommonBytes, &*later);
  const absl::StatusOr<std::vector<int32_t>> tokens =
      TokenizeText(later->text, "messages", EncodingOf(chat, *later), *tokenizer_, context_tokens);
  if (!tokens.ok()) return std::nullopt;
  return static_cast<int32_t>(
      std::mismatch(rendered.tokens.begin(), rendered.tokens.end(), tokens->begin(), tokens->end())
          .first -
      rendered.tokens.begin());
}

}  // namespace morphserve
