#include "server/outbox.h"

#include <iterator>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/engine.h"
#include "server/delivery.h"

namespace morphserve {
namespace {

constexpr char kSlowReaderReason[] = "SLOW_READER";

// What an event holds in memory, near enough for a bound. Only tokens can pile up.
int64_t BytesOf(const TokensEvent& event) {
  size_t bytes = event.text.size() + event.token_ids.size() * sizeof(int32_t);
  for (const TokenLogprobs& logprobs : event.logprobs) {
    bytes += sizeof(TokenLogprobs) + logprobs.top.size() * sizeof(LogprobEntry);
  }
  return static_cast<int64_t>(bytes);
}

int64_t BytesOf(const OutboxEvent& event) {
  const auto* tokens = std::get_if<TokensEvent>(&event);
  return tokens != nullptr ? BytesOf(*tokens) : 0;
}

template <typename T>
void MoveAppend(std::vector<T>* to, std::vector<T>* from) {
  to->insert(to->end(), std::make_move_iterator(from->begin()),
             std::make_move_iterator(from->end()));
}

}  // namespace

// One call of the writer.
struct Outbox::Step {
  enum class Kind : uint8_t { kAccept, kWrite, kFinishWith, kFinish };
  Kind kind = Kind::kAccept;
  OutboxEvent event;
  DoneEvent done;
  absl::Status status;
};

Outbox::Outbox(const OutboxLimits& limits, const Clock* clock, StreamWriter* writer,
               std::function<void(const absl::Status&)> cancel, Delivery* delivery)
    : limits_(limits),
      clock_(clock),
      writer_(writer),
      cancel_(std::move(cancel)),
      delivery_(delivery) {}

void Outbox::Open() {
  std::optional<absl::Status> ended;
  {
    MutexLock lock(&mutex_);
    MS_CHECK(!opened_);
    opened_ = true;
    // The client left while the engine was taking the request: nobody has cancelled it yet.
    if (end_now_) ended = end_;
  }
  if (ended.has_value()) cancel_(*ended);
  Pump();
}

void Outbox::Fail(const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    if (end_.has_value() || done_.has_value() || finished_) return;
    end_ = status;
  }
  Pump();
}

void Outbox::EndNow(const absl::Status& status) {
  bool cancel = false;
  {
    MutexLock lock(&mutex_);
    if (finished_ || end_now_) return;
    // The engine is through with a request that has its end; otherwise it must be told, at once or
    // by Open.
    cancel = opened_ && !end_.has_value() && !done_.has_value();
    if (!end_.has_value()) end_ = status;
    end_now_ = true;
    done_.reset();
    queue_.clear();
    pending_bytes_ = 0;
  }
  if (cancel) cancel_(status);
  Pump();
}

bool Outbox::ended() const {
  MutexLock lock(&mutex_);
  return finished_ || end_.has_value();
}

void Outbox::OnStarted(const StartedEvent& event) {
  {
    MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    queue_.emplace_back(event);
  }
  PumpSoon();
}

bool Outbox::JoinTokens(TokensEvent* event) {
  // Deltas are ordered per choice only, and nothing of a choice comes after its end: any waiting
  // event of the same choice will do.
  for (OutboxEvent& waiting : queue_) {
    auto* tokens = std::get_if<TokensEvent>(&waiting);
    if (tokens == nullptr || tokens->index != event->index) continue;
    MoveAppend(&tokens->token_ids, &event->token_ids);
    MoveAppend(&tokens->logprobs, &event->logprobs);
    tokens->text += event->text;
    return true;
  }
  return false;
}

void Outbox::OnTokens(TokensEvent event) {
  int64_t over = 0;
  {
    MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    pending_bytes_ += BytesOf(event);
    if (!JoinTokens(&event)) queue_.emplace_back(std::move(event));
    // Whatever waits when nothing is in flight is written at once and bounds nothing.
    if (writing_ && pending_bytes_ > limits_.bytes_max) over = pending_bytes_;
  }
  if (over > 0) {
    EndNow(WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                          "%d bytes wait for the reader; limit is %d", over, limits_.bytes_max)),
                      kSlowReaderReason));
    return;
  }
  PumpSoon();
}

void Outbox::OnFinished(const FinishedEvent& event) {
  {
    MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    queue_.emplace_back(event);
  }
  PumpSoon();
}

void Outbox::OnDone(DoneEvent event) {
  {
    MutexLock lock(&mutex_);
    if (end_.has_value()) return;
    done_ = std::move(event);
  }
  PumpSoon();
}

void Outbox::OnError(const absl::Status& status) { Fail(status); }

void Outbox::PumpSoon() {
  if (delivery_ == nullptr) {
    Pump();
    return;
  }
  {
    MutexLock lock(&mutex_);
    if (posted_) return;
    posted_ = true;
  }
  delivery_->Post(shared_from_this());
}

void Outbox::Deliver() {
  {
    MutexLock lock(&mutex_);
    posted_ = false;  // What comes from here on is posted again.
  }
  Pump();
}

void Outbox::OnWritten(bool ok) {
  {
    MutexLock lock(&mutex_);
    writing_ = false;
    write_started_ = absl::InfiniteFuture();
  }
  if (!ok) {
    EndNow(absl::CancelledError("the client is gone"));
    return;
  }
  Pump();
}

std::optional<Outbox::Step> Outbox::NextStep() {
  if (calling_ || finished_) return std::nullopt;
  Step step;
  if (end_.has_value() && (end_now_ || (!writing_ && (queue_.empty() || !opened_)))) {
    step.kind = Step::Kind::kFinish;
    step.status = *end_;
  } else if (!opened_) {
    return std::nullopt;
  } else if (!accepted_) {
    step.kind = Step::Kind::kAccept;
    accepted_ = true;
  } else if (writing_) {
    return std::nullopt;
  } else if (!queue_.empty()) {
    step.kind = Step::Kind::kWrite;
    step.event = std::move(queue_.front());
    queue_.pop_front();
    pending_bytes_ -= BytesOf(step.event);
    writing_ = true;
    write_started_ = clock_->Now();
  } else if (done_.has_value()) {
    step.kind = Step::Kind::kFinishWith;
    step.done = *std::move(done_);
  } else {
    return std::nullopt;
  }
  if (step.kind == Step::Kind::kFinish || step.kind == Step::Kind::kFinishWith) {
    finished_ = true;
    finished_at_ = clock_->Now();
    queue_.clear();
    pending_bytes_ = 0;
  }
  calling_ = true;
  return step;
}

void Outbox::Pump() {
  // Only one thread is inside the writer at a time; the others leave their work to it, and it looks
  // again before it goes.
  while (true) {
    std::optional<Step> step;
    {
      MutexLock lock(&mutex_);
      step = NextStep();
    }
    if (!step.has_value()) return;
    auto progress = StreamWriter::Progress::kPending;
    switch (step->kind) {
      case Step::Kind::kAccept: writer_->OnAccepted(); break;
      case Step::Kind::kWrite: progress = writer_->Write(std::move(step->event)); break;
      case Step::Kind::kFinishWith:
        writer_->FinishWith(std::move(step->done));
        return;  // The writer may be gone; calling_ stays set, and nobody calls it again.
      case Step::Kind::kFinish: writer_->Finish(step->status); return;
    }
    MutexLock lock(&mutex_);
    calling_ = false;
    if (progress == StreamWriter::Progress::kDone) {
      writing_ = false;
      write_started_ = absl::InfiniteFuture();
    }
  }
}

void Outbox::CheckStall(absl::Time now) {
  int64_t waiting = 0;
  bool stalled = false;
  bool abandon = false;
  {
    MutexLock lock(&mutex_);
    if (finished_) {
      abandon = !abandoned_ && now - finished_at_ > limits_.write_stall;
      if (abandon) abandoned_ = true;
    } else if (writing_ && now - write_started_ > limits_.write_stall) {
      stalled = true;
      waiting = pending_bytes_;
    }
  }
  if (stalled) {
    EndNow(WithReason(absl::ResourceExhaustedError(
                          absl::StrFormat("no write completed for %d s; %d bytes pending",
                                          absl::ToInt64Seconds(limits_.write_stall), waiting)),
                      kSlowReaderReason));
  }
  if (abandon) {
    MutexLock lock(&attach_mutex_);
    if (attached_) writer_->Abandon();
  }
}

void Outbox::Detach() {
  MutexLock lock(&attach_mutex_);
  attached_ = false;
}

int64_t Outbox::pending_bytes() const {
  MutexLock lock(&mutex_);
  return pending_bytes_;
}

}  // namespace morphserve
