// From a conversation to token ids: checks it, renders it with the model's chat template, and
// tokenises it so that control tokens typed by a user do what the request says.
// Thread rule: functions without state, any thread; slow ones (text work) on the text pool.
#pragma once

#include <morphserve/v1/inference.pb.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "server/faults.h"
#include "server/server_config.h"

namespace morphserve {

// Checks everything but `options` and `model`. `prefix` is the path of the ChatRequest, "" or
// "chat.".
void CheckChat(const v1::ChatRequest& chat, std::string_view prefix,
               const ServerConfig::Limits& limits, FaultList* faults);

// Renders and tokenises a conversation that passed CheckChat. `context_tokens` bounds the text
// before it is tokenised. TEMPLATE_FAILED, CONTEXT_TOO_LONG, FIELD_INVALID (control tokens
// refused).
absl::StatusOr<std::vector<int32_t>> TokenizeChat(const v1::ChatRequest& chat,
                                                  std::string_view prefix,
                                                  const ServerConfig::Limits& limits,
                                                  const ChatTemplate& chat_template,
                                                  const Tokenizer& tokenizer,
                                                  int32_t context_tokens, absl::Time now);

// Tokenises plain text, refusing what cannot fit the context before any work is done on it.
absl::StatusOr<std::vector<int32_t>> TokenizeText(std::string_view text, std::string_view field,
                                                  const EncodeOptions& options,
                                                  const Tokenizer& tokenizer,
                                                  int32_t context_tokens);

}  // namespace morphserve
