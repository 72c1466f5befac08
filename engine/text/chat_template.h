// ChatTemplate renders messages into a prompt with the Jinja template of the model's files, byte
// for byte as transformers does. Values carry provenance, so that the rendered text says which
// bytes the template wrote and which came from the request (control tokens typed by a user stay
// text). Thread rule: immutable after Create, any thread. Templates and inputs are untrusted: work,
// output and depth are bounded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/text/tokenizer.h"

namespace morphserve {

struct ChatToolCall {
  std::string id;
  std::string name;
  std::string arguments_json;
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::string name;       // Empty: absent.
  std::string reasoning;  // Empty: absent; given to the template as reasoning_content.
  std::vector<ChatToolCall> tool_calls;
  std::string tool_call_id;  // Empty: absent.
};

struct ChatTool {
  std::string name;
  std::string description;
  std::string parameters_json;
};

struct ChatInput {
  std::vector<ChatMessage> messages;
  std::vector<ChatTool> tools;
  std::string template_args_json;  // An object; its members become template variables. Empty: none.
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  absl::Time now;  // What strftime_now reads.
};

struct TemplateLimits {
  int64_t steps_max = 2'000'000;
  int64_t output_bytes_max = 4 << 20;
};

struct RenderedChat {
  std::string text;
  std::vector<ByteRange> trusted;  // Bytes written by the template itself. Sorted, disjoint.
};

class ChatTemplate {
 public:
  // `source` is the template; bos and eos its token strings (empty when the model has none).
  // INVALID_ARGUMENT with line, column and construct when it does not parse.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Create(std::string_view source,
                                                              std::string bos_token,
                                                              std::string eos_token);
  virtual ~ChatTemplate() = default;

  // INVALID_ARGUMENT: the template raised (with its text), a limit was hit (with the line), or the
  // JSON of the input does not parse.
  virtual absl::StatusOr<RenderedChat> Render(const ChatInput& input,
                                              const TemplateLimits& limits) const = 0;

  // What probes at Create found: system_role, tools, tool_calls, reasoning, typed_content,
  // generation_prompt.
  virtual const std::vector<std::string>& capabilities() const = 0;
};

}  // namespace morphserve
