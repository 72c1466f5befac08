#include "server/morph_service.h"

#include <vector>

#include "engine/base/status_macros.h"
#include "server/call_info.h"
#include "server/errors.h"
#include "server/layer_scores.h"
#include "server/plan_messages.h"
#include "server/raw_message.h"
#include "server/translate.h"
#include "server/unary_reactor.h"

namespace morphserve {
namespace {

constexpr char kService[] = "morphserve.v1.Morph";

v1::ListPlansResponse ListPlansOf(Engine* engine) {
  v1::ListPlansResponse out;
  FillPlans(*engine, out.mutable_plans());
  FillPointers(engine, out.mutable_pointers());
  return out;
}

v1::GetActivePlanResponse ActivePlanOf(Engine* engine) {
  v1::GetActivePlanResponse out;
  const std::vector<PlanVisit> history = engine->plans().History(PlanPointer::kActive);
  for (auto visit = history.rbegin(); visit != history.rend(); ++visit) {
    *out.add_history() = MakePlanRef(*visit);
  }
  for (const PlanStatus& status : engine->PlanStatuses()) {
    if (status.entry.plan->id() == out.history(0).plan_id()) {
      FillPlan(*engine, status, out.mutable_plan());
    }
  }
  FillPointers(engine, out.mutable_pointers());
  return out;
}

// Ends a stream before its first message. Deletes itself.
class RefusedStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  RefusedStream(grpc::CallbackServerContext* context, const absl::Status& status,
                ServerMetrics* metrics, const Clock* clock, std::string_view method)
      : meter_(metrics, clock, kService, method) {
    const grpc::Status end = EndOfCall(status, context);
    meter_.SetCode(end.error_code());
    Finish(end);
  }

 private:
  void OnDone() override { delete this; }

  RpcMeter meter_;
};

}  // namespace

template <typename RequestMessage>
absl::StatusOr<const ServedModel*> MorphService::Enter(grpc::CallbackServerContext* context,
                                                       Scope scope, const grpc::ByteBuffer& bytes,
                                                       RequestMessage* message) const {
  MS_RETURN_IF_ERROR(authorizer_->Authorize(context, {scope}).status());
  MS_RETURN_IF_ERROR(ParseMessage(bytes, message));
  MS_RETURN_IF_ERROR(CheckKnownFields(*message));
  const ServedModel* model = state_->model();
  if (model == nullptr) {
    MS_RETURN_IF_ERROR(state_->Accepting());
    model = state_->model();  // It became ready between the two looks.
  }
  MS_RETURN_IF_ERROR(Translator(model, &state_->config()).CheckModel(message->model()));
  return model;
}

template <typename RequestMessage, typename Answer>
grpc::ServerUnaryReactor* MorphService::Serve(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response, std::string_view method,
                                              Scope scope, Answer answer) {
  RequestMessage message;
  const absl::StatusOr<const ServedModel*> model = Enter(context, scope, *request, &message);
  auto* reactor = new UnaryReactor(context, response, metrics_, clock_, kService, method);
  if (model.ok()) {
    reactor->Answer(answer((*model)->engine, message));
  } else {
    reactor->Fail(model.status());
  }
  return reactor;
}

template <typename RequestMessage>
grpc::ServerWriteReactor<grpc::ByteBuffer>* MorphService::RefuseStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request, std::string_view method,
    Scope scope) {
  RequestMessage message;
  absl::Status status = Enter(context, scope, *request, &message).status();
  if (status.ok()) status = FeatureUnavailable(std::string(method));
  return new RefusedStream(context, status, metrics_, clock_, method);
}

grpc::ServerUnaryReactor* MorphService::ListPlans(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return Serve<v1::ListPlansRequest>(
      context, request, response, "ListPlans", Scope::kRead,
      [](Engine* engine, const v1::ListPlansRequest&) -> absl::StatusOr<v1::ListPlansResponse> {
        return ListPlansOf(engine);
      });
}

grpc::ServerUnaryReactor* MorphService::GetActivePlan(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Serve<v1::GetActivePlanRequest>(
      context, request, response, "GetActivePlan", Scope::kRead,
      [](Engine* engine, const v1::GetActivePlanRequest&)
          -> absl::StatusOr<v1::GetActivePlanResponse> { return ActivePlanOf(engine); });
}

grpc::ServerUnaryReactor* MorphService::GetLayerScores(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return Serve<v1::GetLayerScoresRequest>(
      context, request, response, "GetLayerScores", Scope::kRead,
      [](Engine* engine, const v1::GetLayerScoresRequest& message) {
        return MakeLayerScores(*engine, message.method());
      });
}

grpc::ServerUnaryReactor* MorphService::ProposePlan(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return Serve<v1::ProposePlanRequest>(
      context, request, response, "ProposePlan", Scope::kMorph,
      [](Engine*, const v1::ProposePlanRequest&) -> absl::StatusOr<v1::ProposePlanResponse> {
        return FeatureUnavailable("ProposePlan");
      });
}

grpc::ServerUnaryReactor* MorphService::RollbackPlan(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return Serve<v1::RollbackPlanRequest>(
      context, request, response, "RollbackPlan", Scope::kMorph,
      [](Engine*, const v1::RollbackPlanRequest&) -> absl::StatusOr<v1::RollbackPlanResponse> {
        return FeatureUnavailable("RollbackPlan");
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* MorphService::Morph(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return RefuseStream<v1::MorphRequest>(context, request, "Morph", Scope::kMorph);
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* MorphService::WatchMorph(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return RefuseStream<v1::WatchMorphRequest>(context, request, "WatchMorph", Scope::kRead);
}

}  // namespace morphserve
