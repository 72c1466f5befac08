#include "server/serving_state.h"

#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"

namespace morphserve {
namespace {

std::string NewInstanceId() {
  std::random_device device;
  return absl::StrFormat("%08x%08x", device(), device());
}

}  // namespace

std::string_view ServingPhaseName(ServingPhase phase) {
  switch (phase) {
    case ServingPhase::kStarting: return "starting";
    case ServingPhase::kReady: return "ready";
    case ServingPhase::kDraining: return "draining";
    case ServingPhase::kStopped: return "stopped";
  }
  return "stopped";
}

ServingState::ServingState(const ServerConfig& config, std::string config_digest,
                           absl::Time started_at)
    : config_(config),
      config_digest_(std::move(config_digest)),
      instance_id_(NewInstanceId()),
      started_at_(started_at) {}

absl::Status ServingState::Accepting() const {
  switch (phase()) {
    case ServingPhase::kStarting:
      return WithReason(absl::UnavailableError("server is loading its model"), "STARTING");
    case ServingPhase::kReady: return absl::OkStatus();
    case ServingPhase::kDraining:
      if (!refusing_.load(std::memory_order_acquire)) return absl::OkStatus();
      break;
    case ServingPhase::kStopped: break;
  }
  return WithReason(absl::UnavailableError("server is draining"), "DRAINING");
}

void ServingState::SetReady(ServedModel model) {
  MS_CHECK(owned_model_ == nullptr);
  MS_CHECK(model.engine != nullptr);
  owned_model_ = std::make_unique<const ServedModel>(std::move(model));
  model_.store(owned_model_.get(), std::memory_order_release);
  // A drain that came while the model loaded stays in force.
  ServingPhase expected = ServingPhase::kStarting;
  phase_.compare_exchange_strong(expected, ServingPhase::kReady);
}

void ServingState::BeginDrain() {
  // Without a model there is nothing to withdraw from slowly: Accepting() must not say OK.
  if (model() == nullptr) RefuseRequests();
  phase_.store(ServingPhase::kDraining, std::memory_order_release);
}

void ServingState::RefuseRequests() { refusing_.store(true, std::memory_order_release); }

void ServingState::Resume() {
  refusing_.store(false, std::memory_order_release);
  ServingPhase expected = ServingPhase::kDraining;
  phase_.compare_exchange_strong(expected, ServingPhase::kReady);
}

void ServingState::SetStopped() { phase_.store(ServingPhase::kStopped, std::memory_order_release); }

}  // namespace morphserve
