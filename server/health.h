// HealthService speaks grpc.health.v1 for one listener. The names it knows are fixed when it is
// made; each starts as NOT_SERVING. Probes carry no credential, so none is asked for. Thread rule:
// every method from any thread. Ownership: outlives the gRPC server it is registered with.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/base/mutex.h"
#include "health.grpc.pb.h"

namespace morphserve {

class HealthService final : public grpc::health::v1::Health::CallbackService {
 public:
  static constexpr size_t kWatchersMax = 1024;

  explicit HealthService(const std::vector<std::string>& names);
  ~HealthService() override;  // CHECKs that no Watch is left.

  // CHECKs that `name` was given to the constructor. Every Watch of it hears the change.
  void Set(const std::string& name, bool serving);
  bool serving(const std::string& name) const;

  // Ends every Watch with UNAVAILABLE, later ones at once: an open one would hold up the listener's
  // shutdown.
  void EndWatches();

  grpc::ServerUnaryReactor* Check(grpc::CallbackServerContext* context,
                                  const grpc::health::v1::HealthCheckRequest* request,
                                  grpc::health::v1::HealthCheckResponse* response) override;
  // RESOURCE_EXHAUSTED when kWatchersMax streams are open.
  grpc::ServerWriteReactor<grpc::health::v1::HealthCheckResponse>* Watch(
      grpc::CallbackServerContext* context,
      const grpc::health::v1::HealthCheckRequest* request) override;

 private:
  class Watcher;
  // A write or an end that was decided under the lock and is carried out after it: gRPC may call
  // back.
  struct Action {
    Watcher* watcher = nullptr;
    bool finish = false;
  };
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  Action Next(Watcher* watcher) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run(const std::vector<Action>& actions);
  Status StatusOf(const std::string& name) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  std::map<std::string, bool> serving_ ABSL_GUARDED_BY(mutex_);
  std::set<Watcher*> watchers_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace morphserve
