// Turns a ChatInput into the variables a template reads, with the names, nesting and key order that
// transformers gives them. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/text/chat_template.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve {

// How a template wants its input; found by probes when it is loaded.
struct ChatInputForm {
  bool typed_content = false;  // Content as [{"type": "text", "text": ...}] instead of a string.
};

struct ChatVariables {
  std::string_view bos_token;  // Empty: absent, as is eos.
  std::string_view eos_token;
  std::string_view final_suffix;  // Appended to the content of the last message.
};

// The dict of variables; it borrows the strings of `input` and `variables`, which must outlive the
// rendering. INVALID_ARGUMENT names the field: invalid UTF-8, JSON that does not parse or is not an
// object, a reserved name in template_args_json.
absl::StatusOr<jinja::Dict*> BuildChatVariables(jinja::Runtime& rt, const ChatInput& input,
                                                const ChatVariables& variables,
                                                const ChatInputForm& form);

}  // namespace morphserve
