// MorphService is morphserve.v1.Morph on listener 8003: the plan table, the active plan, the scores
// of layers, and changing the active plan. Morphs are MorphController's; this turns calls into
// orders and events into messages. Thread rule: handlers on gRPC's threads, which nothing here
// blocks. Ownership: outlives the gRPC server it is registered with; what the constructor takes
// outlives it.
#pragma once

#include <grpcpp/grpcpp.h>
#include <morphserve/v1/morph.grpc.pb.h>

#include <functional>
#include <set>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "server/auth.h"
#include "server/morph_stream.h"
#include "server/rollback_ledger.h"
#include "server/server_metrics.h"
#include "server/serving_state.h"
#include "server/unary_reactor.h"

namespace morphserve {

// Raw methods: bytes that do not parse are answered in our words.
using RawMorph = v1::Morph::WithRawCallbackMethod_ListPlans<
    v1::Morph::WithRawCallbackMethod_GetActivePlan<v1::Morph::WithRawCallbackMethod_ProposePlan<
        v1::Morph::WithRawCallbackMethod_Morph<v1::Morph::WithRawCallbackMethod_WatchMorph<
            v1::Morph::WithRawCallbackMethod_RollbackPlan<
                v1::Morph::WithRawCallbackMethod_GetLayerScores<
                    v1::Morph::WithRawCallbackMethod_GetCosts<
                        v1::Morph::WithRawCallbackMethod_GetAutopilot<
                            v1::Morph::WithRawCallbackMethod_SetAutopilot<
                                v1::Morph::Service>>>>>>>>>>;

struct MorphDeps {
  const ServingState* state = nullptr;
  const Authorizer* authorizer = nullptr;
  ServerMetrics* metrics = nullptr;  // May be null.
  const Clock* clock = nullptr;
  // Ends the requests that run under a plan; how many.
  std::function<uint32_t(const std::string& plan_id, const absl::Status& status)> end_plan;
};

class MorphService final : public RawMorph {
 public:
  explicit MorphService(MorphDeps deps);
  ~MorphService() override;  // CHECKs that no stream is left.

  // Ends every stream and refuses new ones: UNAVAILABLE / DRAINING.
  void EndStreams();

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
  grpc::ServerUnaryReactor* GetCosts(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetAutopilot(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* SetAutopilot(grpc::CallbackServerContext* context,
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
  // The same for an answer that may come later: `work` gets the reactor, and calls Answer or Fail.
  template <typename RequestMessage, typename Work>
  grpc::ServerUnaryReactor* ServeLater(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                       std::string_view method, Scope scope, Work work);
  // A stream of the morph whose id `find` gives (empty: all), or of its status.
  template <typename RequestMessage, typename FindMorph>
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Stream(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     std::string_view method, Scope scope,
                                                     FindMorph find);
  void DoRollback(const ServedModel& model, const v1::RollbackPlanRequest& message,
                  UnaryReactor* reactor);

  const MorphDeps deps_;
  RollbackLedger rollbacks_;
  Mutex mutex_;
  std::set<MorphStream*> streams_ ABSL_GUARDED_BY(mutex_);
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace morphserve
