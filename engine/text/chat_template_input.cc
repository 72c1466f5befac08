#include "engine/text/chat_template_input.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/text/jinja_unicode.h"
#include "engine/text/json_value.h"

namespace morphserve {
namespace {

using jinja::Dict;
using jinja::Runtime;
using jinja::Str;
using jinja::Value;

// A role that is one of these words is a constant, whoever wrote it. Templates that build control
// tokens around the role ('<|' + role + '|>') get them whole.
constexpr std::string_view kKnownRoles[] = {"system", "user",      "assistant",
                                            "tool",   "developer", "function"};

class VariableBuilder {
 public:
  VariableBuilder(Runtime& rt, const ChatInputForm& form) : rt_(rt), form_(form) {}

  absl::StatusOr<Dict*> Build(const ChatInput& input, const ChatVariables& variables);

 private:
  absl::Status AddMessages(const ChatInput& input, std::string_view final_suffix, Dict* root);
  absl::StatusOr<Value> MakeMessage(const ChatMessage& message, const std::string& where,
                                    std::string_view suffix);
  absl::Status AddContent(const ChatMessage& message, const std::string& where,
                          std::string_view suffix, Dict* dict);
  absl::Status AddToolCalls(const ChatMessage& message, const std::string& where, Dict* dict);
  absl::Status AddTools(const ChatInput& input, Dict* root);
  absl::Status AddTemplateArgs(const ChatInput& input, Dict* root);

  // One entry of a dict. `trusted` tells who wrote the text.
  absl::Status Put(Dict* dict, std::string_view key, const Value& value);
  absl::Status PutText(Dict* dict, std::string_view key, const std::string& where,
                       std::string_view text, bool trusted = false);
  absl::Status PutList(Dict* dict, std::string_view key, const std::vector<Value>& items);
  absl::Status PutObject(Dict* dict, std::string_view key, const std::string& where,
                         std::string_view json);
  // Checks the text and borrows its bytes.
  absl::StatusOr<Value> Text(const std::string& where, std::string_view text, bool trusted);
  absl::StatusOr<Dict*> NewDict();
  absl::Status Failure() const {
    return rt_.failed() ? rt_.status() : absl::InternalError("chat input could not be built");
  }

  Runtime& rt_;
  const ChatInputForm& form_;
};

absl::StatusOr<Value> VariableBuilder::Text(const std::string& where, std::string_view text,
                                            bool trusted) {
  if (static_cast<int64_t>(text.size()) > rt_.text_bytes_max()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has %d bytes; limit is %d", where, text.size(), rt_.text_bytes_max()));
  }
  if (const std::optional<size_t> at = jinja::InvalidUtf8At(text)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is not valid UTF-8 at byte %d", where, *at));
  }
  Str str;
  str.data = text.data();
  str.size = static_cast<uint32_t>(text.size());
  str.trusted = trusted || text.empty();
  Value value;
  if (!rt_.MakeStr(str, &value)) return Failure();
  return value;
}

absl::StatusOr<Dict*> VariableBuilder::NewDict() {
  Dict* dict = rt_.MakeDict();
  if (dict == nullptr) return Failure();
  return dict;
}

absl::Status VariableBuilder::Put(Dict* dict, std::string_view key, const Value& value) {
  Value name;
  if (!rt_.MakeText(key, true, &name) || !rt_.SetItem(dict, name, value)) return Failure();
  return absl::OkStatus();
}

absl::Status VariableBuilder::PutText(Dict* dict, std::string_view key, const std::string& where,
                                      std::string_view text, bool trusted) {
  MS_ASSIGN_OR_RETURN(const Value value, Text(absl::StrFormat("%s.%s", where, key), text, trusted));
  return Put(dict, key, value);
}

absl::Status VariableBuilder::PutList(Dict* dict, std::string_view key,
                                      const std::vector<Value>& items) {
  Value list;
  if (!rt_.MakeList(items, &list)) return Failure();
  return Put(dict, key, list);
}

absl::Status VariableBuilder::PutObject(Dict* dict, std::string_view key, const std::string& where,
                                        std::string_view json) {
  Value value;
  const std::string field = absl::StrFormat("%s.%s", where, key);
  MS_RETURN_IF_ERROR(jinja::ParseJson(rt_, field, json, &value));
  if (!value.is(jinja::Kind::kDict)) {
    return absl::InvalidArgumentError(field + ": a json object is wanted");
  }
  return Put(dict, key, value);
}

absl::Status VariableBuilder::AddContent(const ChatMessage& message, const std::string& where,
                                         std::string_view suffix, Dict* dict) {
  MS_ASSIGN_OR_RETURN(Value content, Text(where + ".content", message.content, false));
  if (!suffix.empty()) {
    MS_ASSIGN_OR_RETURN(const Value tail, Text(where, suffix, false));
    if (!jinja::Concat(rt_, content.str(), tail.str(), false, &content)) return Failure();
  }
  if (!form_.typed_content) return Put(dict, "content", content);
  MS_ASSIGN_OR_RETURN(Dict* const part, NewDict());
  MS_RETURN_IF_ERROR(PutText(part, "type", where, "text", true));
  MS_RETURN_IF_ERROR(Put(part, "text", content));
  return PutList(dict, "content", {Value::OfDict(part)});
}

absl::Status VariableBuilder::AddToolCalls(const ChatMessage& message, const std::string& where,
                                           Dict* dict) {
  std::vector<Value> calls;
  for (size_t i = 0; i < message.tool_calls.size(); ++i) {
    const ChatToolCall& call = message.tool_calls[i];
    const std::string place = absl::StrFormat("%s.tool_calls[%d]", where, i);
    MS_ASSIGN_OR_RETURN(Dict* const entry, NewDict());
    MS_ASSIGN_OR_RETURN(Dict* const function, NewDict());
    MS_RETURN_IF_ERROR(PutText(entry, "type", place, "function", true));
    if (!call.id.empty()) MS_RETURN_IF_ERROR(PutText(entry, "id", place, call.id));
    MS_RETURN_IF_ERROR(PutText(function, "name", place, call.name));
    MS_RETURN_IF_ERROR(
        PutObject(function, "arguments", place,
                  call.arguments_json.empty() ? std::string_view("{}") : call.arguments_json));
    MS_RETURN_IF_ERROR(Put(entry, "function", Value::OfDict(function)));
    calls.push_back(Value::OfDict(entry));
  }
  return PutList(dict, "tool_calls", calls);
}

absl::StatusOr<Value> VariableBuilder::MakeMessage(const ChatMessage& message,
                                                   const std::string& where,
                                                   std::string_view suffix) {
  MS_ASSIGN_OR_RETURN(Dict* const dict, NewDict());
  const bool known_role = std::find(std::begin(kKnownRoles), std::end(kKnownRoles), message.role) !=
                          std::end(kKnownRoles);
  if (!message.reasoning.empty()) {
    // Under its older name too, and first, which is where transformers puts the alias.
    MS_RETURN_IF_ERROR(PutText(dict, "thinking", where, message.reasoning));
  }
  MS_RETURN_IF_ERROR(PutText(dict, "role", where, message.role, known_role));
  MS_RETURN_IF_ERROR(AddContent(message, where, suffix, dict));
  if (!message.name.empty()) MS_RETURN_IF_ERROR(PutText(dict, "name", where, message.name));
  if (!message.reasoning.empty()) {
    MS_RETURN_IF_ERROR(PutText(dict, "reasoning_content", where, message.reasoning));
  }
  if (!message.tool_calls.empty()) MS_RETURN_IF_ERROR(AddToolCalls(message, where, dict));
  if (!message.tool_call_id.empty()) {
    MS_RETURN_IF_ERROR(PutText(dict, "tool_call_id", where, message.tool_call_id));
  }
  return Value::OfDict(dict);
}

absl::Status VariableBuilder::AddMessages(const ChatInput& input, std::string_view final_suffix,
                                          Dict* root) {
  std::vector<Value> messages;
  for (size_t i = 0; i < input.messages.size(); ++i) {
    const bool last = i + 1 == input.messages.size();
    MS_ASSIGN_OR_RETURN(const Value message,
                        MakeMessage(input.messages[i], absl::StrFormat("messages[%d]", i),
                                    last ? final_suffix : std::string_view()));
    messages.push_back(message);
  }
  return PutList(root, "messages", messages);
}

absl::Status VariableBuilder::AddTools(const ChatInput& input, Dict* root) {
  if (input.tools.empty()) return Put(root, "tools", Value::None());
  std::vector<Value> tools;
  for (size_t i = 0; i < input.tools.size(); ++i) {
    const ChatTool& tool = input.tools[i];
    const std::string place = absl::StrFormat("tools[%d]", i);
    MS_ASSIGN_OR_RETURN(Dict* const entry, NewDict());
    MS_ASSIGN_OR_RETURN(Dict* const function, NewDict());
    MS_RETURN_IF_ERROR(PutText(entry, "type", place, "function", true));
    MS_RETURN_IF_ERROR(PutText(function, "name", place, tool.name));
    if (!tool.description.empty()) {
      MS_RETURN_IF_ERROR(PutText(function, "description", place, tool.description));
    }
    if (!tool.parameters_json.empty()) {
      MS_RETURN_IF_ERROR(PutObject(function, "parameters", place, tool.parameters_json));
    }
    MS_RETURN_IF_ERROR(Put(entry, "function", Value::OfDict(function)));
    tools.push_back(Value::OfDict(entry));
  }
  return PutList(root, "tools", tools);
}

absl::Status VariableBuilder::AddTemplateArgs(const ChatInput& input, Dict* root) {
  if (input.template_args_json.empty()) return absl::OkStatus();
  static constexpr std::string_view kReserved[] = {"messages", "tools", "add_generation_prompt"};
  Value args;
  MS_RETURN_IF_ERROR(jinja::ParseJson(rt_, "template_args_json", input.template_args_json, &args));
  if (!args.is(jinja::Kind::kDict)) {
    return absl::InvalidArgumentError("template_args_json: a json object is wanted");
  }
  for (const Dict::Entry& entry : args.dict().entries()) {
    if (std::find(std::begin(kReserved), std::end(kReserved), entry.key.text()) !=
        std::end(kReserved)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("template_args_json: '%s' is not a template argument", entry.key.text()));
    }
    if (!rt_.SetItem(root, entry.key, entry.value)) return Failure();
  }
  return absl::OkStatus();
}

absl::StatusOr<Dict*> VariableBuilder::Build(const ChatInput& input,
                                             const ChatVariables& variables) {
  MS_ASSIGN_OR_RETURN(Dict* const root, NewDict());
  const std::string where = "template";
  if (!variables.bos_token.empty()) {
    MS_RETURN_IF_ERROR(PutText(root, "bos_token", where, variables.bos_token, true));
  }
  if (!variables.eos_token.empty()) {
    MS_RETURN_IF_ERROR(PutText(root, "eos_token", where, variables.eos_token, true));
  }
  MS_RETURN_IF_ERROR(Put(root, "documents", Value::None()));
  MS_RETURN_IF_ERROR(AddMessages(input, variables.final_suffix, root));
  MS_RETURN_IF_ERROR(AddTools(input, root));
  MS_RETURN_IF_ERROR(Put(root, "add_generation_prompt", Value::Bool(input.add_generation_prompt)));
  MS_RETURN_IF_ERROR(AddTemplateArgs(input, root));
  return root;
}

}  // namespace

absl::StatusOr<jinja::Dict*> BuildChatVariables(jinja::Runtime& rt, const ChatInput& input,
                                                const ChatVariables& variables,
                                                const ChatInputForm& form) {
  return VariableBuilder(rt, form).Build(input, variables);
}

}  // namespace morphserve
