// UnaryReactor answers one short call that generates nothing: Tokenize, GetModelInfo, ...
// Lifetime: deletes itself in OnDone, which comes after Finish; so whoever is going to call Finish
// may hold a pointer.
#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/call_info.h"
#include "server/errors.h"
#include "server/raw_message.h"

namespace morphserve {

class UnaryReactor final : public grpc::ServerUnaryReactor {
 public:
  // `response` is gRPC's. The names as RpcMeter takes them.
  UnaryReactor(grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
               ServerMetrics* metrics, const Clock* clock, std::string_view service,
               std::string_view method)
      : context_(context), response_(response), meter_(metrics, clock, service, method) {}

  // True when nobody waits for the answer any more.
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  // Exactly one of these, once; the reactor may be gone afterwards.
  void Fail(const absl::Status& status) {
    const grpc::Status end = EndOfCall(status, context_);
    meter_.SetCode(end.error_code());
    Finish(end);
  }
  void Answer(const google::protobuf::MessageLite& message) {
    *response_ = SerializeMessage(message);
    Finish(grpc::Status::OK);
  }
  template <typename T>
  void Answer(const absl::StatusOr<T>& message) {
    if (message.ok()) {
      Answer(static_cast<const google::protobuf::MessageLite&>(*message));
    } else {
      Fail(message.status());
    }
  }

 private:
  void OnCancel() override { cancelled_.store(true, std::memory_order_relaxed); }
  void OnDone() override { delete this; }

  grpc::CallbackServerContext* const context_;
  grpc::ByteBuffer* const response_;
  RpcMeter meter_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace morphserve
