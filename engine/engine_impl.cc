#include "engine/engine_impl.h"

#include <algorithm>
#include <future>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/memory_plan.h"
#include "engine/model/stored_plans.h"
#include "engine/reasons.h"
#include "engine/request_check.h"

namespace morphserve {
namespace {

CoreSettings MakeCoreSettings(const EngineOptions& options, int32_t layers) {
  CoreSettings settings;
  settings.scheduler = {.layers = layers,
                        .sequences_max = options.sequences_max,
                        .step_tokens_max = options.step_tokens_max,
                        .step_ms_target = options.step_ms_target,
                        .chunk_tokens_min = options.chunk_tokens_min,
                        .growth_tokens = options.growth_tokens,
                        .starvation = absl::Seconds(options.starvation_s),
                        .preemptions_max = options.preemptions_max};
  settings.run_ahead = options.run_ahead;
  settings.guard_state_every_tokens = options.guard_state_every_tokens;
  settings.guard_trips_max = options.guard_trips_max;
  settings.guard_window = absl::Seconds(options.guard_window_s);
  return settings;
}

}  // namespace

EngineImpl::EngineImpl(Parts parts, const Clock* clock, EngineObserver* observer)
    : parts_(std::move(parts)),
      clock_(clock),
      core_(MakeCoreSettings(parts_.options, parts_.info.layers), parts_.caches.get(),
            parts_.runner.get(), parts_.cost.get(), parts_.plans.get(), parts_.tokenizer.get(),
            clock, observer) {
  core_.on_left_queue = [this](int32_t prompt_tokens) {
    MutexLock lock(&mutex_);
    --waiting_requests_;
    waiting_tokens_ -= prompt_tokens;
  };
  core_.on_ended = [this](const std::string& id) {
    MutexLock lock(&mutex_);
    live_.erase(id);
  };
  lab_ = {.caches = parts_.caches.get(),
          .memory = parts_.memory.get(),
          .runner = parts_.runner.get(),
          .model = parts_.model,
          .cost = parts_.cost.get(),
          .backend = &parts_.device.backend(),
          .selection = parts_.device.selection(),
          .stream = parts_.device.stream(parts_.pool.get()),
          .clock = clock,
          .rows_max = parts_.model->limits().rows,
          .adopt = [this](SequenceCaches* caches) { core_.Adopt(caches); },
          .forget = [this](SequenceCaches* caches) { core_.Forget(caches); }};
  if (const Branches* branches = parts_.model->branches(); branches != nullptr) {
    branches_ = std::make_shared<const BranchesHeader>(branches->header);
  }
  Publish(/*worked=*/false);
  thread_ = std::thread([this] { Loop(); });
}

EngineImpl::~EngineImpl() {
  {
    MutexLock lock(&mutex_);
    admitting_ = false;
    ending_ = true;
  }
  work_.NotifyAll();
  thread_.join();
}

// The prefix cache is asked only when a cold run would be too late: that waits for a step.
absl::Status EngineImpl::CheckDeadlineOf(const Request& request, const LayerPlan& plan) {
  const absl::Time now = clock_->Now();
  const absl::Status cold =
      CheckDeadline(request, parts_.options, *parts_.cost, /*cached_tokens=*/0, now);
  if (ReasonOf(cold) != reason::kDeadlineUnreachable || !parts_.options.prefix_cache ||
      request.cache.bypass) {
    return cold;
  }
  const int32_t cached = CachedTokens(plan.id(), request.cache.salt, request.prompt);
  return CheckDeadline(request, parts_.options, *parts_.cost, cached, now);
}

absl::Status EngineImpl::Submit(Request request, std::shared_ptr<TokenSink> sink) {
  std::shared_ptr<const LayerPlan> plan;  // Null: whichever is active when it starts.
  if (request.plan_id.has_value()) {
    auto named = parts_.plans->Find(*request.plan_id);
    if (!named.ok()) {
      return WithReason(named.status(), absl::IsFailedPrecondition(named.status())
                                            ? reason::kPlanWithdrawn
                                            : reason::kPlanNotFound);
    }
    plan = *std::move(named);
  }
  const std::shared_ptr<const LayerPlan> likely = plan != nullptr ? plan : parts_.plans->active();
  MS_RETURN_IF_ERROR(CheckRequest(request, *likely, parts_.info, parts_.options));
  MS_RETURN_IF_ERROR(CheckDeadlineOf(request, *likely));
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const EngineOptions& options = parts_.options;
  {
    MutexLock lock(&mutex_);
    if (!load_.device_lost.empty()) {
      return WithReason(absl::UnavailableError("the device failed; the server ends"),
                        reason::kDraining);
    }
    if (!admitting_) {
      return WithReason(absl::UnavailableError("the server is draining"), reason::kDraining);
    }
    if (waiting_requests_ >= options.queue_requests_max) {
      return WithReason(
          absl::ResourceExhaustedError(absl::StrFormat(
              "%d requests wait; limit is %d", waiting_requests_, options.queue_requests_max)),
          reason::kQueueFull);
    }
    if (waiting_tokens_ + prompt > options.queue_tokens_max) {
      return WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                            "%d prompt tokens wait and %d more were sent; limit is %d",
                            waiting_tokens_, prompt, options.queue_tokens_max)),
                        reason::kQueueFull);
    }
    if (!live_.insert(request.id).second) {
      return WithReason(
          absl::AlreadyExistsError(absl::StrFormat("request id %s is running", request.id)),
          reason::kRequestIdInUse);
    }
    ++waiting_requests_;
    waiting_tokens_ += prompt;
    submissions_.push_back({std::move(request), std::move(plan), std::move(sink)});
  }
  work_.NotifyOne();
  return absl::OkStatus();
}

bool EngineImpl::Cancel(const std::string& request_id, absl::Status status) {
  {
    MutexLock lock(&mutex_);
    if (!live_.contains(request_id)) return false;
    cancellations_.push_back({request_id, std::move(status)});
  }
  work_.NotifyOne();
  return true;
}

void EngineImpl::StopAdmission() {
  MutexLock lock(&mutex_);
  admitting_ = false;
}

void EngineImpl::RunBetweenSteps(absl::AnyInvocable<void()> task) {
  std::promise<void> done;
  {
    MutexLock lock(&mutex_);
    if (ending_) return;  // Nobody would run it.
    tasks_.push_back([&task, &done] {
      task();
      done.set_value();
    });
  }
  work_.NotifyOne();
  done.get_future().wait();
}

bool EngineImpl::RunInLab(LabWork work) {
  LabJob job;
  job.work = std::move(work);
  {
    MutexLock lock(&mutex_);
    if (ending_) return false;
    lab_jobs_.push_back(&job);
  }
  work_.NotifyOne();
  return job.done.get_future().get();
}

// After a step the slice may add its share to it; when nothing runs it may take what a request that
// comes in the meantime would not notice.
bool EngineImpl::RunLabSlice(bool served) {
  constexpr absl::Duration kLeast = absl::Milliseconds(1);
  constexpr absl::Duration kIdle = absl::Milliseconds(20);
  LabJob* job = nullptr;
  {
    MutexLock lock(&mutex_);
    if (lab_jobs_.empty()) return false;
    job = lab_jobs_.front();
  }
  const absl::Duration share =
      absl::Milliseconds(core_.last_step_ms() * parts_.options.latency_share_max);
  core_.Settle();
  if (job->work(lab_, served ? std::max(kLeast, share) : kIdle)) return true;
  {
    MutexLock lock(&mutex_);
    lab_jobs_.pop_front();
  }
  Publish(/*worked=*/false);  // Who waited sees what the work has given back.
  job->done.set_value(true);
  return true;
}

CacheManager::Flushed EngineImpl::FlushPrefixCache(std::optional<std::string> plan_id,
                                                   std::optional<std::string> salt) {
  CacheManager::Flushed flushed;
  RunBetweenSteps([&] { flushed = parts_.caches->Flush(plan_id, salt); });
  return flushed;
}

int32_t EngineImpl::CachedTokens(const std::string& plan_id, std::string salt,
                                 std::vector<int32_t> prompt) {
  const auto plan = parts_.plans->Find(plan_id);
  if (!plan.ok() || prompt.empty()) return 0;
  int32_t tokens = 0;
  RunBetweenSteps([&] {
    tokens = parts_.caches
                 ->Peek({.plan = plan->get(), .salt = salt}, prompt,
                        static_cast<int32_t>(prompt.size()) - 1)
                 .tokens;
  });
  return tokens;
}

bool EngineImpl::DrainCommands() {
  std::vector<Submission> submissions;
  std::vector<Cancellation> cancellations;
  std::vector<absl::AnyInvocable<void()>> tasks;
  {
    MutexLock lock(&mutex_);
    while (core_.idle() && !HasCommands() && !ending_) work_.Wait(&mutex_);
    if (ending_) return false;
    submissions.swap(submissions_);
    cancellations.swap(cancellations_);
    tasks.swap(tasks_);
    lab_waits_ = !lab_jobs_.empty();
    if (!busy_ && !submissions.empty()) last_step_at_ = clock_->Now();
    busy_ = busy_ || !submissions.empty();
  }
  for (Submission& s : submissions) {
    core_.Add(std::move(s.request), std::move(s.plan), std::move(s.sink));
  }
  for (const Cancellation& c : cancellations) core_.Cancel(c.id, c.status);
  if (!tasks.empty()) core_.Settle();
  for (auto& task : tasks) task();
  return true;
}

void EngineImpl::Loop() {
  while (DrainCommands()) {
    const bool worked = core_.Step(/*may_run_ahead=*/!lab_waits_);
    Publish(worked);
    if (RunLabSlice(worked) || worked) continue;
    // Requests are live but nothing can run before a deadline or a command.
    MutexLock lock(&mutex_);
    if (!core_.idle() && !HasCommands() && !ending_) {
      work_.WaitFor(&mutex_, std::chrono::milliseconds(2));
    }
  }
  EndQueues();
}

void EngineImpl::EndQueues() {
  // What waits in the queue has live sinks too, and somebody waits for every task.
  std::vector<Submission> submissions;
  std::vector<absl::AnyInvocable<void()>> tasks;
  std::deque<LabJob*> jobs;
  {
    MutexLock lock(&mutex_);
    submissions.swap(submissions_);
    tasks.swap(tasks_);
    jobs.swap(lab_jobs_);
  }
  core_.Settle();
  for (auto& task : tasks) task();
  for (LabJob* job : jobs) {
    job->work(lab_, absl::ZeroDuration());
    job->done.set_value(false);
  }
  for (Submission& s : submissions) {
    core_.Add(std::move(s.request), std::move(s.plan), std::move(s.sink));
  }
  core_.CancelAll(WithReason(absl::UnavailableError("the server stops"), reason::kDraining));
}

void EngineImpl::Publish(bool worked) {
  EngineLoad load;
  load.step = core_.steps();
  load.running = static_cast<int32_t>(core_.scheduler().running().size());
  load.preempted = core_.preempted_waiting();
  load.arena_bytes = parts_.info.memory.arena_bytes;
  load.cache = parts_.caches->Usage();
  load.running_by_plan = core_.RunningByPlan();
  const absl::Time now = clock_->Now();
  absl::Time oldest = now;
  for (const Sequence* sequence : core_.scheduler().waiting()) {
    oldest = std::min(oldest, sequence->waiting_since);
  }
  load.oldest_wait_ms = absl::ToDoubleMilliseconds(now - oldest);
  MeasureSpeed(worked, &load);
  load.device_lost = std::string(core_.lost().message());
  MutexLock lock(&mutex_);
  load_ = std::move(load);
  if (worked) last_step_at_ = now;
  busy_ = !core_.idle();
}

void EngineImpl::MeasureSpeed(bool worked, EngineLoad* load) {
  if (worked) {
    step_ms_[core_.steps() % step_ms_.size()] = core_.last_step_ms();
    const double ms = std::max(core_.last_step_ms(), 1e-3);
    const double weight = std::min(1.0, ms / 1000);
    const double rate = core_.output_tokens_of_last_step() * 1000.0 / ms;
    tokens_per_second_ += weight * (rate - tokens_per_second_);
  } else if (core_.idle()) {
    tokens_per_second_ = 0;
  }
  load->tokens_per_second = tokens_per_second_;
  const size_t known = std::min<size_t>(core_.steps(), step_ms_.size());
  if (known > 0) {
    std::array<double, 64> sorted = step_ms_;
    // Unused entries are zero: look at the `known` largest.
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    load->step_ms_p50 = sorted[known / 2];
  }
}

EngineLoad EngineImpl::GetLoad() const {
  MutexLock lock(&mutex_);
  EngineLoad load = load_;
  load.waiting = waiting_requests_ + load_.preempted;
  load.waiting_tokens = waiting_tokens_;
  if (busy_) load.step_age_s = absl::ToDoubleSeconds(clock_->Now() - last_step_at_);
  return load;
}

std::vector<PlanStatus> EngineImpl::PlanStatuses() const {
  std::vector<std::pair<std::string, int32_t>> running;
  {
    MutexLock lock(&mutex_);
    running = load_.running_by_plan;
  }
  std::vector<PlanStatus> out;
  for (PlanEntry& entry : parts_.plans->List()) {
    PlanStatus status;
    status.memory = MemoryOf(*entry.plan);
    status.measured = core_.plan_meter().Of(entry.plan->id());
    status.guard_trips = core_.plan_meter().Trips(entry.plan->id());
    status.ends = core_.plan_meter().Ends(entry.plan->id());
    for (const auto& [id, count] : running) {
      if (id == entry.plan->id()) status.running = count;
    }
    status.entry = std::move(entry);
    out.push_back(std::move(status));
  }
  return out;
}

PlanMemory EngineImpl::MemoryOf(const LayerPlan& plan) const {
  return MakePlanMemory(parts_.info.memory, plan.layers(), plan.full_layers(),
                        parts_.info.context_tokens);
}

absl::StatusOr<std::shared_ptr<const LayerPlan>> EngineImpl::MakePlan(
    std::vector<LayerKind> kinds) const {
  if (static_cast<int32_t>(kinds.size()) != parts_.info.layers) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrFormat("plan has %d layers; the model has %d",
                                                   kinds.size(), parts_.info.layers)),
        reason::kFieldInvalid);
  }
  auto plan =
      std::make_shared<const LayerPlan>(std::move(kinds), parts_.base_id, parts_.branches_id);
  if (plan->full_layers() < plan->layers() && branches() == nullptr) {
    return WithReason(
        absl::FailedPreconditionError("the model has no linear branches; every layer is full"),
        reason::kNotMorphable);
  }
  return plan;
}

absl::StatusOr<std::shared_ptr<const LayerPlan>> EngineImpl::RankedPlan(int32_t full_layers) const {
  const std::shared_ptr<const BranchesHeader> known = branches();
  const BranchesRanking* ranking = known == nullptr ? nullptr : DefaultRanking(*known);
  auto kinds = RankedKinds(ranking, parts_.info.layers, full_layers);
  if (!kinds.ok()) return WithReason(kinds.status(), reason::kFieldInvalid);
  return MakePlan(*std::move(kinds));
}

std::shared_ptr<const BranchesHeader> EngineImpl::branches() const {
  MutexLock lock(&rankings_mutex_);
  return branches_;
}

void EngineImpl::SetRankings(std::shared_ptr<const BranchesHeader> known) {
  MutexLock lock(&rankings_mutex_);
  MS_CHECK((known == nullptr) == (branches_ == nullptr));
  branches_.swap(known);
}

}  // namespace morphserve
