#include "server/generate_reactor.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "server/errors.h"
#include "server/raw_message.h"
#include "server/request_id.h"

namespace morphserve {
namespace {

constexpr char kService[] = "morphserve.v1.Inference";

absl::Status TooLarge(int64_t bytes, int64_t limit) {
  return WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                        "the answer has %d bytes; limit is %d: use the stream", bytes, limit)),
                    reason::kResponseTooLarge);
}

// The outbox outlives the reactor's part in it, so the way to the engine goes through the state.
std::shared_ptr<Outbox> MakeOutbox(const OutboxLimits& limits, const GenerationCall& call,
                                   StreamWriter* writer, Delivery* delivery) {
  return std::make_shared<Outbox>(
      limits, call.clock(), writer,
      [state = call.state()](const absl::Status& status) { state->Cancel(status); }, delivery);
}

}  // namespace

void GenerationState::SetRequestId(std::string request_id) {
  MutexLock lock(&mutex_);
  request_id_ = std::move(request_id);
}

std::string GenerationState::request_id() const {
  MutexLock lock(&mutex_);
  return request_id_;
}

void GenerationState::Prepare(Engine* engine, GenerationFacts facts) {
  MS_CHECK(!translator_.has_value());
  engine_ = engine;
  translator_.emplace(std::move(facts));
}

void GenerationState::Cancel(const absl::Status& status) const {
  if (engine_ != nullptr) engine_->Cancel(translator_->facts().request_id, status);
}

GenerationCall::GenerationCall(grpc::CallbackServerContext* context, CallInfo info,
                               ServerMetrics* metrics, const Clock* clock, std::string_view method)
    : context_(context),
      info_(std::move(info)),
      clock_(clock),
      meter_(metrics, clock, kService, method),
      state_(std::make_shared<GenerationState>(MakeRequestId())) {}

absl::Status GenerationCall::CancelStatus() const {
  // A client whose deadline passes cancels the call, a transit before the deadline passes here.
  constexpr absl::Duration kTransitMax = absl::Milliseconds(100);
  if (clock_->Now() + kTransitMax >= info_.deadline) {
    return WithReason(absl::DeadlineExceededError("deadline of the call passed"),
                      reason::kDeadlinePassed);
  }
  return absl::CancelledError("the client cancelled");
}

void GenerationCall::AddInitialMetadata() {
  context_->AddInitialMetadata("morphserve-request-id", state_->request_id());
}

grpc::Status GenerationCall::End(const absl::Status& status) {
  context_->AddTrailingMetadata("morphserve-request-id", state_->request_id());
  if (!plan_id_.empty()) context_->AddTrailingMetadata("morphserve-plan", plan_id_);
  if (!info_.traceparent.empty()) {
    context_->AddTrailingMetadata("traceparent", info_.traceparent);
  }
  if (meter_.metrics() != nullptr && ReasonOf(status) == reason::kSlowReader) {
    meter_.metrics()->OnSlowReader();
  }
  grpc::Status end = EndOfCall(status, context_);
  meter_.SetCode(end.error_code());
  return end;
}

StreamReactor::StreamReactor(std::unique_ptr<GenerationCall> call, const OutboxLimits& limits,
                             Delivery* delivery)
    : call_(std::move(call)), outbox_(MakeOutbox(limits, *call_, this, delivery)) {}

void StreamReactor::OnDone() {
  outbox_->Detach();
  delete this;
}

void StreamReactor::OnAccepted() {
  call_->AddInitialMetadata();
  StartSendInitialMetadata();
}

StreamWriter::Progress StreamReactor::Write(OutboxEvent event) {
  const EventTranslator& translator = call_->state()->translator();
  v1::GenerateEvent out;
  if (const auto* started = std::get_if<StartedEvent>(&event)) {
    call_->NoteStarted(*started);
    translator.Started(*started, out.mutable_started());
  } else if (const auto* tokens = std::get_if<TokensEvent>(&event)) {
    translator.Delta(*tokens, out.mutable_delta());
  } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
    translator.Finished(*finished, out.mutable_finished());
  }
  message_ = SerializeMessage(out);
  StartWrite(&message_);
  return Progress::kPending;
}

void StreamReactor::FinishWith(DoneEvent done) {
  v1::GenerateEvent out;
  call_->state()->translator().Done(done, out.mutable_done());
  message_ = SerializeMessage(out);
  // This object may be gone when the call returns.
  StartWriteAndFinish(&message_, grpc::WriteOptions(), call_->End(absl::OkStatus()));
}

void StreamReactor::Finish(const absl::Status& status) {
  // A write may still be in flight: gRPC sends the status after it.
  grpc::ServerWriteReactor<grpc::ByteBuffer>::Finish(call_->End(status));
}

CollectReactor::CollectReactor(std::unique_ptr<GenerationCall> call, const OutboxLimits& limits,
                               GenerationKind kind, int64_t response_bytes_max,
                               grpc::ByteBuffer* response, Delivery* delivery)
    : call_(std::move(call)),
      outbox_(MakeOutbox(limits, *call_, this, delivery)),
      kind_(kind),
      response_bytes_max_(response_bytes_max),
      response_(response) {}

void CollectReactor::OnDone() {
  outbox_->Detach();
  delete this;
}

void CollectReactor::OnAccepted() {
  builder_.emplace(&call_->state()->translator());
  call_->AddInitialMetadata();
  StartSendInitialMetadata();
}

StreamWriter::Progress CollectReactor::Write(OutboxEvent event) {
  if (const auto* started = std::get_if<StartedEvent>(&event)) call_->NoteStarted(*started);
  std::visit([this](const auto& e) { builder_->Add(e); }, event);
  if (builder_->bytes() > response_bytes_max_) {
    outbox_->EndNow(TooLarge(builder_->bytes(), response_bytes_max_));
  }
  return Progress::kDone;
}

void CollectReactor::FinishWith(DoneEvent done) {
  builder_->Add(done);
  *response_ = kind_ == GenerationKind::kChat ? SerializeMessage(builder_->TakeChat())
                                              : SerializeMessage(builder_->TakeGenerate());
  const auto bytes = static_cast<int64_t>(response_->Length());
  absl::Status status;
  if (bytes > response_bytes_max_) status = TooLarge(bytes, response_bytes_max_);
  Finish(status);
}

void CollectReactor::Finish(const absl::Status& status) {
  grpc::ServerUnaryReactor::Finish(call_->End(status));
}

}  // namespace morphserve
