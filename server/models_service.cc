#include "server/models_service.h"

#include <string>

#include "engine/base/status_macros.h"
#include "server/errors.h"
#include "server/plan_messages.h"
#include "server/translate.h"
#include "server/translate_options.h"
#include "server/unary_reactor.h"
#include "server/version.h"

namespace morphserve {
namespace {

constexpr char kService[] = "morphserve.v1.Models";

uint64_t Unsigned(int64_t value) { return value > 0 ? static_cast<uint64_t>(value) : 0; }
uint32_t Unsigned(int32_t value) { return value > 0 ? static_cast<uint32_t>(value) : 0; }

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
  out.set_base_id(info.base_id);
  if (const auto branches = model.engine->branches(); branches != nullptr) {
    out.set_morphable(true);
    out.set_branch_kind(info.branch_kind);
    out.set_branch_parameters(Unsigned(info.branch_parameters));
    if (branches->config.has_state()) out.set_state_dtype("F32");
  }
  out.set_chat_template(model.chat_template != nullptr);
  if (model.engine->tokenizer() != nullptr) out.add_capabilities("text");
  if (model.chat_template != nullptr) {
    out.add_capabilities("chat");
    for (const std::string& capability : model.chat_template->capabilities()) {
      out.add_capabilities(capability);
    }
  }
  FillDefaults(model.generation, out.mutable_defaults());
  FillPlans(*model.engine, out.mutable_plans());
  FillPointers(model.engine, out.mutable_pointers());
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
    out.set_page_tokens(kPageTokens);
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
        const Translator translator(model, &state_->config());
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
