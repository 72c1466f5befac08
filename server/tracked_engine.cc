#include "server/tracked_engine.h"

#include <utility>

#include "absl/strings/str_format.h"

namespace morphserve {

struct TrackedEngine::Registry {
  struct Entry {
    std::string tenant;
    std::string plan_id;
  };

  bool Add(const Request& request) {
    MutexLock lock(&mutex);
    return live.emplace(request.id, Entry{request.tenant, request.plan_id.value_or("")}).second;
  }
  void Remove(const std::string& id) {
    MutexLock lock(&mutex);
    live.erase(id);
  }
  void SetPlan(const std::string& id, const std::string& plan_id) {
    MutexLock lock(&mutex);
    const auto found = live.find(id);
    if (found != live.end()) found->second.plan_id = plan_id;
  }

  mutable Mutex mutex;
  std::map<std::string, Entry> live ABSL_GUARDED_BY(mutex);
};

// Takes the request off the list before its end is told, so that a client that sees the end may use
// the id again.
class TrackedEngine::Sink final : public TokenSink {
 public:
  Sink(std::string id, std::shared_ptr<Registry> registry, std::shared_ptr<TokenSink> sink)
      : id_(std::move(id)), registry_(std::move(registry)), sink_(std::move(sink)) {}

  void OnStarted(const StartedEvent& event) override {
    registry_->SetPlan(id_, event.plan_id);
    sink_->OnStarted(event);
  }
  void OnTokens(TokensEvent event) override { sink_->OnTokens(std::move(event)); }
  void OnFinished(const FinishedEvent& event) override { sink_->OnFinished(event); }
  void OnDone(DoneEvent event) override {
    registry_->Remove(id_);
    sink_->OnDone(std::move(event));
  }
  void OnError(const absl::Status& status) override {
    registry_->Remove(id_);
    sink_->OnError(status);
  }

 private:
  const std::string id_;
  const std::shared_ptr<Registry> registry_;
  const std::shared_ptr<TokenSink> sink_;
};

TrackedEngine::TrackedEngine(std::unique_ptr<Engine> inner)
    : registry_(std::make_shared<Registry>()), inner_(std::move(inner)) {}

TrackedEngine::~TrackedEngine() = default;

absl::Status TrackedEngine::Submit(Request request, std::shared_ptr<TokenSink> sink) {
  const std::string id = request.id;
  if (!registry_->Add(request)) {
    return WithReason(absl::AlreadyExistsError(absl::StrFormat("request_id %s is in use", id)),
                      "REQUEST_ID_IN_USE");
  }
  const absl::Status status =
      inner_->Submit(std::move(request), std::make_shared<Sink>(id, registry_, std::move(sink)));
  if (!status.ok()) registry_->Remove(id);
  return status;
}

std::vector<TrackedEngine::Live> TrackedEngine::LiveRequests() const {
  std::vector<Live> out;
  MutexLock lock(&registry_->mutex);
  out.reserve(registry_->live.size());
  for (const auto& [id, entry] : registry_->live) out.push_back({id, entry.tenant, entry.plan_id});
  return out;
}

size_t TrackedEngine::live_count() const {
  MutexLock lock(&registry_->mutex);
  return registry_->live.size();
}

size_t TrackedEngine::EndAll(const absl::Status& status) {
  const std::vector<Live> live = LiveRequests();
  for (const Live& request : live) inner_->Cancel(request.id, status);
  return live.size();
}

uint32_t TrackedEngine::EndPlan(const std::string& plan_id, const absl::Status& status) {
  uint32_t ended = 0;
  for (const Live& request : LiveRequests()) {
    if (request.plan_id == plan_id && inner_->Cancel(request.id, status)) ++ended;
  }
  return ended;
}

}  // namespace morphserve
