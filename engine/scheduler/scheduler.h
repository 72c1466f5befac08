// Scheduler decides, step by step, which sequences compute how many rows: every decoding sequence
// gets its row first, what is left of the step goes to prefill chunks, and waiting sequences are
// admitted when all their pages and slots fit, starting from whatever prefix the cache holds. When
// a running sequence cannot get a page, another is preempted: what it has computed is spilled to
// host memory or left to the prefix index, and it waits to go on. It owns the queues; it knows
// nothing of tokens' values, text or sinks. Thread rule: engine thread only. Ownership: sequences
// belong to the caller and are taken out with Remove before they die; their units are given back
// there.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/cache/cache_manager.h"
#include "engine/engine_observer.h"
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
  // What Schedule did besides choosing rows.
  struct Changes {
    struct Preempted {
      Sequence* sequence = nullptr;
      PreemptedBy resource = PreemptedBy::kPage;
      bool spilled = false;
    };
    std::vector<Preempted> preempted;
    struct Admitted {
      Sequence* sequence = nullptr;
      bool looked_up = false;  // In the prefix cache, with this result.
      CacheHit hit = {};
    };
    std::vector<Admitted> admitted;
  };

  // `caches` and `cost` outlive this.
  Scheduler(const SchedulerOptions& options, CacheManager* caches, const StepCost* cost);

  // Pages and slots that a sequence of `length` tokens needs under `plan`.
  static int64_t PagesFor(const LayerPlan& plan, int32_t length);
  static int64_t SlotsFor(const LayerPlan& plan) { return plan.layers() - plan.full_layers(); }

  // Queues a new or preempted sequence.
  void Enqueue(Sequence* sequence, absl::Time now);
  // Takes a sequence out, wherever it is, and gives its units back; with `keep` what it computed
  // goes to the prefix index.
  void Remove(Sequence* sequence, bool keep);

  // The rows of the next step: decodes in order of admission, then prefill chunks. Every page they
  // write is allocated.
  std::vector<ScheduledRows> Schedule(absl::Time now, Changes* changes);

  // Room for the row after the next one of a decoding sequence. False when there is none short of
  // preempting somebody.
  bool ReserveAhead(Sequence* sequence);
  // Whether no sequence can be admitted before one of the running ones ends.
  bool full() const { return SequencesTaken() >= options_.sequences_max; }

  // Makes `fork`, which has the same prompt as the running `leader`, run from a copy of the
  // leader's caches. False, with nothing taken, when units are short.
  bool Fork(const Sequence& leader, Sequence* fork);

  const std::vector<Sequence*>& running() const { return running_; }
  const std::vector<Sequence*>& waiting() const { return waiting_; }

  // INTERNAL names the first broken invariant.
  absl::Status CheckIntegrity() const;

 private:
  void Preempt(Sequence* victim, absl::Time now, Changes* changes);
  bool WorthSpilling(const Sequence& victim) const;
  Sequence* Victim() const;
  void GrowDecodes(absl::Time now, Changes* changes);
  void Admit(absl::Time now, Changes* changes);
  // Takes the caches of a waiting sequence: its spilled ones, or the longest cached prefix and room
  // for the rest. False, with nothing taken, when they do not fit.
  bool TakeCaches(Sequence* candidate, Changes::Admitted* admitted);
  bool FitsNow(const Sequence& candidate) const;
  int32_t SequencesTaken() const;
  int32_t ChunkEnd(const Sequence& sequence, int32_t budget) const;
  absl::Status CheckTables(const Sequence& sequence) const;

  const SchedulerOptions options_;
  CacheManager* const caches_;
  const StepCost* const cost_;
  std::vector<Sequence*> running_;  // In order of admission.
  std::vector<Sequence*> waiting_;
};

}  // namespace morphserve
