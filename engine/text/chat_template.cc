#include "engine/text/chat_template.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/text/chat_template_input.h"
#include "engine/text/jinja_eval.h"
#include "engine/text/jinja_parser.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve {
namespace {

constexpr int64_t kTreeBytesMax = 64 << 20;
constexpr int64_t kTextBytesCeiling = 1 << 30;  // Offsets inside one text are 32 bits.
constexpr size_t kUnknownNamesMax = 8;          // Reported at load.

// What transformers appends to the last message to find its end again.
constexpr std::string_view kContinueTag = "CONTINUE_FINAL_MESSAGE_TAG ";

std::string_view StripSpace(std::string_view text, bool left) {
  while (left && !text.empty()) {
    size_t next = 0;
    if (!jinja::IsSpace(jinja::NextCodePoint(text, &next))) break;
    text.remove_prefix(next);
  }
  while (!text.empty()) {
    size_t end = text.size();
    if (!jinja::IsSpace(jinja::PreviousCodePoint(text, &end))) break;
    text = text.substr(0, end);
  }
  return text;
}

void Truncate(RenderedChat* chat, size_t size) {
  chat->text.resize(size);
  while (!chat->trusted.empty() && chat->trusted.back().begin >= size) chat->trusted.pop_back();
  if (!chat->trusted.empty()) {
    chat->trusted.back().end = std::min(chat->trusted.back().end, size);
  }
}

class JinjaChatTemplate final : public ChatTemplate {
 public:
  JinjaChatTemplate(std::string_view source, std::string bos_token, std::string eos_token)
      : reads_content_(source.find("content") != std::string_view::npos),
        bos_token_(std::move(bos_token)),
        eos_token_(std::move(eos_token)) {}

  absl::Status Parse(std::string_view source);
  // Finds out what the template can do, by rendering small chats.
  void Probe();

  absl::StatusOr<RenderedChat> Render(const ChatInput& input,
                                      const TemplateLimits& limits) const override;
  const std::vector<std::string>& capabilities() const override { return capabilities_; }

 private:
  absl::StatusOr<RenderedChat> RenderForm(const ChatInput& input, const TemplateLimits& limits,
                                          const ChatInputForm& form,
                                          std::string_view final_suffix) const;
  absl::Status CutAtFinalMessage(const ChatMessage& final_message, RenderedChat* chat) const;
  // Whether `input` renders, and with every one of `wanted` in it.
  bool Shows(const ChatInput& input, const ChatInputForm& form,
             std::initializer_list<std::string_view> wanted) const;

  // Constant after Create.
  const bool reads_content_;
  const std::string bos_token_;
  const std::string eos_token_;
  jinja::Arena tree_{kTreeBytesMax};
  const jinja::TemplateNode* root_ = nullptr;
  ChatInputForm form_;
  std::vector<std::string> capabilities_;
};

absl::Status JinjaChatTemplate::Parse(std::string_view source) {
  MS_ASSIGN_OR_RETURN(const jinja::ParsedTemplate parsed, jinja::ParseTemplate(source, tree_));
  root_ = parsed.root;
  const size_t shown = std::min(parsed.unknown_names.size(), kUnknownNamesMax);
  for (size_t i = 0; i < shown; ++i) {
    MS_LOG(WARNING) << "chat template uses an unknown " << parsed.unknown_names[i]
                    << ", an error when it is reached";
  }
  return absl::OkStatus();
}

absl::StatusOr<RenderedChat> JinjaChatTemplate::RenderForm(const ChatInput& input,
                                                           const TemplateLimits& limits,
                                                           const ChatInputForm& form,
                                                           std::string_view final_suffix) const {
  jinja::Runtime rt(
      {.steps_max = std::max<int64_t>(limits.steps_max, 0),
       .text_bytes_max = std::clamp<int64_t>(limits.output_bytes_max, 0, kTextBytesCeiling),
       .now = input.now});
  MS_ASSIGN_OR_RETURN(
      const jinja::Dict* const variables,
      BuildChatVariables(
          rt, input,
          {.bos_token = bos_token_, .eos_token = eos_token_, .final_suffix = final_suffix}, form));
  jinja::TextBuilder text(rt);
  if (!jinja::Interpreter(rt, *variables).Run(*root_, &text)) return rt.status();
  RenderedChat chat;
  chat.text = text.Release(&chat.trusted);
  return chat;
}

absl::StatusOr<RenderedChat> JinjaChatTemplate::Render(const ChatInput& input,
                                                       const TemplateLimits& limits) const {
  if (!input.continue_final_message) return RenderForm(input, limits, form_, "");
  if (input.add_generation_prompt) {
    return absl::InvalidArgumentError(
        "continue_final_message and add_generation_prompt exclude each other");
  }
  if (input.messages.empty()) {
    return absl::InvalidArgumentError("continue_final_message wants a message");
  }
  if (!reads_content_) {
    return absl::InvalidArgumentError(
        "continue_final_message: the template does not read the content of messages");
  }
  MS_ASSIGN_OR_RETURN(RenderedChat chat, RenderForm(input, limits, form_, kContinueTag));
  MS_RETURN_IF_ERROR(CutAtFinalMessage(input.messages.back(), &chat));
  return chat;
}

absl::Status JinjaChatTemplate::CutAtFinalMessage(const ChatMessage& final_message,
                                                  RenderedChat* chat) const {
  const std::string_view bare_tag = StripSpace(kContinueTag, true);
  const std::string_view content = StripSpace(final_message.content, true);
  const size_t tag = chat->text.rfind(bare_tag);
  if (tag == std::string::npos ||
      memmem(chat->text.data(), chat->text.size(), content.data(), content.size()) == nullptr) {
    return absl::InvalidArgumentError(
        "continue_final_message: the template does not render the final message whole");
  }
  size_t end = tag;
  // A template that trims the message has trimmed the tag's space, and so means to trim the text.
  if (!std::string_view(chat->text).substr(tag).starts_with(kContinueTag)) {
    end = StripSpace(std::string_view(chat->text).substr(0, tag), false).size();
  }
  Truncate(chat, end);
  return absl::OkStatus();
}

bool JinjaChatTemplate::Shows(const ChatInput& input, const ChatInputForm& form,
                              std::initializer_list<std::string_view> wanted) const {
  const absl::StatusOr<RenderedChat> chat =
      RenderForm(input, {.steps_max = 200'000, .output_bytes_max = 1 << 20}, form, "");
  if (!chat.ok()) return false;
  return std::all_of(wanted.begin(), wanted.end(), [&chat](std::string_view text) {
    return chat->text.find(text) != std::string::npos;
  });
}

// A message of a probe; its content is a word no template contains.
ChatMessage ProbeMessage(std::string role, std::string content) {
  ChatMessage message;
  message.role = std::move(role);
  message.content = std::move(content);
  return message;
}

void JinjaChatTemplate::Probe() {
  ChatInput user;
  user.now = absl::UnixEpoch();
  user.messages.push_back(ProbeMessage("user", "probe-user"));
  const bool plain = Shows(user, {}, {"probe-user"});
  const bool typed = Shows(user, {.typed_content = true}, {"probe-user"}) &&
                     // A template that prints the list itself does not understand it.
                     !Shows(user, {.typed_content = true}, {"'text'"}) &&
                     !Shows(user, {.typed_content = true}, {"\"text\""});
  form_.typed_content = typed && !plain;
  const auto note = [this](bool holds, const char* name) {
    if (holds) capabilities_.push_back(name);
  };

  ChatInput system = user;
  system.messages.insert(system.messages.begin(), ProbeMessage("system", "probe-system"));
  note(Shows(system, form_, {"probe-user", "probe-system"}), "system_role");

  ChatInput tools = user;
  tools.tools.push_back(
      {"probe_tool", "probe-description",
       R"({"type": "object", "properties": {"probe_field": {"type": "string"}}})"});
  note(Shows(tools, form_, {"probe_tool", "probe_field"}), "tools");

  ChatInput calls = tools;
  ChatMessage calling = ProbeMessage("assistant", "");
  calling.tool_calls.push_back({"probe1234", "probe_call", R"({"probe_argument": "probe-value"})"});
  ChatMessage result = ProbeMessage("tool", "probe-result");
  result.name = "probe_call";
  result.tool_call_id = "probe1234";
  calls.messages.push_back(calling);
  calls.messages.push_back(result);
  note(Shows(calls, form_, {"probe_call", "probe_argument", "probe-value", "probe-result"}),
       "tool_calls");

  ChatInput reasoning = user;
  reasoning.add_generation_prompt = false;
  reasoning.messages.push_back(ProbeMessage("assistant", "probe-answer"));
  reasoning.messages.back().reasoning = "probe-thought";
  note(Shows(reasoning, form_, {"probe-thought", "probe-answer"}), "reasoning");
  note(typed, "typed_content");

  ChatInput closed = user;
  closed.add_generation_prompt = false;
  const TemplateLimits limits;
  const auto with = RenderForm(user, limits, form_, "");
  const auto without = RenderForm(closed, limits, form_, "");
  note(with.ok() && without.ok() && with->text != without->text, "generation_prompt");
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(std::string_view source,
                                                                   std::string bos_token,
                                                                   std::string eos_token) {
  for (const std::string_view text :
       {source, std::string_view(bos_token), std::string_view(eos_token)}) {
    if (const std::optional<size_t> at = jinja::InvalidUtf8At(text)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("template or its tokens are not valid UTF-8 at byte %d", *at));
    }
  }
  auto chat_template =
      std::make_unique<JinjaChatTemplate>(source, std::move(bos_token), std::move(eos_token));
  MS_RETURN_IF_ERROR(chat_template->Parse(source));
  chat_template->Probe();
  return chat_template;
}

}  // namespace morphserve
