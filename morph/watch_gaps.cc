#include "morph/watch_gaps.h"

#include <algorithm>
#include <utility>

namespace morphserve {
namespace {

constexpr double kComparable = 2;  // Times, or a part, of the step at the target's load.

}  // namespace

void WatchGaps::Begin(Options options) {
  MutexLock lock(&mutex_);
  options_ = std::move(options);
  pending_ms_.clear();
  reading_ = Reading();
  watching_ = true;
}

void WatchGaps::End() {
  MutexLock lock(&mutex_);
  watching_ = false;
}

WatchGaps::Reading WatchGaps::Read() const {
  MutexLock lock(&mutex_);
  return reading_;
}

void WatchGaps::OnTokenGap(std::string_view plan_id, double gap_s) {
  MutexLock lock(&mutex_);
  if (watching_ && plan_id == options_.plan_id) pending_ms_.push_back(gap_s * 1000);
}

void WatchGaps::OnStep(const StepReport& report) {
  MutexLock lock(&mutex_);
  if (watching_ && !pending_ms_.empty() && report.decode_rows > 0) Take(report);
  pending_ms_.clear();
}

void WatchGaps::Take(const StepReport& report) {
  const double running = report.decode_rows;
  const double context = static_cast<double>(report.decode_context) / running;
  const auto gaps = static_cast<int64_t>(pending_ms_.size());
  double here = 1, there = 1;
  if (options_.costs != nullptr) {
    here = options_.costs->DecodeMs(options_.full_layers, running, context);
    there = options_.costs->DecodeMs(options_.full_layers, options_.load.running,
                                     options_.load.context);
  }
  if (std::max(here, there) > kComparable * std::min(here, there)) {
    reading_.others += gaps;
    return;
  }
  for (const double ms : pending_ms_) {
    reading_.measured.Add(ms);
    // Of a step that also did other work only the decode part goes with the load.
    const bool scales = report.kind == StepKind::kDecode || ms < here;
    reading_.carried.Add(scales ? ms * there / here : ms + there - here);
  }
  const double weight = static_cast<double>(gaps) / static_cast<double>(reading_.measured.count());
  reading_.running += weight * (running - reading_.running);
  reading_.context += weight * (context - reading_.context);
}

}  // namespace morphserve
