// From a conversation to token ids: checks it, renders it with the model's chat template, and
// tokenises it so that control tokens typed by a user do what the request says.
// Thread rule: any thread; slow ones (text work) on the text pool.
#pragma once

#include <morphserve/v1/inference.pb.h>

#include <cstdint>
#include <optional>
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

// Renders and tokenises conversations that passed CheckChat. Thread rule: immutable, any thread.
class ChatTokenizer {
 public:
  // All outlive this.
  ChatTokenizer(const ServerConfig::Limits* limits, const ChatTemplate* chat_template,
                const Tokenizer* tokenizer)
      : limits_(limits), chat_template_(chat_template), tokenizer_(tokenizer) {}

  struct Rendered {
    std::string text;
    std::vector<int32_t> tokens;
  };
  // `prefix` as in CheckChat. `context_tokens` bounds the text before it is tokenised.
  // TEMPLATE_FAILED, CONTEXT_TOO_LONG, FIELD_INVALID (control tokens refused).
  absl::StatusOr<Rendered> Render(const v1::ChatRequest& chat, std::string_view prefix,
                                  int32_t context_tokens, absl::Time now) const;

  // How many of the tokens of `rendered`, the prompt of `chat`, the next turn will repeat: what it
  // has in common with the same chat an answer and a question later. Templates end a prompt with
  // what they leave out of an answer that is history, and move parts to the last question. Empty
  // when the prompt asks for no answer, or the template refuses such a chat. Costs as much as
  // Render did, no more.
  std::optional<int32_t> StableTokens(const v1::ChatRequest& chat, const Rendered& rendered,
                                      int32_t context_tokens, absl::Time now) const;

 private:
  TemplateLimits Bounds() const;

  const ServerConfig::Limits* const limits_;
  const ChatTemplate* const chat_template_;
  const Tokenizer* const tokenizer_;
};

// Tokenises plain text, refusing what cannot fit the context before any work is done on it.
absl::StatusOr<std::vector<int32_t>> TokenizeText(std::string_view text, std::string_view field,
                                                  const EncodeOptions& options,
                                                  const Tokenizer& tokenizer,
                                                  int32_t context_tokens);

}  // namespace morphserve
