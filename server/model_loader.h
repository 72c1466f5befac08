// Loads what a server serves: checkpoint, verdict on memory, engine, chat template. Blocks for as
// long as it takes; somebody else answers "starting" meanwhile.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "engine/text/chat_template.h"
#include "server/server_config.h"

namespace morphserve {

struct LoadedModel {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<ChatTemplate> chat_template;  // Null: the model has none.
  std::string name;
  GenerationDefaults generation;
};

struct LoadHooks {
  const Clock* clock = nullptr;        // Outlives the engine.
  EngineObserver* observer = nullptr;  // Outlives the engine; may be null.
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(const std::string& name)> opened;  // The headers were read; may be empty.
  std::function<void(double)> progress;                 // 0 to 1, of the weights; may be empty.
};

using ModelLoader =
    std::function<absl::StatusOr<LoadedModel>(const ServerConfig&, const LoadHooks&)>;

// CANCELLED when *cancel became true. Otherwise what opening, planning or loading said. The verdict
// on memory goes to the log before weights are read.
absl::StatusOr<LoadedModel> LoadModel(const ServerConfig& config, const LoadHooks& hooks);

// The name that requests use: letters, digits and ._:/- in at most 128 bytes.
absl::StatusOr<std::string> ServedModelName(const ServerConfig& config,
                                            const Checkpoint& checkpoint);

}  // namespace morphserve
