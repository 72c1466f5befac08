// InferenceService is morphserve.v1.Inference on gRPC's callback API. A handler authorises the
// call, makes its reactor and returns; parsing, rendering and tokenising run on a small pool,
// generation on the engine's thread. Methods are raw, so that a message that does not parse is
// answered in our words. Thread rule: handlers on gRPC's threads. Ownership: what the constructor
// takes outlives the service; the service outlives every call (grpc::Server::Shutdown comes first).
#pragma once

#include <grpcpp/grpcpp.h>
#include <morphserve/v1/inference.grpc.pb.h>

#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "engine/base/clock.h"
#include "server/auth.h"
#include "server/delivery.h"
#include "server/generate_reactor.h"
#include "server/server_metrics.h"
#include "server/serving_state.h"
#include "server/text_pool.h"
#include "server/translate.h"
#include "server/unary_reactor.h"
#include "server/watchdog.h"

namespace morphserve {

// Every method raw.
using RawInference = v1::Inference::WithRawCallbackMethod_Generate<
    v1::Inference::WithRawCallbackMethod_GenerateStream<
        v1::Inference::WithRawCallbackMethod_Chat<v1::Inference::WithRawCallbackMethod_ChatStream<
            v1::Inference::WithRawCallbackMethod_Tokenize<
                v1::Inference::WithRawCallbackMethod_Detokenize<
                    v1::Inference::WithRawCallbackMethod_CountTokens<v1::Inference::Service>>>>>>>;

class InferenceService final : public RawInference {
 public:
  // `metrics` may be null.
  InferenceService(const ServingState* state, const Authorizer* authorizer, ServerMetrics* metrics,
                   const Clock* clock);
  ~InferenceService() override;

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerateStream(
      grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Chat(grpc::CallbackServerContext* context,
                                 const grpc::ByteBuffer* request,
                                 grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* ChatStream(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* CountTokens(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;

 private:
  // A generation between its handler and the engine.
  struct Pending {
    GenerationKind kind = GenerationKind::kGenerate;
    grpc::ByteBuffer bytes;
    CallFacts facts;
    std::shared_ptr<GenerationState> state;
    std::shared_ptr<Outbox> outbox;
  };

  grpc::ServerWriteReactor<grpc::ByteBuffer>* StartStream(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          GenerationKind kind,
                                                          std::string_view method);
  grpc::ServerUnaryReactor* StartUnary(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                       GenerationKind kind, std::string_view method);
  // Hands the call to the pool, or fails it.
  void Start(const absl::StatusOr<Identity>& identity, const CallInfo& info, absl::Time received,
             Pending pending);
  // On the pool: parse, translate, submit.
  absl::Status Submit(const Pending& pending) const;
  absl::StatusOr<Request> Translate(const Pending& pending, const Translator& translator,
                                    bool* token_ids) const;
  void Refuse(const std::shared_ptr<Outbox>& outbox, const absl::Status& status) const;

  // A call of text work only: `answer` turns a parsed request into its response.
  template <typename RequestMessage, typename Answer>
  grpc::ServerUnaryReactor* StartText(grpc::CallbackServerContext* context,
                                      const grpc::ByteBuffer* request, grpc::ByteBuffer* response,
                                      std::string_view method, Answer answer);
  absl::Status PoolIsFull() const;
  // Null when the engine's thread delivers.
  Delivery* DeliveryOfEngine();

  const ServingState* const state_;
  const Authorizer* const authorizer_;
  ServerMetrics* const metrics_;
  const Clock* const clock_;
  const OutboxLimits outbox_limits_;
  Delivery delivery_;
  StreamWatchdog watchdog_;
  TextPool pool_;  // Last: its jobs use everything above.
};

}  // namespace morphserve
