#include "server/call_info.h"

#include <chrono>

#include "server/request_id.h"

namespace morphserve {
namespace {

// Long enough for any valid value and one more byte, so that a longer one stays invalid.
constexpr size_t kHeaderBytesMax = 128;

std::string Header(const grpc::CallbackServerContext& context, const char* name) {
  const auto& metadata = context.client_metadata();
  const auto it = metadata.find(name);
  if (it == metadata.end()) return "";
  return std::string(it->second.data(), std::min(it->second.size(), kHeaderBytesMax));
}

}  // namespace

CallInfo ReadCall(const grpc::CallbackServerContext& context) {
  CallInfo info;
  const std::chrono::system_clock::time_point deadline = context.deadline();
  if (deadline != std::chrono::system_clock::time_point::max()) {
    info.deadline = absl::FromChrono(deadline);
  }
  info.request_id = Header(context, "x-request-id");
  const std::string traceparent = Header(context, "traceparent");
  if (IsValidTraceparent(traceparent)) info.traceparent = traceparent;
  return info;
}

RpcMeter::RpcMeter(ServerMetrics* metrics, const Clock* clock, std::string_view service,
                   std::string_view method)
    : metrics_(metrics), clock_(clock), service_(service), method_(method), started_(clock->Now()) {
  if (metrics_ != nullptr) metrics_->OnRpcStart(service_, method_);
}

RpcMeter::~RpcMeter() {
  if (metrics_ == nullptr) return;
  metrics_->OnRpcEnd(service_, method_, code_, absl::ToDoubleSeconds(clock_->Now() - started_));
}

}  // namespace morphserve
