#include "server/morph_stream.h"

#include <utility>

#include "server/errors.h"
#include "server/morph_messages.h"
#include "server/raw_message.h"

namespace morphserve {

MorphStream::MorphStream(grpc::CallbackServerContext* context, ServerMetrics* metrics,
                         const Clock* clock, std::string_view method,
                         std::function<void(MorphStream*)> done)
    : context_(context),
      meter_(metrics, clock, "morphserve.v1.Morph", method),
      done_(std::move(done)) {}

void MorphStream::Show(MorphController* controller, const std::string& morph_id) {
  const bool one = !morph_id.empty();
  const auto number = controller->Subscribe(
      morph_id, [this, one](const MorphEvent& event) { Take(event, one && IsFinal(event.phase)); });
  MutexLock lock(&mutex_);
  if (number.ok()) {
    controller_ = controller;
    number_ = *number;
    StartSendInitialMetadata();  // Tells the client that it misses nothing from here on.
    return;
  }
  ending_ = true;
  end_ = number.status();
  in_flight_ = false;
  Pump();
}

void MorphStream::OnSendInitialMetadataDone(bool) {
  MutexLock lock(&mutex_);
  in_flight_ = false;
  Pump();
}

void MorphStream::Refuse(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (!ending_) end_ = status;
  ending_ = true;
  in_flight_ = false;
  Pump();
}

void MorphStream::Take(const MorphEvent& event, bool ends) {
  MutexLock lock(&mutex_);
  if (ending_ || finished_) return;
  // A slow reader misses what only repeats a phase.
  if (unread_.size() >= kUnreadMax && unread_.back().phase == event.phase) unread_.pop_back();
  if (unread_.size() >= kUnreadMax) unread_.pop_front();
  unread_.push_back({event.phase, SerializeMessage(WriteProgress(event))});
  ending_ = ends;
  Pump();
}

void MorphStream::End(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (finished_) return;
  unread_.clear();
  ending_ = true;
  end_ = status;
  Pump();
}

void MorphStream::Pump() {
  if (in_flight_ || finished_) return;
  if (!unread_.empty()) {
    writing_ = std::move(unread_.front().bytes);
    unread_.pop_front();
    in_flight_ = true;
    StartWrite(&writing_);
    return;
  }
  if (!ending_) return;
  finished_ = true;
  const grpc::Status end = EndOfCall(end_, context_);
  meter_.SetCode(end.error_code());
  Finish(end);
}

void MorphStream::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  in_flight_ = false;
  if (!ok) {
    unread_.clear();
    ending_ = true;
  }
  Pump();
}

void MorphStream::OnCancel() { End(absl::CancelledError("the caller went away")); }

void MorphStream::OnDone() {
  if (controller_ != nullptr) controller_->Unsubscribe(number_);
  done_(this);
  { MutexLock lock(&mutex_); }  // Whoever finished the stream may still hold it.
  delete this;
}

}  // namespace morphserve
