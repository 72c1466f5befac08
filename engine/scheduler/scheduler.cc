#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "kernels/common/types.h"

namespace morphserve {
namespace {

int32_t PagesOfLength(int32_t length) { return (length + kPageTokens - 1) / kPageTokens; }

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, CacheManager* caches, const StepCost* cost)
    : options_(options), caches_(caches), cost_(cost) {}

int64_t Scheduler::PagesFor(const LayerPlan& plan, int32_t length) {
  return int64_t{plan.full_layers()} * PagesOfLength(length);
}

void Scheduler::Enqueue(Sequence* sequence, absl::Time now) {
  sequence->state = Sequence::State::kWaiting;
  sequence->waiting_since = now;
  waiting_.push_back(sequence);
}

void Scheduler::Remove(Sequence* sequence, bool keep) {
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
  if (keep && sequence->computed > 0 && sequence->request->writes_cache() &&
      !sequence->caches.empty()) {
    caches_->Finish(sequence->cache_key(), sequence->tokens, sequence->computed, &sequence->caches);
  } else {
    caches_->Release(&sequence->caches);
  }
  sequence->spilled.reset();
  sequence->computed = 0;
  sequence->state = Sequence::State::kFinished;
}

// Spilling moves every byte twice; recomputing runs the model over every position. Both are priced
// from what this machine has been seen to do.
bool Scheduler::WorthSpilling(const Sequence& victim) const {
  const double spill_ms = cost_->CopyMs(2 * caches_->SpillBytes(victim.caches));
  return spill_ms < cost_->PrefillMs(victim.computed);
}

void Scheduler::Preempt(Sequence* victim, absl::Time now, Changes* changes) {
  std::erase(running_, victim);
  if (WorthSpilling(*victim)) victim->spilled = caches_->Spill(&victim->caches);
  const bool spilled = victim->spilled != nullptr;
  if (!spilled) {
    // The index keeps what it can until somebody needs the room: resuming may find it there.
    if (victim->computed > 0 && victim->request->writes_cache()) {
      caches_->Finish(victim->cache_key(), victim->tokens, victim->computed, &victim->caches);
    } else {
      caches_->Release(&victim->caches);
    }
    victim->computed = 0;
  }
  victim->snapshot_marks.clear();
  ++victim->preemptions;
  Enqueue(victim, now);
  changes->preempted.push_back(
      {.sequence = victim, .resource = PreemptedBy::kPage, .spilled = spilled});
}

// Lowest priority first; among equals the youngest, which has the least to lose. Sequences
// preempted too often already are spared while there is anyone else.
Sequence* Scheduler::Victim() const {
  const auto rank = [this](const Sequence* s) {
    const bool spared = s->preemptions >= options_.preemptions_max;
    // A plan without full layers holds no page that another could use.
    const bool useful = s->plan->full_layers() > 0;
    return std::tuple(useful, !spared, -s->request->request.priority, s->arrival, s->index);
  };
  Sequence* victim = nullptr;
  for (Sequence* candidate : running_) {
    if (victim == nullptr || rank(candidate) > rank(victim)) victim = candidate;
  }
  MS_CHECK(victim != nullptr);
  return victim;
}

void Scheduler::GrowDecodes(absl::Time now, Changes* changes) {
  // Older and more important first: they are never the victim of a younger one.
  std::vector<Sequence*> order = running_;
  std::stable_sort(order.begin(), order.end(), [](const Sequence* a, const Sequence* b) {
    return std::tuple(-a->request->request.priority, a->arrival) <
           std::tuple(-b->request->request.priority, b->arrival);
  });
  for (Sequence* sequence : order) {
    while (sequence->state == Sequence::State::kRunning &&
           !caches_->Reserve(*sequence->plan, sequence->length(), &sequence->caches)) {
      Preempt(Victim(), now, changes);
    }
  }
}

// Sequences that run, and parked choices that will run when their leader's prompt is done.
int32_t Scheduler::SequencesTaken() const {
  int32_t taken = 0;
  for (const Sequence* sequence : running_) {
    ++taken;
    if (sequence->index != 0) continue;
    for (const auto& sibling : sequence->request->sequences) {
      if (sibling->state == Sequence::State::kParked) ++taken;
    }
  }
  return taken;
}

bool Scheduler::FitsNow(const Sequence& candidate) const {
  int32_t wanted = 1;
  if (candidate.index == 0) {
    for (const auto& sibling : candidate.request->sequences) {
      if (sibling->state == Sequence::State::kParked) ++wanted;
    }
  }
  if (SequencesTaken() + wanted > options_.sequences_max) return false;
  const LiveRequest& live = *candidate.request;
  const int32_t shared =
      candidate.spilled == nullptr && live.reads_cache()
          ? caches_->Peek(candidate.cache_key(), candidate.tokens, candidate.length() - 1).tokens
          : 0;
  // Whole pages of a hit are shared, and no longer there for eviction: they count neither way.
  const int64_t own = PagesFor(*candidate.plan, candidate.length()) -
                      int64_t{candidate.plan->full_layers()} * (shared / kPageTokens);
  int64_t growth = 0;
  for (const Sequence* sequence : running_) {
    const int32_t length =
        std::min(sequence->length() + options_.growth_tokens, sequence->request->length_max());
    growth += PagesFor(*sequence->plan, length) - PagesFor(*sequence->plan, sequence->length());
  }
  return caches_->CouldTake(own + growth, SlotsFor(*candidate.plan));
}

bool Scheduler::TakeCaches(Sequence* candidate, Changes::Admitted* admitted) {
  LiveRequest& live = *candidate->request;
  const LayerPlan& plan = *candidate->plan;
  if (candidate->spilled != nullptr) {
    // Room for the next rows is taken with what comes back: all or nothing.
    if (!caches_->Restore(plan, candidate->length(), candidate->spilled.get(),
                          &candidate->caches)) {
      return false;
    }
    candidate->spilled.reset();
    return true;
  }
  if (live.reads_cache()) {
    admitted->looked_up = true;
    admitted->hit = caches_->Attach(candidate->cache_key(), candidate->tokens,
                                    candidate->length() - 1, &candidate->caches);
  }
  if (!caches_->Reserve(plan, candidate->length(), &candidate->caches)) {
    caches_->Release(&candidate->caches);
    return false;
  }
  candidate->computed = admitted->hit.tokens;
  candidate->cached = admitted->hit.tokens;
  candidate->checked = admitted->hit.tokens;
  if (live.writes_cache()) {
    candidate->snapshot_marks = MakeSnapshotMarks(live.request, admitted->hit);
  }
  return true;
}

void Scheduler::Admit(absl::Time now, Changes* changes) {
  if (waiting_.empty()) return;
  const auto starved = [&](const Sequence* s) {
    return now - s->request->request.received > options_.starvation;
  };
  // Starved first; then priority; then preempted before new; then the earlier deadline; then
  // arrival.
  std::stable_sort(waiting_.begin(), waiting_.end(), [&](const Sequence* a, const Sequence* b) {
    const auto key = [&](const Sequence* s) {
      const bool starving = starved(s);
      return std::tuple(!starving, starving ? 0 : -s->request->request.priority,
                        s->preemptions == 0, s->request->request.deadline, s->arrival, s->index);
    };
    return key(a) < key(b);
  });
  for (size_t i = 0; i < waiting_.size();) {
    Sequence* candidate = waiting_[i];
    Changes::Admitted admitted{.sequence = candidate};
    if (!FitsNow(*candidate) || !TakeCaches(candidate, &admitted)) {
      // Smaller ones may pass it, but not once it starves.
      if (starved(candidate)) break;
      ++i;
      continue;
    }
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    candidate->state = Sequence::State::kRunning;
    running_.push_back(candidate);
    changes->admitted.push_back(admitted);
  }
}

// Chunks end on the absolute grid or at the end of the known tokens. On this backend a row has the
// same bits in a chunk as alone, so the generated tokens of a preempted sequence follow its prompt
// as rows like any others.
int32_t Scheduler::ChunkEnd(const Sequence& sequence, int32_t budget) const {
  const int32_t end = sequence.length();
  if (end - sequence.computed <= budget) return end;
  const int32_t on_grid = (sequence.computed + budget) / kPageTokens * kPageTokens;
  return std::max(on_grid, sequence.computed);
}

std::vector<ScheduledRows> Scheduler::Schedule(absl::Time now, Changes* changes) {
  GrowDecodes(now, changes);
  Admit(now, changes);
  std::vector<ScheduledRows> rows;
  int32_t used = 0;
  for (Sequence* sequence : running_) {
    if (!sequence->decoding()) continue;
    rows.push_back({.sequence = sequence, .rows = 1});
    ++used;
  }
  const int32_t wanted = cost_->PrefillRowsWithin(used, options_.step_ms_target);
  // Less than one stretch of the grid could make no progress at all.
  const int32_t least = std::max(options_.chunk_tokens_min, kPageTokens);
  int32_t budget = std::clamp(wanted, least, std::max(options_.step_tokens_max - used, least));
  for (Sequence* sequence : running_) {
    if (sequence->decoding() || budget <= 0) continue;
    const int32_t count = ChunkEnd(*sequence, budget) - sequence->computed;
    if (count <= 0) continue;
    rows.push_back({.sequence = sequence, .rows = count});
    budget -= count;
  }
  return rows;
}

bool Scheduler::ReserveAhead(Sequence* sequence) {
  return caches_->Reserve(*sequence->plan, sequence->length() + 1, &sequence->caches);
}

bool Scheduler::Fork(const Sequence& leader, Sequence* fork) {
  if (!caches_->Fork(*leader.plan, leader.caches, leader.computed, &fork->caches)) return false;
  fork->computed = leader.computed;
  fork->cached = leader.cached;
  fork->checked = leader.checked;
  fork->state = Sequence::State::kRunning;
  running_.push_back(fork);
  return true;
}

absl::Status Scheduler::CheckTables(const Sequence& sequence) const {
  for (int32_t l = 0; l < options_.layers; ++l) {
    const auto layer = static_cast<size_t>(l);
    if (sequence.plan->kind(l) == LayerKind::kLinear) {
      if (sequence.caches.slots[layer] >= 0) continue;
      return absl::InternalError(absl::StrFormat("layer %d of a running sequence has no slot", l));
    }
    const size_t have = sequence.caches.pages[layer].size();
    if (have < static_cast<size_t>(PagesOfLength(sequence.computed))) {
      return absl::InternalError(absl::StrFormat("layer %d holds %d pages for %d computed tokens",
                                                 l, have, sequence.computed));
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckIntegrity() const {
  for (const Sequence* sequence : running_) {
    if (sequence->state != Sequence::State::kRunning) {
      return absl::InternalError("a sequence on the running list is not running");
    }
    MS_RETURN_IF_ERROR(CheckTables(*sequence));
  }
  for (const Sequence* sequence : waiting_) {
    if (sequence->state != Sequence::State::kWaiting) {
      return absl::InternalError("a sequence on the waiting list is not waiting");
    }
    if (!sequence->caches.empty()) {
      return absl::InternalError("a waiting sequence holds pages or slots");
    }
  }
  return caches_->CheckIntegrity();
}

}  // namespace morphserve
