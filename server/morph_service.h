// MorphService is morphserve.v1.Morph on listener 8003: the plan table, the active plan, the scores
// of layers. Every answer is made at once from what is in memory. Changing the active plan belongs
// to a later release: those methods authorise and parse like the others, then say so. Thread rule:
// handlers on gRPC's threads. Ownership: outlives the gRPC server it is registered with; what the
// constructor takes outlives it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <morphserve/v1/morph.grpc.pb.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/clock.h"
#include "server/auth.h"
#include "server/server_metrics.h"
#include "server/serving_state.h"

namespace morphserve {

// Raw methods: bytes that do not parse are answered in our words.
using RawMorph = v1::Morph::WithRawCallbackMethod_ListPlans<
    v1::Morph::WithRawCallbackMethod_GetActivePlan<v1::Morph::WithRawCallbackMethod_ProposePlan<
        v1::Morph::WithRawCallbackMethod_Morph<v1::Morph::WithRawCallbackMethod_WatchMorph<
            v1::Morph::WithRawCallbackMethod_RollbackPlan<
                v1::Morph::WithRawCallbackMethod_GetLayerScores<v1::Morph::Service>>>>>>>;

class MorphService final : public RawMorph {
 public:
  // `metrics` may be null.
  MorphService(const ServingState* state, const Authorizer* authorizer, ServerMetrics* metrics,
               const Clock* clock)
      : state_(state), authorizer_(authorizer), metrics_(metrics), clock_(clock) {}

  grpc::ServerUnaryReactor* ListPlans(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request,
                                      grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetActivePlan(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ProposePlan(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Morph(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* WatchMorph(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* RollbackPlan(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetLayerScores(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;

 private:
  // What every method does first: authorises, parses, refuses fields of a later API, and finds the
  // model that `message->model()` names. UNAVAILABLE while it loads.
  template <typename RequestMessage>
  absl::StatusOr<const ServedModel*> Enter(grpc::CallbackServerContext* context, Scope scope,
                                           const grpc::ByteBuffer& bytes,
                                           RequestMessage* message) const;
  // A call with one answer, which `answer` makes of the model's engine and the message.
  template <typename RequestMessage, typename Answer>
  grpc::ServerUnaryReactor* Serve(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                  std::string_view method, Scope scope, Answer answer);
  // A stream that this release refuses.
  template <typename RequestMessage>
  grpc::ServerWriteReactor<grpc::ByteBuffer>* RefuseStream(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer* request,
                                                           std::string_view method, Scope scope);

  const ServingState* const state_;
  const Authorizer* const authorizer_;
  ServerMetrics* const metrics_;
  const Clock* const clock_;
};

}  // namespace morphserve
