// ServingState is what every service reads before it does anything: whether the server takes
// requests, the engine and the chat template once they are loaded, and the constants of this
// process. Thread rule: every method from any thread. Ownership: the engine and the chat template
// belong to the server and live until no service can be called any more.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "engine/loader/checkpoint.h"
#include "engine/text/chat_template.h"
#include "morph/autopilot_runner.h"
#include "morph/controller.h"
#include "server/server_config.h"

namespace morphserve {

// starting -> ready -> draining -> stopped; draining -> ready when a held drain is resumed.
enum class ServingPhase : uint8_t { kStarting, kReady, kDraining, kStopped };
std::string_view ServingPhaseName(ServingPhase phase);

// What loading brought; handed over once, constant afterwards.
struct ServedModel {
  Engine* engine = nullptr;
  const ChatTemplate* chat_template = nullptr;  // Null: the model has none.
  std::string name;                             // What requests call it.
  GenerationDefaults generation;
  MorphController* morph = nullptr;
  AutopilotRunner* autopilot = nullptr;
};

class ServingState {
 public:
  // `config` is copied; `config_digest` names its effective values.
  ServingState(const ServerConfig& config, std::string config_digest, absl::Time started_at);

  // OK while requests are taken: ready, or draining within the withdrawal time. Otherwise
  // UNAVAILABLE with reason STARTING or DRAINING. After OK, model() is not null.
  absl::Status Accepting() const;

  ServingPhase phase() const { return phase_.load(std::memory_order_acquire); }
  // Null until loaded, then constant.
  const ServedModel* model() const { return model_.load(std::memory_order_acquire); }
  Engine* engine() const {
    const ServedModel* served = model();
    return served != nullptr ? served->engine : nullptr;
  }
  const ChatTemplate* chat_template() const {
    const ServedModel* served = model();
    return served != nullptr ? served->chat_template : nullptr;
  }

  const ServerConfig& config() const { return config_; }
  const std::string& config_digest() const { return config_digest_; }
  const std::string& instance_id() const { return instance_id_; }  // Random, of this process.
  absl::Time started_at() const { return started_at_; }

  // The server's side. SetReady is called once; CHECKs that `model` has an engine.
  void SetReady(ServedModel model);
  void BeginDrain();      // Readiness goes; requests are still taken.
  void RefuseRequests();  // From now on Accepting() is DRAINING.
  void Resume();          // Back from a held drain to ready.
  void SetStopped();

 private:
  const ServerConfig config_;
  const std::string config_digest_;
  const std::string instance_id_;
  const absl::Time started_at_;
  std::unique_ptr<const ServedModel> owned_model_;  // Written once, before model_ is published.
  std::atomic<const ServedModel*> model_{nullptr};
  std::atomic<ServingPhase> phase_{ServingPhase::kStarting};
  std::atomic<bool> refusing_{false};
};

}  // namespace morphserve
