#include "server/inference_service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "server/errors.h"
#include "server/raw_message.h"

namespace morphserve {
namespace {

constexpr char kService[] = "morphserve.v1.Inference";

TextPool::Options PoolOptions(const ServerConfig& config) {
  TextPool::Options options;
  options.jobs_max = static_cast<size_t>(std::max(config.queue.requests_max, 1));
  return options;
}

OutboxLimits LimitsOf(const ServerConfig& config) {
  return {.bytes_max = config.stream.outbox_bytes_max,
          .write_stall = absl::Seconds(config.stream.write_stall_s)};
}

// Often enough that a stall is found within a quarter more than its time.
absl::Duration WatchInterval(const ServerConfig& config) {
  return std::clamp(absl::Seconds(config.stream.write_stall_s / 4), absl::Milliseconds(20),
                    absl::Seconds(1));
}

int64_t BytesOf(const grpc::ByteBuffer& bytes) {
  return bytes.Valid() ? static_cast<int64_t>(bytes.Length()) : 0;
}

}  // namespace

InferenceService::InferenceService(const ServingState* state, const Authorizer* authorizer,
                                   ServerMetrics* metrics, const Clock* clock)
    : state_(state),
      authorizer_(authorizer),
      metrics_(metrics),
      clock_(clock),
      outbox_limits_(LimitsOf(state->config())),
      delivery_(Delivery::ThreadsOfMachine()),
      watchdog_(WatchInterval(state->config()), clock,
                [metrics](int64_t delta) {
                  if (metrics != nullptr) metrics->AddOutboxBytes(delta);
                }),
      pool_(PoolOptions(state->config())) {}

InferenceService::~InferenceService() { pool_.Shutdown(); }

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return StartUnary(context, request, response, GenerationKind::kGenerate, "Generate");
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return StartStream(context, request, GenerationKind::kGenerate, "GenerateStream");
}

grpc::ServerUnaryReactor* InferenceService::Chat(grpc::CallbackServerContext* context,
                                                 const grpc::ByteBuffer* request,
                                                 grpc::ByteBuffer* response) {
  return StartUnary(context, request, response, GenerationKind::kChat, "Chat");
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::ChatStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  return StartStream(context, request, GenerationKind::kChat, "ChatStream");
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return StartText<v1::TokenizeRequest>(
      context, request, response, "Tokenize",
      [](const Translator& translator, const v1::TokenizeRequest& message, const CallFacts& facts) {
        return translator.Tokenize(message, facts.received);
      });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return StartText<v1::DetokenizeRequest>(
      context, request, response, "Detokenize",
      [](const Translator& translator, const v1::DetokenizeRequest& message, const CallFacts&) {
        return translator.Detokenize(message);
      });
}

grpc::ServerUnaryReactor* InferenceService::CountTokens(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return StartText<v1::CountTokensRequest>(
      context, request, response, "CountTokens",
      [](const Translator& translator, const v1::CountTokensRequest& message,
         const CallFacts& facts) { return translator.CountTokens(message, facts); });
}

Delivery* InferenceService::DeliveryOfEngine() {
  const Engine* const engine = state_->engine();
  return engine != nullptr && engine->info().on_device ? &delivery_ : nullptr;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::StartStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request, GenerationKind kind,
    std::string_view method) {
  const absl::StatusOr<Identity> identity = authorizer_->Authorize(context, {Scope::kInfer});
  const CallInfo info = ReadCall(*context);
  auto* reactor =
      new StreamReactor(std::make_unique<GenerationCall>(context, info, metrics_, clock_, method),
                        outbox_limits_, DeliveryOfEngine());
  Start(identity, info, clock_->Now(),
        {.kind = kind,
         .bytes = *request,
         .facts = {},
         .state = reactor->state(),
         .outbox = reactor->outbox()});
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::StartUnary(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response,
                                                       GenerationKind kind,
                                                       std::string_view method) {
  const absl::StatusOr<Identity> identity = authorizer_->Authorize(context, {Scope::kInfer});
  const CallInfo info = ReadCall(*context);
  auto* reactor = new CollectReactor(
      std::make_unique<GenerationCall>(context, info, metrics_, clock_, method), outbox_limits_,
      kind, state_->config().grpc.send_bytes_max, response, DeliveryOfEngine());
  Start(identity, info, clock_->Now(),
        {.kind = kind,
         .bytes = *request,
         .facts = {},
         .state = reactor->state(),
         .outbox = reactor->outbox()});
  return reactor;
}

void InferenceService::Start(const absl::StatusOr<Identity>& identity, const CallInfo& info,
                             absl::Time received, Pending pending) {
  const std::shared_ptr<Outbox> outbox = pending.outbox;
  if (!identity.ok()) {
    outbox->Fail(identity.status());
    return;
  }
  if (const absl::Status accepting = state_->Accepting(); !accepting.ok()) {
    Refuse(outbox, accepting);
    return;
  }
  pending.facts = {.tenant = identity->tenant,
                   .priority_max = identity->priority_max,
                   .header_request_id = info.request_id,
                   .received = received,
                   .deadline = info.deadline};
  watchdog_.Add(outbox);
  const int64_t bytes = BytesOf(pending.bytes);
  const bool posted = pool_.TryPost(bytes, [this, work = std::move(pending)] {
    if (work.outbox->ended()) return;  // The client left while the call waited.
    const absl::Status status = Submit(work);
    if (!status.ok()) Refuse(work.outbox, status);
  });
  if (!posted) Refuse(outbox, PoolIsFull());
}

void InferenceService::Refuse(const std::shared_ptr<Outbox>& outbox,
                              const absl::Status& status) const {
  // A client that left was not refused anything.
  if (metrics_ != nullptr && !absl::IsCancelled(status)) metrics_->OnRejection(ReasonOf(status));
  outbox->Fail(status);
}

absl::StatusOr<Request> InferenceService::Translate(const Pending& pending,
                                                    const Translator& translator,
                                                    bool* token_ids) const {
  // The id is set before anything can fail, so that a refusal can be found by it.
  const auto named = [&](const v1::GenerationOptions& options) -> absl::Status {
    MS_ASSIGN_OR_RETURN(std::string id, ChooseRequestId(options, pending.facts));
    pending.state->SetRequestId(std::move(id));
    *token_ids = options.output().token_ids();
    return absl::OkStatus();
  };
  if (pending.kind == GenerationKind::kChat) {
    v1::ChatRequest message;
    MS_RETURN_IF_ERROR(ParseMessage(pending.bytes, &message));
    MS_RETURN_IF_ERROR(named(message.options()));
    return translator.Chat(message, pending.facts);
  }
  v1::GenerateRequest message;
  MS_RETURN_IF_ERROR(ParseMessage(pending.bytes, &message));
  MS_RETURN_IF_ERROR(named(message.options()));
  return translator.Generate(message, pending.facts);
}

absl::Status InferenceService::Submit(const Pending& pending) const {
  const ServedModel* model = state_->model();
  const Translator translator(model, &state_->config());
  bool token_ids = false;
  MS_ASSIGN_OR_RETURN(Request request, Translate(pending, translator, &token_ids));
  if (pending.outbox->ended()) return absl::CancelledError("the client cancelled");
  request.id = pending.state->request_id();
  pending.state->Prepare(model->engine,
                         {.request_id = request.id,
                          .model = model->name,
                          .prompt_tokens = static_cast<int32_t>(request.prompt.size()),
                          .max_tokens = request.stopping.max_tokens,
                          .seed = request.sampling.seed,
                          .choices = request.sampling.n,
                          .token_ids = token_ids,
                          .tokenizer = model->engine->tokenizer()});
  MS_RETURN_IF_ERROR(model->engine->Submit(std::move(request), pending.outbox));
  pending.outbox->Open();
  return absl::OkStatus();
}

template <typename RequestMessage, typename Answer>
grpc::ServerUnaryReactor* InferenceService::StartText(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response,
                                                      std::string_view method, Answer answer) {
  const absl::StatusOr<Identity> identity =
      authorizer_->Authorize(context, {Scope::kInfer, Scope::kRead});
  auto* reactor = new UnaryReactor(context, response, metrics_, clock_, kService, method);
  if (!identity.ok()) {
    reactor->Fail(identity.status());
    return reactor;
  }
  if (const absl::Status accepting = state_->Accepting(); !accepting.ok()) {
    reactor->Fail(accepting);
    return reactor;
  }
  CallFacts facts;
  facts.tenant = identity->tenant;
  facts.received = clock_->Now();
  const bool posted = pool_.TryPost(
      BytesOf(*request), [this, reactor, bytes = *request, answer, facts = std::move(facts)] {
        if (reactor->cancelled()) {
          reactor->Fail(absl::CancelledError("the client cancelled"));
          return;
        }
        RequestMessage message;
        if (const absl::Status parsed = ParseMessage(bytes, &message); !parsed.ok()) {
          reactor->Fail(parsed);
          return;
        }
        const Translator translator(state_->model(), &state_->config());
        reactor->Answer(answer(translator, message, facts));
      });
  if (!posted) reactor->Fail(PoolIsFull());
  return reactor;
}

absl::Status InferenceService::PoolIsFull() const {
  return WithReason(absl::ResourceExhaustedError(
                        absl::StrFormat("%d requests wait for text work; limit is %d",
                                        pool_.waiting(), PoolOptions(state_->config()).jobs_max)),
                    reason::kQueueFull);
}

}  // namespace morphserve
