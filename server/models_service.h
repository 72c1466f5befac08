// ModelsService is morphserve.v1.Models: what is served, and by what process. Every answer is made
// at once from what is in memory. Thread rule: handlers on gRPC's threads. Ownership: as
// InferenceService.
#pragma once

#include <grpcpp/grpcpp.h>
#include <morphserve/v1/models.grpc.pb.h>

#include <string_view>

#include "engine/base/clock.h"
#include "server/auth.h"
#include "server/server_metrics.h"
#include "server/serving_state.h"

namespace morphserve {

// The messages themselves; also for tests and pages.
v1::ModelInfo MakeModelInfo(const ServedModel& model);
v1::ServerInfo MakeServerInfo(const ServingState& state);

using RawModels =
    v1::Models::WithRawCallbackMethod_ListModels<v1::Models::WithRawCallbackMethod_GetModelInfo<
        v1::Models::WithRawCallbackMethod_GetServerInfo<v1::Models::Service>>>;

class ModelsService final : public RawModels {
 public:
  // `metrics` may be null.
  ModelsService(const ServingState* state, const Authorizer* authorizer, ServerMetrics* metrics,
                const Clock* clock)
      : state_(state), authorizer_(authorizer), metrics_(metrics), clock_(clock) {}

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;

 private:
  // Authorises, parses, answers.
  template <typename RequestMessage, typename Answer>
  grpc::ServerUnaryReactor* Serve(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                  std::string_view method, Answer answer);
  // The model; UNAVAILABLE while it loads.
  absl::StatusOr<const ServedModel*> Model() const;

  const ServingState* const state_;
  const Authorizer* const authorizer_;
  ServerMetrics* const metrics_;
  const Clock* const clock_;
};

}  // namespace morphserve
