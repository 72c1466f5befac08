#include "server/admin_service.h"

#include <google/protobuf/duration.pb.h>
#include <grpcpp/alarm.h>

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "server/arena_bytes.h"
#include "server/errors.h"
#include "server/plan_lookup.h"
#include "server/plan_messages.h"
#include "server/translate_options.h"

namespace morphserve {
namespace {

constexpr char kService[] = "morphserve.v1.Admin";
constexpr absl::Duration kIntervalMin = absl::Milliseconds(100);
constexpr absl::Duration kIntervalMax = absl::Hours(1);
constexpr absl::Duration kDrainMax = absl::Hours(24);

template <typename Message>
absl::Status Parse(const grpc::ByteBuffer& bytes, Message* message) {
  grpc::ByteBuffer copy(bytes);  // Counts references; reading consumes.
  if (grpc::SerializationTraits<Message>::Deserialize(&copy, message).ok()) {
    return absl::OkStatus();
  }
  return FieldInvalid("request", "does not parse as the message of this method");
}

template <typename Message>
grpc::ByteBuffer Pack(const Message& message) {
  grpc::ByteBuffer bytes;
  bool own = false;
  const grpc::Status status = grpc::SerializationTraits<Message>::Serialize(message, &bytes, &own);
  MS_CHECK(status.ok());
  return bytes;
}

absl::StatusOr<absl::Duration> ReadDuration(const google::protobuf::Duration& value,
                                            const char* field, absl::Duration min,
                                            absl::Duration max) {
  // The protocol's own range, before anything is added up.
  constexpr int64_t kSecondsMax = 315576000000;
  const bool valid = value.seconds() >= -kSecondsMax && value.seconds() <= kSecondsMax &&
                     value.nanos() > -1000000000 && value.nanos() < 1000000000;
  const absl::Duration duration =
      valid ? absl::Seconds(value.seconds()) + absl::Nanoseconds(value.nanos())
            : absl::InfiniteDuration();
  if (!valid || duration < min || duration > max) {
    return FieldInvalid(field,
                        absl::StrFormat("is %s; must be %s to %s", absl::FormatDuration(duration),
                                        absl::FormatDuration(min), absl::FormatDuration(max)));
  }
  return duration;
}

void FillPool(int64_t total, int64_t running, int64_t cached, int64_t free, v1::Pool* pool) {
  pool->set_total(static_cast<uint64_t>(total));
  pool->set_running(static_cast<uint64_t>(running));
  pool->set_cached(static_cast<uint64_t>(cached));
  pool->set_free(static_cast<uint64_t>(free));
}

void FillPools(const EngineLoad& load, const MemoryVerdict& memory, v1::Load* out) {
  const CacheUsage& use = load.cache;
  FillPool(use.pages_total, use.pages_running, use.pages_cached, use.pages_free,
           out->mutable_pages());
  FillPool(use.slots_total, use.slots_running, use.slots_cached, use.slots_free,
           out->mutable_slots());
  // Of the whole arena, whichever of the two its super-blocks are lent to.
  const ArenaBytes bytes = ArenaBytesOf(load, memory);
  FillPool(bytes.total, bytes.running(), bytes.cached(), bytes.free, out->mutable_arena_bytes());
}

std::chrono::system_clock::time_point After(absl::Duration duration) {
  return absl::ToChronoTime(absl::Now() + duration);
}

}  // namespace

v1::Load MakeLoad(const ServingState& state) {
  v1::Load out;
  out.set_state(std::string(ServingPhaseName(state.phase())));
  Engine* const engine = state.engine();
  if (engine == nullptr) return out;
  const EngineLoad load = engine->GetLoad();
  out.set_step(load.step);
  out.set_running(static_cast<uint32_t>(load.running));
  out.set_waiting(static_cast<uint32_t>(load.waiting));
  out.set_waiting_tokens(static_cast<uint64_t>(load.waiting_tokens));
  out.set_preempted(static_cast<uint32_t>(load.preempted));
  FillPools(load, engine->info().memory, &out);
  out.set_step_ms_p50(load.step_ms_p50);
  out.set_tokens_per_second(load.tokens_per_second);
  out.set_oldest_wait_ms(load.oldest_wait_ms);
  FillPointers(engine, out.mutable_pointers());
  for (const auto& [plan_id, running] : load.running_by_plan) {
    (*out.mutable_running_by_plan())[plan_id] = static_cast<uint32_t>(running);
  }
  return out;
}

// One WatchLoad. At most one of {write, alarm} is pending; whoever's callback comes decides what is
// next, so gRPC never sees two operations at once.
class AdminService::LoadWatcher final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  LoadWatcher(AdminService* service, absl::Duration interval, grpc::CallbackServerContext* context)
      : service_(service), interval_(interval), context_(context), started_(absl::Now()) {}

  void Start() { Write(); }
  void Refuse(absl::Status status) {
    {
      MutexLock lock(&mutex_);
      stopped_ = true;
      end_ = std::move(status);
    }
    End();
  }

  // Ends the stream with `status` at its next turn, which an armed alarm takes at once.
  void Stop(absl::Status status) {
    MutexLock lock(&mutex_);
    if (!stopped_) {
      stopped_ = true;
      end_ = std::move(status);
    }
    if (armed_) alarm_->Cancel();
  }

  void OnWriteDone(bool ok) override {
    bool stopped;
    {
      MutexLock lock(&mutex_);
      if (!ok && !stopped_) {
        stopped_ = true;
        end_ = absl::CancelledError("caller went away");
      }
      stopped = stopped_;
      if (!stopped) {
        armed_ = true;
        // A new one each time: the last one's callback may still be returning.
        alarm_ = std::make_unique<grpc::Alarm>();
        alarm_->Set(After(interval_), [this](bool) { OnAlarm(); });
      }
    }
    if (stopped) End();
  }

  void OnCancel() override { Stop(absl::CancelledError("caller went away")); }

  void OnDone() override {
    service_->deps_.metrics->OnRpcEnd(kService, "WatchLoad", static_cast<int>(code_),
                                      absl::ToDoubleSeconds(absl::Now() - started_));
    {
      MutexLock lock(&service_->mutex_);
      service_->watchers_.erase(this);
    }
    delete this;
  }

 private:
  void Write() {
    message_ = Pack(MakeLoad(*service_->deps_.state));
    StartWrite(&message_);
  }

  void OnAlarm() {
    bool stopped;
    {
      MutexLock lock(&mutex_);
      armed_ = false;
      stopped = stopped_;
    }
    if (stopped) {
      End();
    } else {
      Write();
    }
  }

  void End() {
    const grpc::Status status = EndOfCall(end_, context_);
    code_ = status.error_code();
    Finish(status);
  }

  AdminService* const service_;
  const absl::Duration interval_;
  grpc::CallbackServerContext* const context_;
  const absl::Time started_;
  grpc::ByteBuffer message_;
  grpc::StatusCode code_ = grpc::StatusCode::OK;
  absl::Status end_ = absl::CancelledError("caller went away");  // Final once stopped_.

  Mutex mutex_;
  std::unique_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mutex_);
  bool armed_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
};

AdminService::~AdminService() {
  MutexLock lock(&mutex_);
  MS_CHECK(watchers_.empty());
}

template <typename Request, typename Response, typename Work>
grpc::ServerUnaryReactor* AdminService::Unary(grpc::CallbackServerContext* context,
                                              const char* method, Scope scope,
                                              const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response, Work work) {
  const absl::Time started = absl::Now();
  deps_.metrics->OnRpcStart(kService, method);
  const absl::Status status = [&]() -> absl::Status {
    MS_RETURN_IF_ERROR(deps_.authorizer->Authorize(context, {scope}).status());
    Request message;
    MS_RETURN_IF_ERROR(Parse(*request, &message));
    Response answer;
    MS_RETURN_IF_ERROR(work(message, &answer));
    *response = Pack(answer);
    return absl::OkStatus();
  }();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const grpc::Status end = EndOfCall(status, context);
  deps_.metrics->OnRpcEnd(kService, method, static_cast<int>(end.error_code()),
                          absl::ToDoubleSeconds(absl::Now() - started));
  reactor->Finish(end);
  return reactor;
}

absl::Status AdminService::DoAbort(const v1::AbortRequest& request, v1::AbortResponse* response) {
  if (request.request_ids().empty() && request.tenant().empty() && request.plan_id().empty() &&
      !request.all()) {
    return FieldInvalid("request", "names nothing; set request_ids, tenant, plan_id or all");
  }
  if (request.request_ids_size() > kAbortIdsMax) {
    return FieldInvalid("request_ids", absl::StrFormat("has %d entries; limit is %d",
                                                       request.request_ids_size(), kAbortIdsMax));
  }
  TrackedEngine* engine = deps_.engine();
  if (engine == nullptr) return deps_.state->Accepting();
  std::string plan_id;
  if (!request.plan_id().empty()) {
    MS_ASSIGN_OR_RETURN(plan_id, CompletePlanId(engine, request.plan_id()));
  }
  std::set<std::string> asked(request.request_ids().begin(), request.request_ids().end());
  const absl::Status end =
      WithReason(absl::AbortedError("request was ended by an administrator"), reason::kAdminAbort);
  uint32_t aborted = 0;
  for (const TrackedEngine::Live& live : engine->LiveRequests()) {
    const bool named = asked.erase(live.id) != 0;
    const bool chosen = named || request.all() ||
                        (!request.tenant().empty() && live.tenant == request.tenant()) ||
                        (!plan_id.empty() && live.plan_id == plan_id);
    if (chosen && engine->Cancel(live.id, end)) ++aborted;
  }
  response->set_aborted(aborted);
  for (const std::string& id : asked) response->add_unknown_ids(id);
  MS_LOG(INFO) << "abort: " << aborted << " requests ended by an administrator";
  return absl::OkStatus();
}

absl::Status AdminService::DoFlush(const v1::FlushPrefixCacheRequest& request,
                                   v1::FlushPrefixCacheResponse* response) {
  if (request.has_salt() && !request.has_tenant()) {
    return FieldInvalid("salt", "goes with tenant; only tenants divide the cache by salt");
  }
  TrackedEngine* engine = deps_.engine();
  if (engine == nullptr) return deps_.state->Accepting();
  std::optional<std::string> plan_id, salt;
  if (request.has_plan_id()) {
    MS_ASSIGN_OR_RETURN(plan_id, CompletePlanId(engine, request.plan_id()));
  }
  if (request.has_tenant()) salt = EngineSalt(request.tenant(), request.salt());
  const CacheManager::Flushed flushed =
      engine->FlushPrefixCache(std::move(plan_id), std::move(salt));
  response->set_entries(static_cast<uint64_t>(flushed.entries));
  response->set_bytes(static_cast<uint64_t>(flushed.bytes));
  MS_LOG(INFO) << "prefix cache flushed by an administrator: entries=" << flushed.entries
               << " bytes=" << flushed.bytes;
  return absl::OkStatus();
}

absl::Status AdminService::DoDrain(const v1::DrainRequest& request, v1::DrainResponse* response) {
  absl::Duration timeout = absl::Seconds(deps_.state->config().drain.timeout_s);
  if (request.has_timeout()) {
    MS_ASSIGN_OR_RETURN(
        timeout, ReadDuration(request.timeout(), "timeout", absl::ZeroDuration(), kDrainMax));
  }
  MS_LOG(INFO) << "drain asked by an administrator: "
               << (request.exit() ? "then exit" : "then hold")
               << " timeout_s=" << absl::ToDoubleSeconds(timeout);
  deps_.drain->Begin(deps_.clock->Now(), timeout, request.exit());
  const v1::Load load = MakeLoad(*deps_.state);
  response->set_running(load.running());
  response->set_waiting(load.waiting());
  return absl::OkStatus();
}

absl::Status AdminService::DoSetLogLevel(const v1::SetLogLevelRequest& request,
                                         v1::SetLogLevelResponse* response) {
  if (!request.module().empty()) return FeatureUnavailable("module");
  LogLevel level;
  if (!ParseLogLevel(request.level(), &level)) {
    return FieldInvalid("level", absl::StrFormat("is %s; must be debug, info, warning or error",
                                                 Quoted(request.level())));
  }
  absl::Duration revert_after = absl::ZeroDuration();
  if (request.has_revert_after()) {
    MS_ASSIGN_OR_RETURN(revert_after, ReadDuration(request.revert_after(), "revert_after",
                                                   absl::Seconds(1), kDrainMax));
  }
  constexpr const char* kNames[] = {"debug", "info", "warning", "error"};
  MutexLock lock(&mutex_);
  const LogLevel previous = GetLogLevel();
  response->set_previous(kNames[static_cast<int>(previous)]);
  if (request.has_revert_after()) {
    // A second change before the first reverted goes back to where the first came from.
    const LogLevel back = revert_.has_value() ? revert_->level : previous;
    revert_ = Revert{back, deps_.clock->Now() + revert_after};
  } else {
    revert_.reset();
  }
  morphserve::SetLogLevel(level);
  return absl::OkStatus();
}

void AdminService::Tick(absl::Time now) {
  MutexLock lock(&mutex_);
  if (!revert_.has_value() || now < revert_->at) return;
  morphserve::SetLogLevel(revert_->level);
  revert_.reset();
}

void AdminService::EndWatches() {
  MutexLock lock(&mutex_);
  ended_ = true;
  for (LoadWatcher* watcher : watchers_) {
    watcher->Stop(WithReason(absl::UnavailableError("server is draining"), reason::kDraining));
  }
}

grpc::ServerUnaryReactor* AdminService::Abort(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response) {
  return Unary<v1::AbortRequest, v1::AbortResponse>(
      context, "Abort", Scope::kAdmin, request, response,
      [this](const v1::AbortRequest& in, v1::AbortResponse* out) { return DoAbort(in, out); });
}

grpc::ServerUnaryReactor* AdminService::GetLoad(grpc::CallbackServerContext* context,
                                                const grpc::ByteBuffer* request,
                                                grpc::ByteBuffer* response) {
  return Unary<v1::GetLoadRequest, v1::Load>(context, "GetLoad", Scope::kRead, request, response,
                                             [this](const v1::GetLoadRequest&, v1::Load* out) {
                                               *out = MakeLoad(*deps_.state);
                                               return absl::OkStatus();
                                             });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* AdminService::WatchLoad(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  deps_.metrics->OnRpcStart(kService, "WatchLoad");
  absl::Duration interval = absl::Seconds(1);
  const absl::Status status = [&]() -> absl::Status {
    MS_RETURN_IF_ERROR(deps_.authorizer->Authorize(context, {Scope::kRead}).status());
    v1::WatchLoadRequest message;
    MS_RETURN_IF_ERROR(Parse(*request, &message));
    if (message.has_interval()) {
      MS_ASSIGN_OR_RETURN(interval,
                          ReadDuration(message.interval(), "interval", kIntervalMin, kIntervalMax));
    }
    return absl::OkStatus();
  }();
  auto* watcher = new LoadWatcher(this, interval, context);  // Deletes itself in OnDone.
  absl::Status refused = status;
  {
    MutexLock lock(&mutex_);
    if (refused.ok() && ended_) {
      refused = WithReason(absl::UnavailableError("server is draining"), reason::kDraining);
    } else if (refused.ok() && watchers_.size() >= kWatchersMax) {
      refused =
          WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                         "%d load watches are open; limit is %d", watchers_.size(), kWatchersMax)),
                     reason::kQueueFull);
    }
    watchers_.insert(watcher);
  }
  if (refused.ok()) {
    watcher->Start();
  } else {
    watcher->Refuse(std::move(refused));
  }
  return watcher;
}

grpc::ServerUnaryReactor* AdminService::FlushPrefixCache(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return Unary<v1::FlushPrefixCacheRequest, v1::FlushPrefixCacheResponse>(
      context, "FlushPrefixCache", Scope::kAdmin, request, response,
      [this](const v1::FlushPrefixCacheRequest& in, v1::FlushPrefixCacheResponse* out) {
        return DoFlush(in, out);
      });
}

grpc::ServerUnaryReactor* AdminService::Pause(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response) {
  return Unary<v1::PauseRequest, v1::PauseResponse>(
      context, "Pause", Scope::kAdmin, request, response,
      [](const auto&, auto*) { return FeatureUnavailable("Pause"); });
}

grpc::ServerUnaryReactor* AdminService::Resume(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* request,
                                               grpc::ByteBuffer* response) {
  return Unary<v1::ResumeRequest, v1::ResumeResponse>(
      context, "Resume", Scope::kAdmin, request, response,
      [this](const v1::ResumeRequest&, v1::ResumeResponse*) {
        if (deps_.drain->Resume()) return absl::OkStatus();
        return absl::FailedPreconditionError("no drain holds; there is nothing to resume");
      });
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* request,
                                              grpc::ByteBuffer* response) {
  return Unary<v1::DrainRequest, v1::DrainResponse>(
      context, "Drain", Scope::kAdmin, request, response,
      [this](const v1::DrainRequest& in, v1::DrainResponse* out) { return DoDrain(in, out); });
}

grpc::ServerUnaryReactor* AdminService::SetLogLevel(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* request,
                                                    grpc::ByteBuffer* response) {
  return Unary<v1::SetLogLevelRequest, v1::SetLogLevelResponse>(
      context, "SetLogLevel", Scope::kAdmin, request, response,
      [this](const v1::SetLogLevelRequest& in, v1::SetLogLevelResponse* out) {
        return DoSetLogLevel(in, out);
      });
}

}  // namespace morphserve
