// What every handler reads from a call (deadline, metadata) and tells the metrics about it.
// Thread rule: CallInfo and ReadCall in the handler; RpcMeter one thread at a time. Ownership:
// `metrics`, `clock` outlive the meter.
#pragma once

#include <grpcpp/server_context.h>

#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "server/server_metrics.h"

namespace morphserve {

struct CallInfo {
  absl::Time deadline = absl::InfiniteFuture();  // The client's; infinite: it has none.
  std::string request_id;                        // x-request-id as it came; empty: absent.
  std::string traceparent;                       // Well-formed, or empty.
};

CallInfo ReadCall(const grpc::CallbackServerContext& context);

// Counts one call: started when made, handled when ended.
class RpcMeter {
 public:
  // `method` as in the path of the call; both names are literals. `metrics` may be null.
  RpcMeter(ServerMetrics* metrics, const Clock* clock, std::string_view service,
           std::string_view method);
  void SetCode(int grpc_code) { code_ = grpc_code; }
  ~RpcMeter();
  RpcMeter(const RpcMeter&) = delete;
  RpcMeter& operator=(const RpcMeter&) = delete;

  ServerMetrics* metrics() const { return metrics_; }
  absl::Time started() const { return started_; }

 private:
  ServerMetrics* const metrics_;
  const Clock* const clock_;
  const std::string_view service_;
  const std::string_view method_;
  const absl::Time started_;
  int code_ = 0;
};

}  // namespace morphserve
