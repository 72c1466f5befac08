// The gRPC side of a generation: a reactor for the streams and one for the unary calls. Each is the
// StreamWriter of an Outbox; the text pool fills in the GenerationState and submits the request,
// and from then on everything comes from the engine through the outbox. Lifetime: a reactor deletes
// itself in OnDone, which gRPC calls once, after it was finished; the outbox never calls it after
// that. Whoever works on the call holds the state and the outbox, never the reactor.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "server/call_info.h"
#include "server/outbox.h"
#include "server/translate_events.h"

namespace morphserve {

// What the text pool learns about a generation. Thread rule: any thread; Prepare comes before
// Outbox::Open, translator() after it.
class GenerationState {
 public:
  explicit GenerationState(std::string request_id) : request_id_(std::move(request_id)) {}

  void SetRequestId(std::string request_id);
  std::string request_id() const;

  void Prepare(Engine* engine, GenerationFacts facts);
  const EventTranslator& translator() const { return *translator_; }
  // Ends the request in the engine; nothing happens before Prepare.
  void Cancel(const absl::Status& status) const;

 private:
  mutable Mutex mutex_;
  std::string request_id_ ABSL_GUARDED_BY(mutex_);
  Engine* engine_ = nullptr;                   // Written by Prepare, then constant.
  std::optional<EventTranslator> translator_;  // The same.
};

enum class GenerationKind : uint8_t { kGenerate, kChat };

// What both reactors share: metadata, metrics, the end of the call.
class GenerationCall {
 public:
  GenerationCall(grpc::CallbackServerContext* context, CallInfo info, ServerMetrics* metrics,
                 const Clock* clock, std::string_view method);

  const std::shared_ptr<GenerationState>& state() const { return state_; }
  const CallInfo& info() const { return info_; }
  const Clock* clock() const { return clock_; }
  grpc::CallbackServerContext* context() const { return context_; }

  // What the client's cancellation is told the engine: a cancellation, or the call's deadline.
  absl::Status CancelStatus() const;
  void AddInitialMetadata();
  void NoteStarted(const StartedEvent& event) { plan_id_ = event.plan_id; }
  // The status to finish with; adds the trailing metadata and counts the end.
  grpc::Status End(const absl::Status& status);

 private:
  grpc::CallbackServerContext* const context_;
  const CallInfo info_;
  const Clock* const clock_;
  RpcMeter meter_;
  const std::shared_ptr<GenerationState> state_;
  std::string plan_id_;  // Inside the writer's calls, which come one at a time.
};

// A stream of GenerateEvents.
class StreamReactor final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                            private StreamWriter {
 public:
  // `delivery` may be null (outbox.h).
  StreamReactor(std::unique_ptr<GenerationCall> call, const OutboxLimits& limits,
                Delivery* delivery);

  const std::shared_ptr<Outbox>& outbox() const { return outbox_; }
  const std::shared_ptr<GenerationState>& state() const { return call_->state(); }

 private:
  void OnWriteDone(bool ok) override { outbox_->OnWritten(ok); }
  void OnCancel() override { outbox_->EndNow(call_->CancelStatus()); }
  void OnDone() override;

  void OnAccepted() override;
  Progress Write(OutboxEvent event) override;
  void FinishWith(DoneEvent done) override;
  void Finish(const absl::Status& status) override;
  void Abandon() override { call_->context()->TryCancel(); }

  const std::unique_ptr<GenerationCall> call_;
  const std::shared_ptr<Outbox> outbox_;
  grpc::ByteBuffer message_;  // The one in flight.
};

// One GenerateResponse or ChatResponse.
class CollectReactor final : public grpc::ServerUnaryReactor, private StreamWriter {
 public:
  // `response` is gRPC's. An answer above `response_bytes_max` is RESPONSE_TOO_LARGE.
  CollectReactor(std::unique_ptr<GenerationCall> call, const OutboxLimits& limits,
                 GenerationKind kind, int64_t response_bytes_max, grpc::ByteBuffer* response,
                 Delivery* delivery);

  const std::shared_ptr<Outbox>& outbox() const { return outbox_; }
  const std::shared_ptr<GenerationState>& state() const { return call_->state(); }

 private:
  void OnCancel() override { outbox_->EndNow(call_->CancelStatus()); }
  void OnDone() override;

  void OnAccepted() override;
  Progress Write(OutboxEvent event) override;
  void FinishWith(DoneEvent done) override;
  void Finish(const absl::Status& status) override;
  void Abandon() override { call_->context()->TryCancel(); }

  const std::unique_ptr<GenerationCall> call_;
  const std::shared_ptr<Outbox> outbox_;
  const GenerationKind kind_;
  const int64_t response_bytes_max_;
  grpc::ByteBuffer* const response_;
  std::optional<ResponseBuilder> builder_;
};

}  // namespace morphserve
