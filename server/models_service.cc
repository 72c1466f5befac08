#include "server/models_service.h"

#include <string>

#include "engine/base/status_macros.h"
#include "server/errors.h"
#include "server/translate.h"
#include "server/translate_options.h"
#include "server/unary_reactor.h"
#include "server/version.h"

namespace morphserve {
namespace {

constexpr char kService[] = "morphserve.v1.Models";

// A dense model has one plan, bound at start: its pointers were set once.
constexpr uint64_t kFirstEpoch = 1;

uint64_t Unsigned(int64_t value) { return value > 0 ? static_cast<uint64_t>(value) : 0; }
uint32_t Unsigned(int32_t value) { return value > 0 ? static_cast<uint32_t>(value) : 0; }

// Every layer of an all-full plan keeps one page per so many positions.
uint32_t PageTokens(const EngineInfo& info) {
  if (info.kv_bytes_per_token <= 0) return 0;
  return static_cast<uint32_t>(info.layers * info.memory.page_bytes / info.kv_bytes_per_token);
}

void FillPlanRef(const EngineInfo& info, v1::PlanRef* ref) {
  ref->set_plan_id(info.active_plan_id);
  ref->set_epoch(kFirstEpoch);
  ref->set_full_layers(Unsigned(info.full_layers));
  ref->set_layers(Unsigned(info.layers));
}

void FillPlan(const Engine& engine, v1::Plan* plan) {
  const EngineInfo& info = engine.info();
  plan->set_plan_id(info.active_plan_id);
  plan->set_full_layers(Unsigned(info.full_layers));
  for (int32_t layer = 0; layer < info.layers; ++layer) plan->add_layers(v1::LAYER_KIND_FULL);
  plan->set_label("full");
  plan->set_origin("start");
  plan->set_state(v1::Plan::STATE_READY);
  plan->set_running(Unsigned(engine.GetLoad().running));
  plan->set_last_epoch(kFirstEpoch);
  v1::Estimate* estimate = plan->mutable_estimate();
  estimate->set_kv_bytes_per_token(Unsigned(info.kv_bytes_per_token));
  estimate->set_sequences_max(static_cast<uint32_t>(Unsigned(info.memory.sequences_max)));
}

void FillDefaults(const GenerationDefaults& generation, v1::Sampling* out) {
  const SamplingParams defaults = DefaultSampling(generation);
  out->set_temperature(defaults.temperature);
  out->set_top_p(defaults.top_p);
  out->set_top_k(Unsigned(defaults.top_k));
  out->set_min_p(defaults.min_p);
  out->set_presence_penalty(defaults.presence_penalty);
  out->set_frequency_penalty(defaults.frequency_penalty);
  out->set_repetition_penalty(defaults.repetition_penalty);
  out->set_n(Unsigned(defaults.n));
}

}  // namespace

v1::ModelInfo MakeModelInfo(const ServedModel& model) {
  const EngineInfo& info = model.engine->info();
  v1::ModelInfo out;
  out.set_name(model.name);
  out.set_family(info.architecture);
  out.set_parameters(Unsigned(info.parameters));
  out.set_layers(Unsigned(info.layers));
  out.set_vocab_size(Unsigned(info.vocab));
  out.set_context_tokens_max(Unsigned(info.context_tokens));
  out.set_weight_dtype(info.weight_dtype);
  out.set_kv_dtype(info.kv_dtype);
  out.set_chat_template(model.chat_template != nullptr);
  if (model.engine->tokenizer() != nullptr) out.add_capabilities("text");
  if (model.chat_template != nullptr) {
    out.add_capabilities("chat");
    for (const std::string& capability : model.chat_template->capabilities()) {
      out.add_capabilities(capability);
    }
  }
  FillDefaults(model.generation, out.mutable_defaults());
  FillPlan(*model.engine, out.add_plans());
  v1::PlanPointers* pointers = out.mutable_pointers();
  FillPlanRef(info, pointers->mutable_active());
  FillPlanRef(info, pointers->mutable_fastest());
  FillPlanRef(info, pointers->mutable_balanced());
  FillPlanRef(info, pointers->mutable_highest());
  return out;
}

v1::ServerInfo MakeServerInfo(const ServingState& state) {
  v1::ServerInfo out;
  out.set_version(VersionString());
  out.set_commit(CommitString());
  out.set_device("cpu");
  if (const ServedModel* model = state.model(); model != nullptr) {
    const EngineInfo& info = model->engine->info();
    out.set_device_name(info.device_name);
    out.set_arena_bytes(Unsigned(info.memory.arena_bytes));
    out.set_page_tokens(PageTokens(info));
  }
  out.set_state(std::string(ServingPhaseName(state.phase())));
  const int64_t nanoseconds = absl::ToUnixNanos(state.started_at());
  constexpr int64_t kPerSecond = 1'000'000'000;
  out.mutable_started_at()->set_seconds(nanoseconds / kPerSecond);
  out.mutable_started_at()->set_nanos(static_cast<int32_t>(nanoseconds % kPerSecond));
  out.set_config_digest(state.config_digest());
  out.set_instance_id(state.instance_id());
  return out;
}

absl::StatusOr<const ServedModel*> ModelsService::Model() const {
  const ServedModel* model = state_->model();
  if (model != nullptr) return model;
  MS_RETURN_IF_ERROR(state_->Accepting());
  // It became ready between the two looks.
  return state_->model();
}

template <typename RequestMessage, typename Answer>
grpc::ServerUnaryReactor* ModelsService::Serve(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* response, std::string_view method,
                                               Answer answer) {
  const absl::StatusOr<Identity> identity =
      authorizer_->Authorize(context, {Scope::kInfer, Scope::kRead});
  auto* reactor = new UnaryReactor(context, response, metrics_, clock_, kService, method);
  if (!identity.ok()) {
    reactor->Fail(identity.status());
    return reactor;
  }
  RequestMessage message;
  absl::Status status = ParseMessage(*request, &message);
  if (status.ok()) status = CheckKnownFields(message);
  if (status.ok()) {
    reactor->Answer(answer(message));
  } else {
    reactor->Fail(status);
  }
  return reactor;
}

grpc::ServerUnaryReactor* ModelsService::ListModels(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return Serve<v1::ListModelsRequest>(
      context, request, response, "ListModels",
      [this](const v1::ListModelsRequest&) -> absl::StatusOr<v1::ListModelsResponse> {
        MS_ASSIGN_OR_RETURN(const ServedModel* model, Model());
        v1::ListModelsResponse out;
        out.add_models(model->name);
        return out;
      });
}

grpc::ServerUnaryReactor* ModelsService::GetModelInfo(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return Serve<v1::GetModelInfoRequest>(
      context, request, response, "GetModelInfo",
      [this](const v1::GetModelInfoRequest& message) -> absl::StatusOr<v1::ModelInfo> {
        MS_ASSIGN_OR_RETURN(const ServedModel* model, Model());
        const Translator translator(model, &state_->config().limits);
        MS_RETURN_IF_ERROR(translator.CheckModel(message.model()));
        return MakeModelInfo(*model);
      });
}

grpc::ServerUnaryReactor* ModelsService::GetServerInfo(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return Serve<v1::GetServerInfoRequest>(
      context, request, response, "GetServerInfo",
      [this](const v1::GetServerInfoRequest&) -> absl::StatusOr<v1::ServerInfo> {
        return MakeServerInfo(*state_);
      });
}

}  // namespace morphserve
