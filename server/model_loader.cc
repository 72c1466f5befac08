#include "server/model_loader.h"

#include <cctype>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

constexpr size_t kNameBytesMax = 128;

bool IsNameByte(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x80 && std::isalnum(byte) != 0) || c == '.' || c == '_' || c == ':' || c == '/' ||
         c == '-';
}

}  // namespace

absl::StatusOr<std::string> ServedModelName(const ServerConfig& config,
                                            const Checkpoint& checkpoint) {
  if (!config.model.name.empty()) {
    for (const char c : config.model.name) {
      if (!IsNameByte(c)) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "model.name is '%s'; only letters, digits and ._:/- are allowed", config.model.name));
      }
    }
    if (config.model.name.size() > kNameBytesMax) {
      return absl::InvalidArgumentError(absl::StrFormat("model.name has %d bytes; limit is %d",
                                                        config.model.name.size(), kNameBytesMax));
    }
    return config.model.name;
  }
  // The file's own name is free text; it becomes something that can be typed and put into a label.
  std::string name;
  for (const char c : checkpoint.name) {
    if (name.size() == kNameBytesMax) break;
    name += IsNameByte(c) ? c : '-';
  }
  return name.empty() ? "model" : name;
}

absl::StatusOr<LoadedModel> LoadModel(const ServerConfig& config, const LoadHooks& hooks) {
  MS_ASSIGN_OR_RETURN(Checkpoint checkpoint, OpenCheckpoint(config.model.path));
  LoadedModel loaded;
  MS_ASSIGN_OR_RETURN(loaded.name, ServedModelName(config, checkpoint));
  if (hooks.opened) hooks.opened(loaded.name);
  const EngineOptions options = ToEngineOptions(config);
  MS_ASSIGN_OR_RETURN(const MemoryVerdict verdict, Engine::Plan(checkpoint, options));
  MS_LOG(INFO) << "memory: " << verdict.text;
  if (!checkpoint.chat_template.empty() && checkpoint.tokenizer != nullptr) {
    absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template =
        ChatTemplate::Create(checkpoint.chat_template, checkpoint.bos_token, checkpoint.eos_token);
    if (chat_template.ok()) {
      loaded.chat_template = *std::move(chat_template);
    } else {
      // Text completion still works; chat answers FAILED_PRECONDITION.
      MS_LOG(WARNING) << "chat template is not usable: " << chat_template.status().message();
    }
  }
  loaded.generation = checkpoint.generation;
  MS_ASSIGN_OR_RETURN(loaded.engine, Engine::Create(std::move(checkpoint), options, hooks.clock,
                                                    hooks.observer, hooks.progress, hooks.cancel));
  return loaded;
}

}  // namespace morphserve
