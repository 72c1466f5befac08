// AdminService implements morphserve.v1.Admin for listener 8003. Pause belongs to a later release
// and says so; Resume ends a drain that holds. Thread rule: gRPC's threads; Tick from one thread.
// Ownership: outlives the gRPC server it is registered with; what AdminDeps points to outlives it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <functional>
#include <optional>
#include <set>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"
#include "morphserve/v1/admin.grpc.pb.h"
#include "server/auth.h"
#include "server/drain.h"
#include "server/server_metrics.h"
#include "server/serving_state.h"
#include "server/tracked_engine.h"

namespace morphserve {

struct AdminDeps {
  const ServingState* state = nullptr;
  const Authorizer* authorizer = nullptr;
  ServerMetrics* metrics = nullptr;
  Drain* drain = nullptr;
  const Clock* clock = nullptr;
  std::function<TrackedEngine*()> engine;  // Null until the model is loaded.
};

// The load of the server as the API tells it.
v1::Load MakeLoad(const ServingState& state);

// Raw methods: bytes that do not parse are answered here, as INVALID_ARGUMENT; gRPC itself would
// say UNIMPLEMENTED with an empty text.
using AdminBase = v1::Admin::WithRawCallbackMethod_Abort<
    v1::Admin::WithRawCallbackMethod_GetLoad<v1::Admin::WithRawCallbackMethod_WatchLoad<
        v1::Admin::WithRawCallbackMethod_FlushPrefixCache<v1::Admin::WithRawCallbackMethod_Pause<
            v1::Admin::WithRawCallbackMethod_Resume<v1::Admin::WithRawCallbackMethod_Drain<
                v1::Admin::WithRawCallbackMethod_SetLogLevel<v1::Admin::Service>>>>>>>>;

class AdminService final : public AdminBase {
 public:
  static constexpr size_t kWatchersMax = 64;
  static constexpr int kAbortIdsMax = 10000;

  explicit AdminService(AdminDeps deps) : deps_(std::move(deps)) {}
  ~AdminService() override;  // CHECKs that no WatchLoad is left.

  void EndWatches();          // Ends every WatchLoad with UNAVAILABLE, later ones at once.
  void Tick(absl::Time now);  // Takes back a log level whose time is over.

  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetLoad(grpc::CallbackServerContext* context,
                                    const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* WatchLoad(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* FlushPrefixCache(grpc::CallbackServerContext* context,
                                             const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Pause(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Resume(grpc::CallbackServerContext* context,
                                   const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* SetLogLevel(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;

 private:
  class LoadWatcher;

  // One unary call: counted, authorised, parsed, done, answered.
  template <typename Request, typename Response, typename Work>
  grpc::ServerUnaryReactor* Unary(grpc::CallbackServerContext* context, const char* method,
                                  Scope scope, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response, Work work);

  absl::Status DoAbort(const v1::AbortRequest& request, v1::AbortResponse* response);
  absl::Status DoFlush(const v1::FlushPrefixCacheRequest& request,
                       v1::FlushPrefixCacheResponse* response);
  absl::Status DoDrain(const v1::DrainRequest& request, v1::DrainResponse* response);
  absl::Status DoSetLogLevel(const v1::SetLogLevelRequest& request,
                             v1::SetLogLevelResponse* response);

  struct Revert {
    LogLevel level;
    absl::Time at;
  };

  const AdminDeps deps_;
  Mutex mutex_;
  std::set<LoadWatcher*> watchers_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Revert> revert_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
