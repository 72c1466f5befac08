#include "morph/cost_measure.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/reasons.h"

namespace morphserve {
namespace {

constexpr int64_t kBytesMax = int64_t{512} << 20;
constexpr int32_t kCpuSequencesMax = 32;
constexpr int32_t kContextMax = 8192;
constexpr int32_t kContextMin = 256;

// Runs one setup after the other.
class MeasureTask final : public LabTask {
 public:
  MeasureTask(std::vector<CostSetup> setups, std::vector<std::shared_ptr<const LayerPlan>> plans,
              UnitBytes bytes)
      : setups_(std::move(setups)), plans_(std::move(plans)), bytes_(bytes) {}

  absl::StatusOr<bool> Piece(Lab& lab, absl::Time until) override {
    if (probe_ == nullptr) {
      probe_ = std::make_unique<StepProbe>(plans_[next_], setups_[next_].steps, bytes_);
    }
    const absl::StatusOr<bool> more = probe_->Piece(lab, until);
    if (absl::IsResourceExhausted(more.status())) {
      short_of_.insert(RowsOf(setups_[next_]));
      GiveBack(lab);
      return ++next_ < setups_.size();
    }
    if (!more.ok() || *more) return more;
    for (size_t i = 0; i < probe_->steps().size(); ++i) {
      const StepProbe::Step& step = probe_->steps()[i];
      points_.push_back({.prefill = step.prefill,
                         .full_layers = setups_[next_].full_layers,
                         .rows = step.rows,
                         .context = step.context + (step.prefill ? (step.rows - 1) / 2.0 : 0),
                         .ms = probe_->ms()[i]});
    }
    GiveBack(lab);
    return ++next_ < setups_.size();
  }
  void GiveBack(Lab& lab) override {
    if (probe_ != nullptr) probe_->GiveBack(lab);
    probe_.reset();
  }

  // What was measured; numbers of rows for which something did not fit are left out whole.
  std::vector<CostPoint> Points() const {
    std::vector<CostPoint> out;
    for (const CostPoint& point : points_) {
      if (!short_of_.contains({point.prefill, point.rows})) out.push_back(point);
    }
    return out;
  }

 private:
  using Rows = std::pair<bool, int32_t>;
  static Rows RowsOf(const CostSetup& setup) {
    return {setup.steps.front().prefill, setup.steps.front().rows};
  }

  const std::vector<CostSetup> setups_;
  const std::vector<std::shared_ptr<const LayerPlan>> plans_;
  const UnitBytes bytes_;
  size_t next_ = 0;
  std::unique_ptr<StepProbe> probe_;
  std::vector<CostPoint> points_;
  std::set<Rows> short_of_;
};

struct Contexts {
  int32_t low = 0;
  int32_t middle = 0;
  int32_t high = 0;
};

// The longest that fits, a short one, and the geometric mean.
Contexts ContextsFor(const CostLimits& limits, int32_t sequences, int32_t rows) {
  const int64_t fit =
      limits.bytes_max / std::max<int64_t>(limits.bytes_per_token, 1) / sequences - kPageTokens;
  const int64_t high = std::min<int64_t>({kContextMax, int64_t{limits.context} - rows, fit});
  Contexts out;
  out.high = static_cast<int32_t>(std::max<int64_t>(high, 0));
  out.low = std::min(kContextMin, out.high / 4);
  out.middle = static_cast<int32_t>(std::sqrt(double{1} * out.low * out.high));
  return out;
}

}  // namespace

std::vector<CostSetup> MakeCostSetups(const CostLimits& limits) {
  std::vector<CostSetup> setups;
  const int32_t all = limits.layers;
  const auto add = [&](int32_t k, StepProbe::Step step, std::vector<int32_t> contexts) {
    if (k < all && !limits.linear) return;
    CostSetup setup{.full_layers = k, .steps = {}};
    for (const int32_t context : contexts) {
      step.context = context;
      setup.steps.push_back(step);
    }
    setups.push_back(std::move(setup));
  };
  for (int32_t rows = 1; rows <= limits.sequences_max; rows = rows == 1 ? 4 : rows * 2) {
    const Contexts c = ContextsFor(limits, rows, 1);
    if (c.low < 1 || c.high <= c.low) break;
    const StepProbe::Step step{.rows = rows, .repeats = rows < 16 ? 5 : 3};
    add(all, step, {c.low, c.middle, c.high});
    add(all / 2, step, {c.low, c.high});
    add(all / 4, step, {c.middle});
    add(0, step, {c.middle});
  }
  for (const int32_t rows : {64, limits.rows_max}) {
    if (rows > limits.rows_max || rows >= limits.context) continue;
    if (rows == limits.rows_max && rows == 64 && !setups.empty() &&
        setups.back().steps.back().prefill) {
      continue;
    }
    const Contexts c = ContextsFor(limits, 1, rows);
    if (c.high < 1) continue;
    const StepProbe::Step step{.prefill = true,
                               .rows = rows,
                               .repeats = limits.prefill_warm ? 3 : 1,
                               .warm = limits.prefill_warm};
    const int32_t far = std::max(1, std::min(c.high, 2048) / 64 * 64);
    add(all, step, {0, far});
    add(all / 2, step, {far});
    add(0, step, {0});
  }
  return setups;
}

absl::StatusOr<CostModel> MeasureCosts(Engine* engine, const std::atomic<bool>* cancel) {
  const EngineInfo& info = engine->info();
  if (engine->branches() == nullptr) {
    return WithReason(
        absl::FailedPreconditionError("the model has no linear branches; every layer is full"),
        reason::kNotMorphable);
  }
  CostLimits limits{.layers = info.layers,
                    .context = info.context_tokens,
                    .bytes_per_token = info.kv_bytes_per_token,
                    .bytes_max = info.memory.arena_bytes / 2};
  // The limits of a step are the engine thread's to tell.
  const bool told = engine->RunInLab([&](Lab& lab, absl::Duration) {
    const bool device = lab.stream.cuda_stream != nullptr;
    const int32_t sequences = lab.model->limits().sequences;
    limits.sequences_max = device ? sequences : std::min(sequences, kCpuSequencesMax);
    limits.prefill_warm = device;
    limits.bytes_max = std::min(device ? kDeviceProbeBytesMax : kBytesMax, limits.bytes_max);
    limits.rows_max = lab.rows_max;
    return false;
  });
  if (!told) return WithReason(absl::UnavailableError("the server stops"), reason::kDraining);
  std::vector<CostSetup> setups = MakeCostSetups(limits);
  std::vector<std::shared_ptr<const LayerPlan>> plans;
  for (const CostSetup& setup : setups) {
    MS_ASSIGN_OR_RETURN(std::shared_ptr<const LayerPlan> plan,
                        engine->RankedPlan(setup.full_layers));
    plans.push_back(std::move(plan));
  }
  MeasureTask task(std::move(setups), std::move(plans),
                   {.page = info.memory.page_bytes, .slot = info.memory.slot_bytes});
  MS_RETURN_IF_ERROR(RunLabTask(engine, &task, cancel, absl::InfiniteFuture()));
  return CostModel::Fit(info.layers, task.Points());
}

}  // namespace morphserve
