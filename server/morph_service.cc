#include "server/morph_service.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "server/autopilot_messages.h"
#include "server/call_info.h"
#include "server/errors.h"
#include "server/layer_scores.h"
#include "server/morph_messages.h"
#include "server/plan_messages.h"
#include "server/raw_message.h"
#include "server/translate.h"

namespace morphserve {
namespace {

constexpr char kService[] = "morphserve.v1.Morph";

v1::ListPlansResponse ListPlansOf(const ServedModel& model) {
  v1::ListPlansResponse out;
  FillPlans(*model.engine, out.mutable_plans());
  FillPointers(model.engine, out.mutable_pointers());
  const absl::StatusOr<AutopilotState> autopilot = model.autopilot->State();
  if (autopilot.ok()) *out.mutable_autopilot() = WriteStanding(autopilot->standing);
  return out;
}

absl::StatusOr<AutopilotState> ChangeAutopilot(const ServedModel& model,
                                               const v1::SetAutopilotRequest& message) {
  if (message.reset()) {
    MS_RETURN_IF_ERROR(CheckReset(message));
    return model.autopilot->ResetTarget();
  }
  const int32_t layers = model.engine->info().layers;
  return model.autopilot->ChangeTarget(
      [&](const AutopilotTarget& now) { return ReadAutopilot(message, now, layers); });
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

}  // namespace

MorphService::MorphService(MorphDeps deps) : deps_(std::move(deps)), rollbacks_(deps_.clock) {}

MorphService::~MorphService() {
  MutexLock lock(&mutex_);
  MS_CHECK(streams_.empty());
}

void MorphService::EndStreams() {
  MutexLock lock(&mutex_);
  ended_ = true;
  for (MorphStream* stream : streams_) {
    stream->End(WithReason(absl::UnavailableError("server is draining"), reason::kDraining));
  }
}

template <typename RequestMessage>
absl::StatusOr<const ServedModel*> MorphService::Enter(grpc::CallbackServerContext* context,
                                                       Scope scope, const grpc::ByteBuffer& bytes,
                                                       RequestMessage* message) const {
  MS_RETURN_IF_ERROR(deps_.authorizer->Authorize(context, {scope}).status());
  MS_RETURN_IF_ERROR(ParseMessage(bytes, message));
  MS_RETURN_IF_ERROR(CheckKnownFields(*message));
  const ServedModel* model = deps_.state->model();
  if (model == nullptr) {
    MS_RETURN_IF_ERROR(deps_.state->Accepting());
    model = deps_.state->model();  // It became ready between the two looks.
  }
  MS_RETURN_IF_ERROR(Translator(model, &deps_.state->config()).CheckModel(message->model()));
  return model;
}

template <typename RequestMessage, typename Answer>
grpc::ServerUnaryReactor* MorphService::Serve(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response, std::string_view method,
                                              Scope scope, Answer answer) {
  RequestMessage message;
  const absl::StatusOr<const ServedModel*> model = Enter(context, scope, *request, &message);
  auto* reactor = new UnaryReactor(context, response, deps_.metrics, deps_.clock, kService, method);
  if (model.ok()) {
    reactor->Answer(answer((*model)->engine, message));
  } else {
    reactor->Fail(model.status());
  }
  return reactor;
}

template <typename RequestMessage, typename Work>
grpc::ServerUnaryReactor* MorphService::ServeLater(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response,
                                                   std::string_view method, Scope scope,
                                                   Work work) {
  RequestMessage message;
  const absl::StatusOr<const ServedModel*> model = Enter(context, scope, *request, &message);
  auto* reactor = new UnaryReactor(context, response, deps_.metrics, deps_.clock, kService, method);
  if (!model.ok()) {
    reactor->Fail(model.status());
  } else {
    work(**model, message, reactor);
  }
  return reactor;
}

template <typename RequestMessage, typename FindMorph>
grpc::ServerWriteReactor<grpc::ByteBuffer>* MorphService::Stream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request, std::string_view method,
    Scope scope, FindMorph find) {
  auto* stream =
      new MorphStream(context, deps_.metrics, deps_.clock, method, [this](MorphStream* done) {
        MutexLock lock(&mutex_);
        streams_.erase(done);
      });
  bool ended;
  {
    MutexLock lock(&mutex_);
    streams_.insert(stream);
    ended = ended_;
  }
  RequestMessage message;
  const absl::StatusOr<const ServedModel*> model = Enter(context, scope, *request, &message);
  absl::StatusOr<std::string> morph_id = std::string();
  if (!model.ok()) {
    morph_id = model.status();
  } else if (ended) {
    morph_id = WithReason(absl::UnavailableError("server is draining"), reason::kDraining);
  } else {
    morph_id = find(**model, message);
  }
  if (morph_id.ok()) {
    stream->Show((*model)->morph, *morph_id);
  } else {
    stream->Refuse(morph_id.status());
  }
  return stream;
}

grpc::ServerUnaryReactor* MorphService::ListPlans(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  return ServeLater<v1::ListPlansRequest>(
      context, request, response, "ListPlans", Scope::kRead,
      [](const ServedModel& model, const v1::ListPlansRequest&, UnaryReactor* reactor) {
        reactor->Answer(ListPlansOf(model));
      });
}

grpc::ServerUnaryReactor* MorphService::GetActivePlan(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return ServeLater<v1::GetActivePlanRequest>(
      context, request, response, "GetActivePlan", Scope::kRead,
      [](const ServedModel& model, const v1::GetActivePlanRequest&, UnaryReactor* reactor) {
        v1::GetActivePlanResponse answer = ActivePlanOf(model.engine);
        answer.set_running_morph_id(model.morph->running_id());
        reactor->Answer(answer);
      });
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
  return ServeLater<v1::ProposePlanRequest>(
      context, request, response, "ProposePlan", Scope::kMorph,
      [](const ServedModel& model, const v1::ProposePlanRequest& message, UnaryReactor* reactor) {
        constexpr uint32_t kAlternativesMax = 64;
        absl::StatusOr<MorphSpec> spec = ReadMorphSpec(message.spec(), *model.engine);
        if (!spec.ok()) return reactor->Fail(spec.status());
        const uint32_t alternatives = std::min(message.alternatives(), kAlternativesMax);
        model.morph->Propose(
            *std::move(spec), static_cast<int32_t>(alternatives),
            [engine = model.engine, reactor](const absl::StatusOr<Proposals>& proposals) {
              if (!proposals.ok()) return reactor->Fail(proposals.status());
              reactor->Answer(WriteProposals(*proposals, engine));
            });
      });
}

grpc::ServerUnaryReactor* MorphService::GetCosts(grpc::CallbackServerContext* context,
                                                 const grpc::ByteBuffer* request,
                                                 grpc::ByteBuffer* response) {
  return ServeLater<v1::GetCostsRequest>(
      context, request, response, "GetCosts", Scope::kRead,
      [](const ServedModel& model, const v1::GetCostsRequest& message, UnaryReactor* reactor) {
        model.morph->Costs(
            message.refresh(),
            [reactor](const absl::StatusOr<std::shared_ptr<const CostModel>>& costs) {
              if (!costs.ok()) return reactor->Fail(costs.status());
              reactor->Answer(WriteCosts(**costs));
            });
      });
}

grpc::ServerUnaryReactor* MorphService::GetAutopilot(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return ServeLater<v1::GetAutopilotRequest>(
      context, request, response, "GetAutopilot", Scope::kRead,
      [](const ServedModel& model, const v1::GetAutopilotRequest&, UnaryReactor* reactor) {
        const absl::StatusOr<AutopilotState> state = model.autopilot->State();
        if (!state.ok()) return reactor->Fail(state.status());
        v1::GetAutopilotResponse answer;
        *answer.mutable_state() = WriteAutopilot(*state);
        reactor->Answer(answer);
      });
}

grpc::ServerUnaryReactor* MorphService::SetAutopilot(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return ServeLater<v1::SetAutopilotRequest>(
      context, request, response, "SetAutopilot", Scope::kMorph,
      [](const ServedModel& model, const v1::SetAutopilotRequest& message, UnaryReactor* reactor) {
        const absl::StatusOr<AutopilotState> state = ChangeAutopilot(model, message);
        if (!state.ok()) return reactor->Fail(state.status());
        v1::SetAutopilotResponse answer;
        *answer.mutable_state() = WriteAutopilot(*state);
        reactor->Answer(answer);
      });
}

void MorphService::DoRollback(const ServedModel& model, const v1::RollbackPlanRequest& message,
                              UnaryReactor* reactor) {
  absl::StatusOr<RollbackOrder> order = ReadRollback(message);
  if (!order.ok()) return reactor->Fail(order.status());
  v1::RollbackPlanRequest body = message;
  body.clear_idempotency_key();
  const auto kept = rollbacks_.Open(message.idempotency_key(), body.SerializeAsString());
  if (!kept.ok()) return reactor->Fail(kept.status());
  if (kept->has_value()) return reactor->Answer(**kept);
  model.morph->Rollback(
      *std::move(order), [this, message, reactor](const absl::StatusOr<RollbackResult>& result) {
        if (!result.ok()) {
          rollbacks_.Drop(message.idempotency_key());
          return reactor->Fail(result.status());
        }
        v1::RollbackPlanResponse answer = WriteRollback(*result);
        const std::string& left = result->from.plan->id();
        if (message.abort_running() && left != result->to.plan->id()) {
          answer.set_aborted(deps_.end_plan(
              left, WithReason(absl::AbortedError("the plan of the request was rolled back"),
                               reason::kPlanEnded)));
        }
        rollbacks_.Keep(message.idempotency_key(), answer);
        reactor->Answer(answer);
      });
}

grpc::ServerUnaryReactor* MorphService::RollbackPlan(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return ServeLater<v1::RollbackPlanRequest>(
      context, request, response, "RollbackPlan", Scope::kMorph,
      [this](const ServedModel& model, const v1::RollbackPlanRequest& message,
             UnaryReactor* reactor) { DoRollback(model, message, reactor); });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* MorphService::Morph(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return Stream<v1::MorphRequest>(
      context, request, "Morph", Scope::kMorph,
      [this](const ServedModel& model,
             const v1::MorphRequest& message) -> absl::StatusOr<std::string> {
        MS_ASSIGN_OR_RETURN(MorphOrder order,
                            ReadMorphOrder(message, *model.engine, deps_.state->config()));
        return model.morph->Start(std::move(order));
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* MorphService::WatchMorph(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return Stream<v1::WatchMorphRequest>(
      context, request, "WatchMorph", Scope::kRead,
      [](const ServedModel&, const v1::WatchMorphRequest&) -> absl::StatusOr<std::string> {
        return std::string();
      });
}

}  // namespace morphserve
