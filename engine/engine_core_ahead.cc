// The step that begins before the one before it has been read. It holds the sequences of that step
// that go on whatever is sampled: everything but their newest token is known, and that is on the
// device. Where anything else would depend on the token, or on what the scheduler may do, no step
// begins ahead: new requests, prompts under way, penalties, snapshots, a state to be checked, pages
// that run out. The same idea: SGLang's overlap scheduler, vLLM's asynchronous scheduling.
#include <algorithm>

#include "engine/base/check.h"
#include "engine/engine_core.h"

namespace morphserve {

bool EngineCore::MayRunAhead() const {
  if (!settings_.run_ahead || !work_.status.ok() || !runner_->RunsAheadOf(work_.batch)) {
    return false;
  }
  // Whoever waits is to be admitted next, unless nobody can be.
  if (!scheduler_.waiting().empty() && !scheduler_.full()) return false;
  size_t going_on = 0;
  for (const Scheduled& scheduled : work_.scheduled) {
    if (scheduled.sequence == nullptr) continue;  // Has left while its step was under way.
    ++going_on;
    const Sequence& sequence = *scheduled.sequence;
    if (!sequence.decoding() || scheduled.scored > 0 || scheduled.sampled != 1 ||
        !scheduled.snapshots.empty() || !sequence.output->knows_ahead()) {
      return false;
    }
    const int32_t end = sequence.computed + 1;
    if (!sequence.snapshot_marks.empty() && sequence.snapshot_marks.front().position <= end + 1) {
      return false;
    }
    const int32_t every = settings_.guard_state_every_tokens;
    if (every > 0 && end / every != sequence.checked / every) return false;
  }
  // Others are in their prompts.
  return going_on == scheduler_.running().size();
}

bool EngineCore::BeginAhead() {
  if (!MayRunAhead()) return false;
  Work& next = ahead_;
  next.Clear();
  for (const Scheduled& before : work_.scheduled) {
    Sequence* const sequence = before.sequence;
    if (sequence == nullptr || sequence->output->next_is_last()) continue;
    if (!scheduler_.ReserveAhead(sequence)) return false;
    const int32_t row = next.batch.rows();
    next.batch.tokens.push_back(-1);
    next.batch.follows.push_back(static_cast<int32_t>(before.first_logit));
    next.batch.segments.push_back({.row_begin = row,
                                   .row_count = 1,
                                   .position = sequence->length(),
                                   .caches = &sequence->caches,
                                   .plan = sequence->plan.get()});
    next.batch.logit_rows.push_back(
        {.row = row, .sample = sequence->output->NextSample(sequence->length() + 1, /*ahead=*/1)});
    next.scheduled.push_back(
        {.sequence = sequence, .rows = 1, .first_logit = static_cast<size_t>(row), .sampled = 1});
    next.AddPlan(sequence->plan);
    next.report.decode_context += sequence->length() + 1;
  }
  if (next.scheduled.empty()) return false;
  next.report.rows = next.report.decode_rows = next.batch.rows();
  next.report.plans = static_cast<int32_t>(next.plans.size());
  Begin(&next, clock_->Now());
  return true;
}

bool EngineCore::IsUnderWay(const Sequence& sequence) const {
  return has_ahead_ && std::any_of(ahead_.scheduled.begin(), ahead_.scheduled.end(),
                                   [&](const Scheduled& s) { return s.sequence == &sequence; });
}

bool EngineCore::TakeOut(Sequence* sequence) {
  bool sound = true;
  const auto take_out = [&](Work* work, bool is_under_way) {
    for (size_t i = 0; i < work->scheduled.size(); ++i) {
      Scheduled& scheduled = work->scheduled[i];
      if (scheduled.sequence != sequence) continue;
      scheduled.sequence = nullptr;
      if (!is_under_way) return;
      Settle(work);
      const std::vector<uint8_t>& nonfinite = work->result.nonfinite;
      if (!work->status.ok() || (i < nonfinite.size() && nonfinite[i] != 0)) sound = false;
      if (sequence->computed > 0) sequence->computed += scheduled.rows;
    }
  };
  take_out(&work_, under_way_);
  if (has_ahead_) take_out(&ahead_, true);
  return sound;
}

}  // namespace morphserve
