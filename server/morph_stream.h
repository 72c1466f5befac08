// MorphStream is the view of one morph, or of all, that a client reads. It holds what the client
// has not read yet, bounded: of many messages of one phase the older ones go. Dropping the stream
// stops nothing. Lifetime: deletes itself in OnDone, after it has left the controller's listeners
// and the service's list.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "morph/controller.h"
#include "server/call_info.h"

namespace morphserve {

class MorphStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  // `done` is called once, in OnDone.
  MorphStream(grpc::CallbackServerContext* context, ServerMetrics* metrics, const Clock* clock,
              std::string_view method, std::function<void(MorphStream*)> done);

  // Once: shows the morph of this id (empty: all from now on), or ends the stream.
  void Show(MorphController* controller, const std::string& morph_id);
  // Instead of Show: ends the stream before its first message.
  void Refuse(const absl::Status& status);
  // Ends the stream with a status, what is unread included. Safe to call twice.
  void End(const absl::Status& status);

 private:
  static constexpr size_t kUnreadMax = 64;

  void OnSendInitialMetadataDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Take(const MorphEvent& event, bool ends);
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::CallbackServerContext* const context_;
  RpcMeter meter_;
  const std::function<void(MorphStream*)> done_;
  MorphController* controller_ = nullptr;  // Written by Show, before messages flow.
  uint64_t number_ = 0;                    // Of the subscription; the same.

  Mutex mutex_;
  struct Unread {
    MorphPhase phase;
    grpc::ByteBuffer bytes;
  };
  std::deque<Unread> unread_ ABSL_GUARDED_BY(mutex_);
  grpc::ByteBuffer writing_ ABSL_GUARDED_BY(mutex_);
  bool in_flight_ ABSL_GUARDED_BY(mutex_) = true;  // Until the stream has begun.
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;    // Finish once nothing is unread.
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
