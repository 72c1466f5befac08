// Outbox stands between the engine, which never waits, and one client, who may. It is the sink of a
// request: it keeps events in the order of the stream contract, hands them one at a time to a
// StreamWriter, and joins what piles up for a choice while a write is in flight. A client that does
// not read is ended with SLOW_READER. Nothing here knows gRPC.
// Thread rule: every method from any thread. No lock is held while the writer or the engine is
// called, so both may call back at once. Ownership: shared by the engine (until OnDone or OnError),
// by the writer, and by whoever watches for stalls; the writer outlives its use because it is not
// called again after FinishWith or Finish, except for Abandon, which Detach ends.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <variant>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "engine/base/mutex.h"
#include "engine/request.h"

namespace morphserve {

class Delivery;

using OutboxEvent = std::variant<StartedEvent, TokensEvent, FinishedEvent>;

// Where an Outbox writes. Calls come one at a time (Abandon apart), from any thread, and must not
// block. The implementation may go once Finish or FinishWith was called and Detach has returned.
class StreamWriter {
 public:
  enum class Progress : uint8_t {
    kPending,  // Outbox::OnWritten will be called when the next write may follow.
    kDone,
  };

  virtual ~StreamWriter() = default;
  virtual void OnAccepted() = 0;  // Once, before any Write, unless the request was refused.
  virtual Progress Write(OutboxEvent event) = 0;
  virtual void FinishWith(DoneEvent done) = 0;          // The last message, and an OK end.
  virtual void Finish(const absl::Status& status) = 0;  // An end that is not OK.
  virtual void Abandon() = 0;  // The end itself is not taken by the client: drop the connection.
};

struct OutboxLimits {
  int64_t bytes_max = 256 << 10;                   // Waiting, beside the write in flight.
  absl::Duration write_stall = absl::Seconds(30);  // Without a completed write.
};

class Outbox final : public TokenSink, public std::enable_shared_from_this<Outbox> {
 public:
  // `cancel` ends the request in the engine; it is called at most once, only between Open and the
  // end of the request. `clock` and `writer` as said above. With `delivery`, which outlives this,
  // the engine's events are written on its threads; without, within the engine's calls.
  Outbox(const OutboxLimits& limits, const Clock* clock, StreamWriter* writer,
         std::function<void(const absl::Status&)> cancel, Delivery* delivery = nullptr);

  // The engine has taken the request. Until then events are only kept.
  void Open();
  // The request is refused, or fails outside the engine: what waits is still written, then
  // `status`.
  void Fail(const absl::Status& status);
  // The client is gone, or must go: nothing more is written, the engine's request is cancelled.
  void EndNow(const absl::Status& status);
  // True once the request has an end; work for it can stop.
  bool ended() const;

  // TokenSink.
  void OnStarted(const StartedEvent& event) override;
  void OnTokens(TokensEvent event) override;
  void OnFinished(const FinishedEvent& event) override;
  void OnDone(DoneEvent event) override;
  void OnError(const absl::Status& status) override;

  // Writes what the engine left since the last time: what Delivery calls.
  void Deliver();

  // The pending write ended. `ok` false: the client is gone.
  void OnWritten(bool ok);

  // Ends the request if its reader is too slow; abandons an end that nobody takes. Called now and
  // then by a watch.
  void CheckStall(absl::Time now);
  // Returns once Abandon is not running and will never be called (again).
  void Detach();

  int64_t pending_bytes() const;

 private:
  // What Pump found to do next.
  struct Step;

  // After an event of the engine: Pump, here or by the delivery.
  void PumpSoon();
  void Pump();
  std::optional<Step> NextStep() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool JoinTokens(TokensEvent* event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const OutboxLimits limits_;
  const Clock* const clock_;
  StreamWriter* const writer_;
  const std::function<void(const absl::Status&)> cancel_;
  Delivery* const delivery_;

  mutable Mutex mutex_;
  std::deque<OutboxEvent> queue_ ABSL_GUARDED_BY(mutex_);
  std::optional<DoneEvent> done_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // An end that is not OK.
  bool end_now_ ABSL_GUARDED_BY(mutex_) = false;             // It does not wait for the queue.
  bool opened_ ABSL_GUARDED_BY(mutex_) = false;
  bool accepted_ ABSL_GUARDED_BY(mutex_) = false;  // The writer was told.
  bool calling_ ABSL_GUARDED_BY(mutex_) = false;   // Some thread is inside the writer.
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;   // A write waits for OnWritten.
  bool posted_ ABSL_GUARDED_BY(mutex_) = false;    // Deliver will be called.
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // The writer was given the end.
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t pending_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Time write_started_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time finished_at_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();

  Mutex attach_mutex_;  // Held during Abandon and nothing else.
  bool attached_ ABSL_GUARDED_BY(attach_mutex_) = true;
};

}  // namespace morphserve
