// Scheduler decides, step by step, which sequences compute how many rows: every decoding sequence
// gets its row first, what is left of the step goes to prefill chunks, and waiting sequences are
// admitted when all their pages fit. When a running sequence cannot get a page, another is
// preempted: its pages go back and it waits to be recomputed. It owns the queues and all page
// tables; it knows nothing of tokens' values, text or sinks. Thread rule: engine thread only.
// Ownership: sequences belong to the caller and are taken out with Remove before they die; their
// pages are given back there.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/cache/unit_pool.h"
#include "engine/scheduler/step_cost.h"
#include "engine/sequence.h"

namespace morphserve {

struct SchedulerOptions {
  int32_t layers = 0;
  int32_t sequences_max = 32;
  int32_t step_tokens_max = 256;
  double step_ms_target = 150;
  int32_t chunk_tokens_min = 64;
  int32_t growth_tokens = 128;
  absl::Duration starvation = absl::Seconds(30);
  int32_t preemptions_max = 8;
};

struct ScheduledRows {
  Sequence* sequence = nullptr;
  int32_t rows = 0;
};

class Scheduler {
 public:
  // `pages` and `cost` outlive this.
  Scheduler(const SchedulerOptions& options, UnitPool* pages, const StepCost* cost);

  // Pages a sequence of `length` tokens needs under `plan`.
  static int64_t PagesFor(const LayerPlan& plan, int32_t length);

  // Queues a new or preempted sequence.
  void Enqueue(Sequence* sequence, absl::Time now);
  // Takes a sequence out, wherever it is, and gives its pages back.
  void Remove(Sequence* sequence);

  // The rows of the next step: decodes in order of admission, then prefill chunks. Every page they
  // write is allocated. Sequences preempted on the way are appended to `preempted`.
  std::vector<ScheduledRows> Schedule(absl::Time now, std::vector<Sequence*>* preempted);

  // Makes `fork`, which has the same prompt as the running `leader`, run from the leader's caches:
  // full pages are shared, a partly filled last page is copied (appended to `copies`, for the
  // caller to do at once). False, with nothing taken, when pages are short.
  bool Fork(const Sequence& leader, Sequence* fork, std::vector<PageCopy>* copies);

  const std::vector<Sequence*>& running() const { return running_; }
  const std::vector<Sequence*>& waiting() const { return waiting_; }

  // INTERNAL names the first broken invariant.
  absl::Status CheckIntegrity() const;

 private:
  bool EnsurePages(Sequence* sequence, int32_t length);
  void ReleasePages(Sequence* sequence);
  void Preempt(Sequence* victim, absl::Time now, std::vector<Sequence*>* preempted);
  Sequence* Victim(const Sequence* asking) const;
  void GrowDecodes(absl::Time now, std::vector<Sequence*>* preempted);
  void Admit(absl::Time now);
  bool FitsNow(const Sequence& candidate) const;
  int32_t SequencesTaken() const;
  int32_t ChunkEnd(const Sequence& sequence, int32_t budget) const;

  const SchedulerOptions options_;
  UnitPool* const pages_;
  const StepCost* const cost_;
  std::vector<Sequence*> running_;  // In order of admission.
  std::vector<Sequence*> waiting_;
};

}  // namespace morphserve
