#include "morph/verifier_lab.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <span>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "kernels/cpu/thread_pool.h"
#include "morph/lab_pass.h"
#include "morph/lab_task.h"
#include "morph/probe_prompts.h"
#include "morph/reasons.h"
#include "morph/step_probe.h"

namespace morphserve {
namespace {

// Positions of a prompt that predict a token of it.
constexpr size_t kScored = kProbeTokens - 1;
// Memory that a measurement of a step may take on a CPU, so that filling it stays a matter of
// milliseconds. On a device all of the load that is asked has room in most cases: fewer sequences
// bring the cost model's error with them.
constexpr int64_t kProbeBytesMax = int64_t{256} << 20;

// Called with a prompt's number, a position of it and the logits there; rows of one block run in
// parallel.
using TakeRow = std::function<void(size_t prompt, int32_t position, const float* logits)>;

// A text, and the first position of it whose logits are wanted; so are all later ones but the last.
struct Probe {
  std::span<const int32_t> tokens;
  int32_t first = 0;
};

// Runs probes under a plan and hands over the logits of the positions that predict a token.
class ProbeTask final : public LabTask {
 public:
  ProbeTask(std::shared_ptr<const LayerPlan> plan, std::vector<Probe> probes, TakeRow take,
            std::function<void(double)> progress)
      : plan_(std::move(plan)),
        probes_(std::move(probes)),
        take_(std::move(take)),
        progress_(std::move(progress)) {}

  absl::StatusOr<bool> Piece(Lab& lab, absl::Time until) override {
    if (units_.count() == 0) {
      MS_RETURN_IF_ERROR(units_.Take(lab, *plan_, 1, length()));
      position_ = 0;
    }
    if (rows_ == 0) {
      BeginChunk(lab, until);
      layers_done_ = false;
    }
    if (!layers_done_) {
      MS_ASSIGN_OR_RETURN(const bool more, pass_.Layers(lab, until));
      layers_done_ = !more;
      return true;
    }
    MS_ASSIGN_OR_RETURN(const LabPass::Block block, pass_.Logits(lab, until));
    if (block.count > 0) {
      TakeBlock(lab, block);
      return true;
    }
    finite = finite && !pass_.nonfinite();
    position_ += rows_;
    rows_ = 0;
    if (position_ < length()) return true;
    units_.GiveBack(lab);
    ++probe_;
    if (progress_) progress_(static_cast<double>(probe_) / static_cast<double>(probes_.size()));
    return probe_ < probes_.size();
  }
  void GiveBack(Lab& lab) override { units_.GiveBack(lab); }

  bool finite = true;  // Of what the mixers' guards saw.

 private:
  int32_t length() const { return static_cast<int32_t>(probes_[probe_].tokens.size()); }

  // A whole prompt at once where there is time for it, else a few rows, whose layers are short.
  void BeginChunk(Lab& lab, absl::Time until) {
    constexpr int32_t kShort = 16;
    const bool time = until - lab.clock->Now() > absl::Milliseconds(5);
    rows_ = std::min({time ? kProbeTokens : kShort, length() - position_, lab.rows_max});
    StepBatch batch;
    const std::span<const int32_t> tokens =
        probes_[probe_].tokens.subspan(static_cast<size_t>(position_), static_cast<size_t>(rows_));
    batch.tokens.assign(tokens.begin(), tokens.end());
    batch.segments.push_back({.row_begin = 0,
                              .row_count = rows_,
                              .position = position_,
                              .caches = units_.caches(0),
                              .plan = plan_.get()});
    pass_.Begin(lab, std::move(batch));
    pass_.SkipRows(std::clamp(probes_[probe_].first - position_, 0, rows_));
  }

  void TakeBlock(Lab& lab, const LabPass::Block& block) {
    const int64_t vocab = lab.model->config().vocab;
    kernels::cpu::ThreadPool* pool = lab.stream.pool;
    pool->ForEachWorker([&](int32_t worker) {
      const auto part = pool->Part(block.count, worker);
      for (int64_t i = part.begin; i < part.end; ++i) {
        const auto at = static_cast<int32_t>(position_ + block.first + i);
        if (at < length() - 1) take_(probe_, at, block.logits + i * vocab);
      }
    });
  }

  const std::shared_ptr<const LayerPlan> plan_;
  const std::vector<Probe> probes_;
  const TakeRow take_;
  const std::function<void(double)> progress_;
  size_t probe_ = 0;
  int32_t position_ = 0;  // Of the chunk's first row.
  int32_t rows_ = 0;      // Of the chunk; 0: none is begun.
  bool layers_done_ = false;
  LabUnits units_;
  LabPass pass_;
};

std::vector<Probe> ProbesOf(std::span<const std::vector<int32_t>> prompts) {
  std::vector<Probe> probes;
  for (const std::vector<int32_t>& prompt : prompts) probes.push_back({.tokens = prompt});
  return probes;
}

class StepTask final : public LabTask {
 public:
  StepTask(std::shared_ptr<const LayerPlan> plan, StepProbe::Step step, UnitBytes bytes)
      : probe_(std::move(plan), {step}, bytes) {}
  absl::StatusOr<bool> Piece(Lab& lab, absl::Time until) override {
    return probe_.Piece(lab, until);
  }
  void GiveBack(Lab& lab) override { probe_.GiveBack(lab); }
  double ms() const { return probe_.ms().front(); }

 private:
  StepProbe probe_;
};

}  // namespace

absl::Status LabVerifier::FillReference(int32_t prompts, const Run& run) {
  const EngineInfo& info = engine_->info();
  if (prompts_.empty()) {
    prompts_ = MakeProbePrompts(engine_->tokenizer(), info.vocab, kProbePrompts);
  }
  const size_t known = reference_.size() / kScored;
  const auto wanted = static_cast<size_t>(prompts);
  if (known >= wanted) return absl::OkStatus();
  MS_ASSIGN_OR_RETURN(const auto full, engine_->MakePlan(std::vector<LayerKind>(
                                           static_cast<size_t>(info.layers), LayerKind::kFull)));
  std::vector<ReferenceRow> rows((wanted - known) * kScored);
  std::atomic<bool> finite = true;
  const auto missing = std::span(prompts_).subspan(known, wanted - known);
  ProbeTask task(
      full, ProbesOf(missing),
      [&](size_t prompt, int32_t position, const float* logits) {
        const auto at = static_cast<size_t>(position);
        const int32_t next = missing[prompt][at + 1];
        ReferenceRow* const row = &rows[prompt * kScored + at];
        if (!MakeReferenceRow(logits, info.vocab, next, row)) finite = false;
      },
      [&run](double done) {
        if (*run.progress) (*run.progress)(run.from + done * (run.to - run.from));
      });
  MS_RETURN_IF_ERROR(RunLabTask(engine_, &task, run.cancel, run.deadline));
  if (!finite || !task.finite) {
    return WithReason(absl::InternalError("the all-full plan gives numbers that are not finite"),
                      reason::kCanaryFailed);
  }
  reference_.insert(reference_.end(), std::make_move_iterator(rows.begin()),
                    std::make_move_iterator(rows.end()));
  return absl::OkStatus();
}

absl::Status LabVerifier::Compare(const VerifyRequest& request, const Run& run,
                                  VerifyReport* report) {
  const auto prompts = std::span(prompts_).first(static_cast<size_t>(request.prompts));
  const int32_t vocab = engine_->info().vocab;
  std::vector<RowComparison> rows(prompts.size() * kScored);
  ProbeTask task(
      request.plan, ProbesOf(prompts),
      [&](size_t prompt, int32_t position, const float* logits) {
        const auto at = static_cast<size_t>(position);
        const size_t row = prompt * kScored + at;
        rows[row] = CompareRow(reference_[row], logits, vocab, prompts[prompt][at + 1]);
      },
      [&run](double done) {
        if (*run.progress) (*run.progress)(run.from + done * (run.to - run.from));
      });
  MS_RETURN_IF_ERROR(RunLabTask(engine_, &task, run.cancel, run.deadline));
  report->finite = task.finite;
  report->positions = static_cast<int32_t>(rows.size());
  double loss = 0, full_loss = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    report->finite = report->finite && rows[i].finite;
    report->kl += rows[i].kl;
    report->agreement += rows[i].same_best ? 1 : 0;
    loss += rows[i].loss;
    full_loss += reference_[i].loss;
  }
  const auto count = static_cast<double>(rows.size());
  report->kl /= count;
  report->agreement /= count;
  report->quality = std::exp((full_loss - loss) / count);
  return absl::OkStatus();
}

absl::StatusOr<double> LabVerifier::RecallOf(std::shared_ptr<const LayerPlan> plan,
                                             const Run& run) {
  const int32_t vocab = engine_->info().vocab;
  std::vector<Probe> probes;
  int64_t answers = 0;
  for (const CalibrationSample& sample : recall_probes_) {
    probes.push_back({.tokens = sample.tokens, .first = sample.scored.front()});
    answers += static_cast<int64_t>(sample.scored.size());
  }
  std::atomic<int64_t> right = 0;
  ProbeTask task(
      std::move(plan), std::move(probes),
      [&](size_t probe, int32_t position, const float* logits) {
        const CalibrationSample& sample = recall_probes_[probe];
        if (!std::binary_search(sample.scored.begin(), sample.scored.end(), position)) return;
        const auto best = std::max_element(logits, logits + vocab) - logits;
        if (best == sample.tokens[static_cast<size_t>(position) + 1]) ++right;
      },
      [&run](double done) {
        if (*run.progress) (*run.progress)(run.from + done * (run.to - run.from));
      });
  MS_RETURN_IF_ERROR(RunLabTask(engine_, &task, run.cancel, run.deadline));
  return static_cast<double>(right) / static_cast<double>(answers);
}

// The all-full plan looks once.
absl::Status LabVerifier::CompareRecall(const VerifyRequest& request, Run run,
                                        VerifyReport* report) {
  const EngineInfo& info = engine_->info();
  if (recall_probes_.empty()) {
    recall_probes_ = MakeRecallProbes(engine_->tokenizer(), info.context_tokens);
    if (recall_probes_.empty()) return absl::OkStatus();
  }
  const double to = run.to;
  if (!full_recall_.has_value()) {
    run.to = (run.from + run.to) / 2;
    MS_ASSIGN_OR_RETURN(auto full, engine_->MakePlan(std::vector<LayerKind>(
                                       static_cast<size_t>(info.layers), LayerKind::kFull)));
    MS_ASSIGN_OR_RETURN(full_recall_, RecallOf(std::move(full), run));
    run.from = run.to;
    run.to = to;
  }
  report->full_recall = full_recall_;
  MS_ASSIGN_OR_RETURN(report->recall, RecallOf(request.plan, run));
  return absl::OkStatus();
}

// With fewer sequences where all of them would take too much memory; the cost model then carries
// the time to the load that was asked.
absl::Status LabVerifier::MeasureStep(const VerifyRequest& request, const Run& run,
                                      VerifyReport* report) {
  const EngineInfo& info = engine_->info();
  const LoadPoint& load = *request.load;
  const LayerPlan& plan = *request.plan;
  const int64_t each = std::max<int64_t>(engine_->MemoryOf(plan).SequenceBytes(load.context), 1);
  int32_t running = 1;
  const bool told = engine_->RunInLab([&](Lab& lab, absl::Duration) {
    const bool device = lab.stream.cuda_stream != nullptr;
    const int64_t bytes = device ? kDeviceProbeBytesMax : kProbeBytesMax;
    const int64_t most = std::min(bytes, info.memory.arena_bytes / 2) / each;
    running = static_cast<int32_t>(std::clamp<int64_t>(most, 1, load.running));
    running = std::min({running, lab.model->limits().sequences, lab.rows_max});
    return false;
  });
  if (!told) return absl::UnavailableError("the server stops");
  const int32_t context = std::min(load.context, info.context_tokens) - 1;
  for (;; running /= 2) {
    StepTask task(request.plan, {.rows = running, .context = context, .repeats = 3},
                  {.page = info.memory.page_bytes, .slot = info.memory.slot_bytes});
    const absl::Status status = RunLabTask(engine_, &task, run.cancel, run.deadline);
    if (absl::IsResourceExhausted(status) && running > 1) continue;
    MS_RETURN_IF_ERROR(status);
    report->measured_running = running;
    report->step_ms = task.ms();
    if (running < load.running && request.costs != nullptr) {
      const int32_t k = plan.full_layers();
      *report->step_ms *= request.costs->DecodeMs(k, load.running, load.context) /
                          request.costs->DecodeMs(k, running, load.context);
    }
    return absl::OkStatus();
  }
}

absl::StatusOr<VerifyReport> LabVerifier::Verify(const VerifyRequest& request,
                                                 const std::atomic<bool>* cancel,
                                                 absl::Time deadline,
                                                 const std::function<void(double)>& progress) {
  MS_CHECK(0 <= request.prompts && request.prompts <= kProbePrompts);
  VerifyReport report;
  // Passkeys are the longest part where they are looked for.
  const double share = request.recall ? 0.4 : 1;
  Run run{.cancel = cancel, .deadline = deadline, .progress = &progress, .from = 0, .to = 0.4};
  run.to *= share;
  if (request.prompts > 0) {
    MS_RETURN_IF_ERROR(FillReference(request.prompts, run));
    run.from = 0.4 * share;
    run.to = 0.8 * share;
    MS_RETURN_IF_ERROR(Compare(request, run, &report));
  }
  if (request.load.has_value()) MS_RETURN_IF_ERROR(MeasureStep(request, run, &report));
  if (request.recall) {
    run.from = share;
    run.to = 1;
    MS_RETURN_IF_ERROR(CompareRecall(request, run, &report));
  }
  if (progress) progress(1);
  return report;
}

}  // namespace morphserve
