#include "server/health.h"

#include "engine/base/check.h"

namespace morphserve {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// One Watch. At most one operation is under way: `writing` or `finishing` is set, under the
// service's lock, before the operation starts, so nobody else touches the stream until its
// callback.
class HealthService::Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService* service, std::string name) : service_(service), name_(std::move(name)) {}

  void OnWriteDone(bool ok) override {
    Action action;
    {
      MutexLock lock(&service_->mutex_);
      writing = false;
      broken = broken || !ok;
      action = service_->Next(this);
    }
    service_->Run({action});
  }

  void OnCancel() override {
    Action action;
    {
      MutexLock lock(&service_->mutex_);
      broken = true;
      action = service_->Next(this);
    }
    service_->Run({action});
  }

  void OnDone() override {
    {
      MutexLock lock(&service_->mutex_);
      service_->watchers_.erase(this);
    }
    delete this;
  }

  const std::string& name() const { return name_; }

  // Guarded by the service's mutex.
  bool writing = false;
  bool finishing = false;
  bool broken = false;  // The client went, or a write failed.
  bool sent_any = false;
  Status sent = HealthCheckResponse::UNKNOWN;
  HealthCheckResponse message;
  grpc::Status end;

 private:
  HealthService* const service_;
  const std::string name_;
};

HealthService::HealthService(const std::vector<std::string>& names) {
  for (const std::string& name : names) serving_[name] = false;
}

HealthService::~HealthService() {
  MutexLock lock(&mutex_);
  MS_CHECK(watchers_.empty());
}

HealthService::Status HealthService::StatusOf(const std::string& name) const {
  const auto found = serving_.find(name);
  if (found == serving_.end()) return HealthCheckResponse::SERVICE_UNKNOWN;
  return found->second ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

HealthService::Action HealthService::Next(Watcher* watcher) {
  if (watcher->writing || watcher->finishing) return {};
  if (watcher->broken || ended_) {
    watcher->finishing = true;
    watcher->end = watcher->broken
                       ? grpc::Status(grpc::StatusCode::CANCELLED, "caller went away")
                       : grpc::Status(grpc::StatusCode::UNAVAILABLE, "server is draining");
    return {watcher, true};
  }
  const Status status = StatusOf(watcher->name());
  if (watcher->sent_any && watcher->sent == status) return {};
  watcher->writing = true;
  watcher->sent_any = true;
  watcher->sent = status;
  watcher->message.set_status(status);
  return {watcher, false};
}

void HealthService::Run(const std::vector<Action>& actions) {
  for (const Action& action : actions) {
    if (action.watcher == nullptr) continue;
    if (action.finish) {
      action.watcher->Finish(action.watcher->end);
    } else {
      action.watcher->StartWrite(&action.watcher->message);
    }
  }
}

void HealthService::Set(const std::string& name, bool serving) {
  std::vector<Action> actions;
  {
    MutexLock lock(&mutex_);
    const auto found = serving_.find(name);
    MS_CHECK(found != serving_.end());
    if (found->second == serving) return;
    found->second = serving;
    for (Watcher* watcher : watchers_) {
      if (watcher->name() == name) actions.push_back(Next(watcher));
    }
  }
  Run(actions);
}

bool HealthService::serving(const std::string& name) const {
  MutexLock lock(&mutex_);
  const auto found = serving_.find(name);
  return found != serving_.end() && found->second;
}

void HealthService::EndWatches() {
  std::vector<Action> actions;
  {
    MutexLock lock(&mutex_);
    ended_ = true;
    for (Watcher* watcher : watchers_) actions.push_back(Next(watcher));
  }
  Run(actions);
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context,
                                               const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  Status status;
  {
    MutexLock lock(&mutex_);
    status = StatusOf(request->service());
  }
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (status == HealthCheckResponse::SERVICE_UNKNOWN) {
    reactor->Finish(grpc::Status(grpc::StatusCode::NOT_FOUND, "service name is not known"));
  } else {
    response->set_status(status);
    reactor->Finish(grpc::Status::OK);
  }
  return reactor;
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(
    grpc::CallbackServerContext*, const HealthCheckRequest* request) {
  auto* watcher = new Watcher(this, request->service());  // Deletes itself in OnDone.
  Action action;
  {
    MutexLock lock(&mutex_);
    if (watchers_.size() >= kWatchersMax) {
      watcher->finishing = true;
      watcher->end =
          grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "1024 health watches are open");
      action = {watcher, true};
    } else {
      action = Next(watcher);
    }
    watchers_.insert(watcher);
  }
  Run({action});
  return watcher;
}

}  // namespace morphserve
