#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "kernels/common/types.h"

namespace morphserve {
namespace {

int32_t PagesOfLength(int32_t length) { return (length + kPageTokens - 1) / kPageTokens; }

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, UnitPool* pages, const StepCost* cost)
    : options_(options), pages_(pages), cost_(cost) {}

int64_t Scheduler::PagesFor(const LayerPlan& plan, int32_t length) {
  return int64_t{plan.full_layers()} * PagesOfLength(length);
}

void Scheduler::Enqueue(Sequence* sequence, absl::Time now) {
  sequence->state = Sequence::State::kWaiting;
  sequence->waiting_since = now;
  waiting_.push_back(sequence);
}

void Scheduler::Remove(Sequence* sequence) {
  std::erase(running_, sequence);
  std::erase(waiting_, sequence);
  ReleasePages(sequence);
  sequence->state = Sequence::State::kFinished;
}

void Scheduler::ReleasePages(Sequence* sequence) {
  for (std::vector<UnitAddress>& table : sequence->caches.pages) {
    for (const UnitAddress page : table) pages_->Release(page);
    table.clear();
  }
  sequence->computed = 0;
}

bool Scheduler::EnsurePages(Sequence* sequence, int32_t length) {
  SequenceCaches& caches = sequence->caches;
  if (caches.pages.empty()) {
    caches.pages.resize(static_cast<size_t>(options_.layers));
    caches.slots.assign(static_cast<size_t>(options_.layers), -1);
  }
  const auto wanted = static_cast<size_t>(PagesOfLength(length));
  size_t missing = 0;
  for (int32_t l = 0; l < options_.layers; ++l) {
    if (sequence->plan->kind(l) != LayerKind::kFull) continue;
    const size_t have = caches.pages[static_cast<size_t>(l)].size();
    missing += wanted > have ? wanted - have : 0;
  }
  if (missing == 0) return true;
  std::vector<UnitAddress> fresh(missing);
  if (!pages_->Allocate(fresh)) return false;
  size_t next = 0;
  for (int32_t l = 0; l < options_.layers; ++l) {
    if (sequence->plan->kind(l) != LayerKind::kFull) continue;
    std::vector<UnitAddress>& table = caches.pages[static_cast<size_t>(l)];
    while (table.size() < wanted) table.push_back(fresh[next++]);
  }
  MS_CHECK(next == missing);
  return true;
}

void Scheduler::Preempt(Sequence* victim, absl::Time now, std::vector<Sequence*>* preempted) {
  std::erase(running_, victim);
  ReleasePages(victim);
  ++victim->preemptions;
  Enqueue(victim, now);
  preempted->push_back(victim);
}

// Lowest priority first; among equals the one that is cheapest to restore for what it frees: with
// recompute that is the youngest. Sequences preempted too often already are spared while there is
// anyone else.
Sequence* Scheduler::Victim(const Sequence* asking) const {
  const auto rank = [this](const Sequence* s) {
    const bool spared = s->preemptions >= options_.preemptions_max;
    return std::tuple(!spared, -s->request->request.priority, s->arrival, s->index);
  };
  Sequence* victim = nullptr;
  for (Sequence* candidate : running_) {
    if (victim == nullptr || rank(candidate) > rank(victim)) victim = candidate;
  }
  MS_CHECK(victim != nullptr && asking != nullptr);
  return victim;
}

void Scheduler::GrowDecodes(absl::Time now, std::vector<Sequence*>* preempted) {
  // Older and more important first: they are never the victim of a younger one.
  std::vector<Sequence*> order = running_;
  std::stable_sort(order.begin(), order.end(), [](const Sequence* a, const Sequence* b) {
    return std::tuple(-a->request->request.priority, a->arrival) <
           std::tuple(-b->request->request.priority, b->arrival);
  });
  for (Sequence* sequence : order) {
    while (sequence->state == Sequence::State::kRunning &&
           !EnsurePages(sequence, sequence->length())) {
      Preempt(Victim(sequence), now, preempted);
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
  const int64_t own = PagesFor(*candidate.plan, candidate.length());
  int64_t growth = 0;
  for (const Sequence* sequence : running_) {
    const int32_t length =
        std::min(sequence->length() + options_.growth_tokens, sequence->request->length_max());
    growth += PagesFor(*sequence->plan, length) - PagesFor(*sequence->plan, sequence->length());
  }
  return own + growth <= pages_->available();
}

void Scheduler::Admit(absl::Time now) {
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
    if (!FitsNow(*candidate) || !EnsurePages(candidate, candidate->length())) {
      // Smaller ones may pass it, but not once it starves.
      if (starved(candidate)) break;
      ++i;
      continue;
    }
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    candidate->state = Sequence::State::kRunning;
    running_.push_back(candidate);
  }
}

// Chunks end on the absolute grid or at the end of the known tokens. The generated tokens of a
// preempted sequence follow its prompt as rows like any others: full layers give a row the same
// bits in a chunk as alone. Linear layers do not, so there the replay goes one token a step.
int32_t Scheduler::ChunkEnd(const Sequence& sequence, int32_t budget) const {
  int32_t end = sequence.length();
  if (sequence.plan->full_layers() < sequence.plan->layers()) {
    const int32_t prompt = sequence.request->prompt_len();
    end = sequence.computed < prompt ? prompt : sequence.computed + 1;
  }
  if (end - sequence.computed <= budget) return end;
  const int32_t on_grid = (sequence.computed + budget) / kPageTokens * kPageTokens;
  return std::max(on_grid, sequence.computed);
}

std::vector<ScheduledRows> Scheduler::Schedule(absl::Time now, std::vector<Sequence*>* preempted) {
  GrowDecodes(now, preempted);
  Admit(now);
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

bool Scheduler::Fork(const Sequence& leader, Sequence* fork, std::vector<PageCopy>* copies) {
  const int32_t length = leader.computed;
  const bool partial = length % kPageTokens != 0;
  std::vector<UnitAddress> fresh(partial ? static_cast<size_t>(leader.plan->full_layers())
                                         : size_t{0});
  if (!pages_->Allocate(fresh)) return false;
  fork->caches.pages.resize(static_cast<size_t>(options_.layers));
  fork->caches.slots.assign(static_cast<size_t>(options_.layers), -1);
  const auto whole = static_cast<size_t>(length / kPageTokens);
  size_t next = 0;
  for (int32_t l = 0; l < options_.layers; ++l) {
    if (leader.plan->kind(l) != LayerKind::kFull) continue;
    const std::vector<UnitAddress>& from = leader.caches.pages[static_cast<size_t>(l)];
    std::vector<UnitAddress>& to = fork->caches.pages[static_cast<size_t>(l)];
    for (size_t p = 0; p < whole; ++p) {
      pages_->Share(from[p]);
      to.push_back(from[p]);
    }
    if (partial) {
      copies->push_back({.from = from[whole], .to = fresh[next]});
      to.push_back(fresh[next++]);
    }
  }
  fork->computed = length;
  fork->state = Sequence::State::kRunning;
  running_.push_back(fork);
  return true;
}

absl::Status Scheduler::CheckIntegrity() const {
  for (const Sequence* sequence : running_) {
    if (sequence->state != Sequence::State::kRunning) {
      return absl::InternalError("a sequence on the running list is not running");
    }
    for (int32_t l = 0; l < options_.layers; ++l) {
      if (sequence->plan->kind(l) != LayerKind::kFull) continue;
      const size_t have = sequence->caches.pages[static_cast<size_t>(l)].size();
      if (have < static_cast<size_t>(PagesOfLength(sequence->computed))) {
        return absl::InternalError(absl::StrFormat("layer %d holds %d pages for %d computed tokens",
                                                   l, have, sequence->computed));
      }
    }
  }
  for (const Sequence* sequence : waiting_) {
    if (sequence->state != Sequence::State::kWaiting) {
      return absl::InternalError("a sequence on the waiting list is not waiting");
    }
    for (const auto& table : sequence->caches.pages) {
      if (!table.empty()) return absl::InternalError("a waiting sequence holds pages");
    }
  }
  if (running_.empty() && pages_->in_use() != 0) {
    return absl::InternalError(
        absl::StrFormat("%d pages are in use and nothing runs", pages_->in_use()));
  }
  return pages_->CheckIntegrity();
}

}  // namespace morphserve
