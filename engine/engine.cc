#include "engine/engine.h"

#include <algorithm>
#include <array>
#include <thread>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/machine.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"
#include "engine/base/text_view.h"
#include "engine/engine_core.h"
#include "engine/memory_plan.h"
#include "engine/reasons.h"
#include "engine/runner/cpu_runner.h"
#include "engine/self_test.h"

namespace morphserve {

absl::Status WithReason(absl::Status status, std::string_view reason) {
  status.SetPayload(kReasonUrl, absl::Cord(std::string(reason)));
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

absl::Status WithMetadata(absl::Status status, std::string_view key, std::string_view value) {
  status.SetPayload(absl::StrFormat("%s%s", kMetadataUrl, key), absl::Cord(ToAbsl(value)));
  return status;
}

std::string MetadataOf(const absl::Status& status, std::string_view key) {
  const auto payload = status.GetPayload(absl::StrFormat("%s%s", kMetadataUrl, key));
  return payload.has_value() ? std::string(*payload) : std::string();
}

namespace {

// The engine thread and the queue in front of it.
class EngineImpl final : public Engine {
 public:
  // Everything the engine thread works with, built and tested before it starts.
  struct Parts {
    EngineOptions options;
    EngineInfo info;
    std::unique_ptr<Tokenizer> tokenizer;
    std::unique_ptr<kernels::cpu::ThreadPool> pool;
    std::unique_ptr<Arena> arena;
    std::unique_ptr<UnitPool> pages;
    std::unique_ptr<StepCost> cost;
    std::unique_ptr<CpuRunner> runner;
    std::unique_ptr<PlanRegistry> plans;
  };

  EngineImpl(Parts parts, const Clock* clock, EngineObserver* observer);
  ~EngineImpl() override;

  const Tokenizer* tokenizer() const override { return parts_.tokenizer.get(); }
  const EngineInfo& info() const override { return parts_.info; }
  absl::Status Submit(Request request, std::shared_ptr<TokenSink> sink) override;
  bool Cancel(const std::string& request_id, absl::Status status) override;
  void StopAdmission() override;
  EngineLoad GetLoad() const override;

 private:
  struct Submission {
    Request request;
    std::shared_ptr<TokenSink> sink;
  };
  struct Cancellation {
    std::string id;
    absl::Status status;
  };

  absl::Status CheckRequest(const Request& request) const;
  absl::Status CheckDeadline(const Request& request) const;
  void Loop();
  // Moves what RPC threads left into the core. False when the engine ends.
  bool DrainCommands();
  void Publish(bool worked);

  Parts parts_;
  const Clock* const clock_;
  EngineCore core_;  // Engine thread only.

  mutable Mutex mutex_;
  CondVar work_;
  std::vector<Submission> submissions_ ABSL_GUARDED_BY(mutex_);
  std::vector<Cancellation> cancellations_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::string> live_ ABSL_GUARDED_BY(mutex_);
  int32_t waiting_requests_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool admitting_ ABSL_GUARDED_BY(mutex_) = true;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  EngineLoad load_ ABSL_GUARDED_BY(mutex_);
  absl::Time last_step_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;

  std::array<double, 64> step_ms_{};  // Engine thread only: the last steps.
  double tokens_per_second_ = 0;      // Engine thread only: moving mean over about a second.
  std::thread thread_;
};

SchedulerOptions MakeSchedulerOptions(const EngineOptions& options, int32_t layers) {
  return {.layers = layers,
          .sequences_max = options.sequences_max,
          .step_tokens_max = options.step_tokens_max,
          .step_ms_target = options.step_ms_target,
          .chunk_tokens_min = options.chunk_tokens_min,
          .growth_tokens = options.growth_tokens,
          .starvation = absl::Seconds(options.starvation_s),
          .preemptions_max = options.preemptions_max};
}

EngineImpl::EngineImpl(Parts parts, const Clock* clock, EngineObserver* observer)
    : parts_(std::move(parts)),
      clock_(clock),
      core_(MakeSchedulerOptions(parts_.options, parts_.info.layers), parts_.pages.get(),
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

absl::Status EngineImpl::CheckRequest(const Request& request) const {
  const EngineInfo& info = parts_.info;
  if (request.prompt.empty()) {
    return WithReason(absl::InvalidArgumentError("prompt has no tokens"), reason::kFieldInvalid);
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= info.vocab) {
      return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                            "prompt token id is %d; must be below %d", token, info.vocab)),
                        reason::kFieldInvalid);
    }
  }
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t total = prompt + request.stopping.max_tokens;
  if (request.stopping.max_tokens < 1 || total > info.context_tokens) {
    return WithReason(absl::InvalidArgumentError(absl::StrFormat(
                          "prompt has %d tokens and max_tokens is %d; limit of their sum is %d",
                          prompt, request.stopping.max_tokens, info.context_tokens)),
                      reason::kContextTooLong);
  }
  if (request.sampling.n < 1 || request.sampling.n > parts_.options.sequences_max) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrFormat("n is %d; limit is %d", request.sampling.n,
                                                   parts_.options.sequences_max)),
        reason::kFieldInvalid);
  }
  std::shared_ptr<const LayerPlan> plan = parts_.plans->active();
  if (request.plan_id.has_value()) {
    auto named = parts_.plans->Find(*request.plan_id);
    if (!named.ok()) return WithReason(named.status(), reason::kPlanNotFound);
    plan = *std::move(named);
  }
  const int64_t pages = Scheduler::PagesFor(*plan, static_cast<int32_t>(total));
  if (pages > parts_.info.memory.pages_total) {
    return WithReason(
        absl::InvalidArgumentError(absl::StrFormat("needs %d pages; arena holds %d pages", pages,
                                                   parts_.info.memory.pages_total)),
        reason::kNeverFits);
  }
  return CheckDeadline(request);
}

absl::Status EngineImpl::CheckDeadline(const Request& request) const {
  const absl::Time now = clock_->Now();
  const double left_ms = absl::ToDoubleMilliseconds(request.deadline - now);
  double needed_ms = 0;
  if (parts_.options.deadline_admission) {
    needed_ms = parts_.cost->best_prefill_row_ms() * static_cast<double>(request.prompt.size());
    if (request.require_complete) {
      needed_ms += parts_.cost->best_decode_ms() * request.stopping.max_tokens;
    }
  }
  if (left_ms > needed_ms) return absl::OkStatus();
  if (left_ms <= 0) {
    return WithMetadata(WithReason(absl::DeadlineExceededError("deadline passed before admission"),
                                   reason::kDeadlinePassed),
                        "phase", "admission");
  }
  absl::Status status = WithReason(absl::DeadlineExceededError(absl::StrFormat(
                                       "needs %.0f ms; %.0f ms left", needed_ms, left_ms)),
                                   reason::kDeadlineUnreachable);
  status = WithMetadata(std::move(status), "needed_ms", absl::StrFormat("%.0f", needed_ms));
  status = WithMetadata(std::move(status), "left_ms", absl::StrFormat("%.0f", left_ms));
  return WithMetadata(std::move(status), "basis",
                      request.require_complete ? "prefill_and_decode" : "prefill");
}

absl::Status EngineImpl::Submit(Request request, std::shared_ptr<TokenSink> sink) {
  MS_RETURN_IF_ERROR(CheckRequest(request));
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const EngineOptions& options = parts_.options;
  {
    MutexLock lock(&mutex_);
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
    submissions_.push_back({std::move(request), std::move(sink)});
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

bool EngineImpl::DrainCommands() {
  std::vector<Submission> submissions;
  std::vector<Cancellation> cancellations;
  {
    MutexLock lock(&mutex_);
    while (core_.idle() && submissions_.empty() && cancellations_.empty() && !ending_) {
      work_.Wait(&mutex_);
    }
    if (ending_) return false;
    submissions.swap(submissions_);
    cancellations.swap(cancellations_);
    if (!busy_ && !submissions.empty()) last_step_at_ = clock_->Now();
    busy_ = busy_ || !submissions.empty();
  }
  for (Submission& s : submissions) core_.Add(std::move(s.request), std::move(s.sink));
  for (const Cancellation& c : cancellations) core_.Cancel(c.id, c.status);
  return true;
}

void EngineImpl::Loop() {
  while (DrainCommands()) {
    const bool worked = core_.Step();
    Publish(worked);
    if (worked) continue;
    // Requests are live but nothing can run before a deadline or a command.
    MutexLock lock(&mutex_);
    if (!core_.idle() && submissions_.empty() && cancellations_.empty() && !ending_) {
      work_.WaitFor(&mutex_, std::chrono::milliseconds(2));
    }
  }
  // What waits in the queue has live sinks too.
  std::vector<Submission> submissions;
  {
    MutexLock lock(&mutex_);
    submissions.swap(submissions_);
  }
  for (Submission& s : submissions) core_.Add(std::move(s.request), std::move(s.sink));
  core_.CancelAll(WithReason(absl::UnavailableError("the server stops"), reason::kDraining));
}

void EngineImpl::Publish(bool worked) {
  EngineLoad load;
  load.step = core_.steps();
  load.running = static_cast<int32_t>(core_.scheduler().running().size());
  load.preempted = core_.preempted_waiting();
  load.arena_bytes = parts_.info.memory.arena_bytes;
  load.pages_total = parts_.pages->capacity();
  load.pages_running = parts_.pages->in_use();
  load.pages_free = parts_.pages->available();
  const absl::Time now = clock_->Now();
  absl::Time oldest = now;
  for (const Sequence* sequence : core_.scheduler().waiting()) {
    oldest = std::min(oldest, sequence->waiting_since);
  }
  load.oldest_wait_ms = absl::ToDoubleMilliseconds(now - oldest);
  if (worked) {
    step_ms_[core_.steps() % step_ms_.size()] = core_.last_step_ms();
    const double ms = std::max(core_.last_step_ms(), 1e-3);
    const double weight = std::min(1.0, ms / 1000);
    const double rate = core_.output_tokens_of_last_step() * 1000.0 / ms;
    tokens_per_second_ += weight * (rate - tokens_per_second_);
  } else if (core_.idle()) {
    tokens_per_second_ = 0;
  }
  load.tokens_per_second = tokens_per_second_;
  const size_t known = std::min<size_t>(core_.steps(), step_ms_.size());
  if (known > 0) {
    std::array<double, 64> sorted = step_ms_;
    // Unused entries are zero: look at the `known` largest.
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    load.step_ms_p50 = sorted[known / 2];
  }
  MutexLock lock(&mutex_);
  load_ = load;
  if (worked) last_step_at_ = now;
  busy_ = !core_.idle();
}

EngineLoad EngineImpl::GetLoad() const {
  MutexLock lock(&mutex_);
  EngineLoad load = load_;
  load.waiting = waiting_requests_ + load_.preempted;
  load.waiting_tokens = waiting_tokens_;
  if (busy_) load.step_age_s = absl::ToDoubleSeconds(clock_->Now() - last_step_at_);
  return load;
}

int32_t CountPieces(const Tokenizer* tokenizer, int32_t vocab) {
  if (tokenizer == nullptr) return vocab;
  int32_t pieces = std::min(vocab, tokenizer->vocab_size());
  while (pieces > 1 && !tokenizer->has_piece(pieces - 1)) --pieces;
  return pieces;
}

std::string WeightDTypeName(const ModelWeights& weights) {
  return kernels::WeightFormatName(weights.layers.front().q.format);
}

}  // namespace

absl::StatusOr<MemoryVerdict> Engine::Plan(const Checkpoint& checkpoint,
                                           const EngineOptions& options) {
  return MakeMemoryVerdict(checkpoint, options, ReadMachine());
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(Checkpoint checkpoint,
                                                       const EngineOptions& options,
                                                       const Clock* clock, EngineObserver* observer,
                                                       std::function<void(double)> progress,
                                                       const std::atomic<bool>* cancel) {
  const Machine machine = ReadMachine();
  const ModelConfig config = checkpoint.config;
  EngineImpl::Parts parts;
  parts.options = options;
  MS_ASSIGN_OR_RETURN(const int32_t context, ResolveContext(checkpoint, options));
  MS_ASSIGN_OR_RETURN(parts.info.memory, MakeMemoryVerdict(checkpoint, options, machine));
  const int32_t threads = ResolveThreads(options, machine);
  parts.pool = kernels::cpu::ThreadPool::Create(
      threads, /*spin=*/threads <= machine.cores && !machine.fractional_quota);
  MS_ASSIGN_OR_RETURN(
      std::unique_ptr<ModelWeights> weights,
      LoadWeights(checkpoint, options.weights_dtype, parts.pool.get(), progress, cancel));

  EngineInfo& info = parts.info;
  info.model_name = checkpoint.name;
  info.architecture = ArchitectureName(config.architecture);
  info.parameters = weights->parameters;
  info.layers = config.layers;
  info.vocab = config.vocab;
  info.context_tokens = context;
  info.weight_dtype = WeightDTypeName(*weights);
  const KvDType kv_dtype = ResolveKvDType(options);
  info.kv_dtype = kv_dtype == KvDType::kF32 ? "F32" : kv_dtype == KvDType::kF16 ? "F16" : "BF16";
  info.kv_bytes_per_token = info.memory.bytes_per_token;
  info.device_name = absl::StrFormat("%s, %d threads, %s", machine.cpu_name, threads,
                                     kernels::CpuDispatchDescription());
  auto plan =
      std::make_shared<const LayerPlan>(LayerPlan::AllFull(config.layers, weights->base_id));
  info.active_plan_id = plan->id();
  info.full_layers = plan->full_layers();
  parts.plans = std::make_unique<PlanRegistry>(plan);

  const int64_t page_bytes = info.memory.page_bytes;
  MS_ASSIGN_OR_RETURN(parts.arena,
                      Arena::Create(info.memory.arena_bytes, SuperBlockBytes(page_bytes)));
  parts.pages = std::make_unique<UnitPool>(parts.arena.get(), page_bytes);
  const ModelLimits limits = MakeModelLimits(options, context);
  MS_ASSIGN_OR_RETURN(std::unique_ptr<HybridModel> model,
                      HybridModel::Create(config, std::move(weights), kv_dtype, limits,
                                          &kernels::CpuBackend(), {.pool = parts.pool.get()}));
  parts.tokenizer = std::move(checkpoint.tokenizer);
  parts.runner = std::make_unique<CpuRunner>(
      std::move(model), parts.pages.get(), parts.arena->base(), parts.pool.get(),
      CountPieces(parts.tokenizer.get(), config.vocab), limits.logit_rows);
  parts.cost = std::make_unique<StepCost>();
  MS_RETURN_IF_ERROR(RunSelfTest(*plan, config.vocab, context, parts.pages.get(),
                                 parts.runner.get(), parts.cost.get(), clock));
  return std::make_unique<EngineImpl>(std::move(parts), clock, observer);
}

}  // namespace morphserve
