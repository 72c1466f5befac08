#include "morph/latency_window.h"

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace morphserve {
namespace {

constexpr int kSlices = 12;
constexpr size_t kPlansMax = 16;  // Of a slice; more plans at a time are not told apart.

// Loads within a sixth of each other share a cell.
int32_t Octaves(double value) {
  constexpr double kPerOctave = 4;
  return static_cast<int32_t>(std::lround(kPerOctave * std::log2(std::max(value, 1.0))));
}

// Adds `tokens` of a mean of `value` to a mean by token.
void AddTo(double* mean, int64_t before, double value, int64_t tokens) {
  const auto weight = static_cast<double>(tokens) / static_cast<double>(before + tokens);
  *mean += weight * (value - *mean);
}

void Merge(const LoadCell& from, LoadCell* to) {
  if (from.tokens > 0) {
    AddTo(&to->running, to->tokens, from.running, from.tokens);
    AddTo(&to->context, to->tokens, from.context, from.tokens);
  }
  if (from.pure_tokens > 0) {
    AddTo(&to->pure_ms, to->pure_tokens, from.pure_ms, from.pure_tokens);
  }
  to->tokens += from.tokens;
  to->pure_tokens += from.pure_tokens;
}

}  // namespace

int64_t LatencyReading::pure_tokens() const {
  int64_t sum = 0;
  for (const LoadCell& cell : cells) sum += cell.pure_tokens;
  return sum;
}

LoadCell LatencyReading::Mean() const {
  LoadCell mean;
  for (const LoadCell& cell : cells) Merge(cell, &mean);
  return mean;
}

LatencyWindow::LatencyWindow(const Clock* clock, absl::Duration length)
    : clock_(clock), length_(length) {
  MS_CHECK(length > absl::ZeroDuration());
}

void LatencyWindow::SetLength(absl::Duration length) {
  MS_CHECK(length > absl::ZeroDuration());
  MutexLock lock(&mutex_);
  length_ = length;
}

LatencyWindow::Slice& LatencyWindow::SliceOf(absl::Time now) {
  while (!slices_.empty() && slices_.front().begin < now - length_) slices_.pop_front();
  if (slices_.empty() || now - slices_.back().begin >= length_ / kSlices) {
    slices_.push_back({.begin = now, .plans = {}});
  }
  return slices_.back();
}

void LatencyWindow::OnTokenGap(std::string_view plan_id, double gap_s) {
  for (Pending& pending : pending_) {
    if (pending.plan_id == plan_id) return pending.gaps_ms.push_back(gap_s * 1000);
  }
  if (pending_.size() >= kPlansMax) pending_.clear();
  pending_.push_back({std::string(plan_id), {gap_s * 1000}});
}

void LatencyWindow::Take(const StepReport& report, const Pending& pending, Plan* plan) {
  const auto tokens = static_cast<int64_t>(pending.gaps_ms.size());
  for (const double ms : pending.gaps_ms) plan->gaps.Add(ms);
  const double context = static_cast<double>(report.decode_context) / report.decode_rows;
  const bool pure = report.kind == StepKind::kDecode && report.plans == 1;
  Merge({.tokens = tokens,
         .running = static_cast<double>(report.decode_rows),
         .context = context,
         .pure_tokens = pure ? tokens : 0,
         .pure_ms = report.seconds * 1000},
        &plan->cells[{Octaves(report.decode_rows), Octaves(context)}]);
}

void LatencyWindow::OnStep(const StepReport& report) {
  MutexLock lock(&mutex_);
  for (Pending& pending : pending_) {
    if (!pending.gaps_ms.empty() && report.decode_rows > 0) {
      auto& plans = SliceOf(clock_->Now()).plans;
      if (plans.size() < kPlansMax || plans.contains(pending.plan_id)) {
        Take(report, pending, &plans[pending.plan_id]);
      }
    }
    pending.gaps_ms.clear();
  }
}

LatencyReading LatencyWindow::Read(std::string_view plan_id, double percentile,
                                   absl::Time since) const {
  GapHistogram gaps;
  std::map<std::pair<int32_t, int32_t>, LoadCell> cells;
  LatencyReading out;
  MutexLock lock(&mutex_);
  const absl::Time from = std::max(since, clock_->Now() - length_);
  for (const Slice& slice : slices_) {
    const auto it = slice.plans.find(plan_id);
    if (slice.begin < from || it == slice.plans.end()) continue;
    gaps.Merge(it->second.gaps);
    for (const auto& [key, cell] : it->second.cells) Merge(cell, &cells[key]);
  }
  for (const auto& [key, cell] : cells) out.cells.push_back(cell);
  out.gaps = gaps.count();
  out.gap_ms = gaps.At(percentile);
  return out;
}

}  // namespace morphserve
