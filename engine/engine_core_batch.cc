// What a step computes: rows, the logits it needs, the snapshots it leaves.
#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/engine_core.h"

namespace morphserve {

void EngineCore::Work::Clear() {
  batch.Clear();
  scheduled.clear();
  plans.clear();
  report = StepReport{};
}

void EngineCore::Work::AddPlan(const std::shared_ptr<const LayerPlan>& plan) {
  if (std::find(plans.begin(), plans.end(), plan) == plans.end()) plans.push_back(plan);
}

void EngineCore::BuildBatch(const std::vector<ScheduledRows>& rows) {
  work_.Clear();
  StepReport& report = work_.report;
  bool decodes = false;
  bool prefills = false;
  for (const ScheduledRows& entry : rows) {
    Sequence& sequence = *entry.sequence;
    MS_DCHECK(caches_->SlotsAreCurrent(sequence.caches));
    const int32_t row_begin = work_.batch.rows();
    for (int32_t r = 0; r < entry.rows; ++r) {
      work_.batch.tokens.push_back(sequence.tokens[static_cast<size_t>(sequence.computed + r)]);
    }
    Scheduled scheduled{.sequence = &sequence, .rows = entry.rows};
    const auto emit_begin = static_cast<int32_t>(work_.batch.emits.size());
    AddSnapshots(&scheduled);
    work_.batch.segments.push_back(
        {.row_begin = row_begin,
         .row_count = entry.rows,
         .position = sequence.computed,
         .caches = &sequence.caches,
         .plan = sequence.plan.get(),
         .emit_begin = emit_begin,
         .emit_count = static_cast<int32_t>(work_.batch.emits.size()) - emit_begin});
    work_.AddPlan(sequence.plan);
    if (sequence.decoding()) {
      decodes = true;
      ++report.decode_rows;
      report.decode_context += sequence.length();
    } else {
      prefills = true;
      int32_t* counter =
          sequence.preemptions > 0 ? &report.recomputed_tokens : &report.prompt_tokens;
      *counter += entry.rows;
      if (sequence.preemptions > 0) {
        sequence.request->recomputed_tokens += entry.rows;
      } else {
        report.Of(sequence.plan->id()).prompt_tokens += entry.rows;
      }
    }
    AddLogitRows(&scheduled, row_begin);
    work_.scheduled.push_back(std::move(scheduled));
  }
  report.rows = work_.batch.rows();
  report.plans = static_cast<int32_t>(work_.plans.size());
  report.kind = decodes ? (prefills ? StepKind::kMixed : StepKind::kDecode) : StepKind::kPrefill;
}

void EngineCore::AddLogitRows(Scheduled* scheduled, int32_t row_begin) {
  const Sequence& sequence = *scheduled->sequence;
  LiveRequest& live = *sequence.request;
  scheduled->first_logit = work_.batch.logit_rows.size();
  const int32_t prompt = live.prompt_len();
  if (sequence.index == 0 && live.request.output.prompt_logprobs >= 0) {
    for (int32_t r = 0; r < scheduled->rows; ++r) {
      const int32_t next = sequence.computed + r + 1;
      if (next >= prompt || next <= live.scored) continue;
      LogitRow row;
      row.row = row_begin + r;
      row.sample.logprobs = live.request.output.prompt_logprobs;
      row.score_token = live.request.prompt[static_cast<size_t>(next)];
      work_.batch.logit_rows.push_back(row);
      ++scheduled->scored;
    }
  }
  const int32_t end = sequence.computed + scheduled->rows;
  if (end < sequence.length()) return;  // More known tokens to come.
  const int32_t last_row = row_begin + scheduled->rows - 1;
  for (const auto& choice : live.sequences) {
    const bool forks = sequence.index == 0 && choice->state == Sequence::State::kParked;
    if (choice.get() != scheduled->sequence && !forks) continue;
    work_.batch.logit_rows.push_back(
        {.row = last_row, .sample = choice->output->NextSample(sequence.length())});
    ++scheduled->sampled;
  }
}

// Snapshots are marks that this chunk passes; a mark for which no slots can be had is skipped.
void EngineCore::AddSnapshots(Scheduled* scheduled) {
  Sequence& sequence = *scheduled->sequence;
  const bool has_state = sequence.plan->full_layers() < sequence.plan->layers();
  std::vector<SnapshotMark>& marks = sequence.snapshot_marks;
  const int32_t end = sequence.computed + scheduled->rows;
  auto passed = marks.begin();
  for (; passed != marks.end() && passed->position <= end; ++passed) {
    auto pending = std::make_unique<PendingSnapshot>();
    pending->mark = *passed;
    if (has_state) {
      pending->slots = caches_->TakeSnapshot(*sequence.plan, passed->point);
      if (pending->slots.empty()) continue;
      work_.batch.emits.push_back(
          {.rows = passed->position - sequence.computed, .slots = &pending->slots});
    }
    scheduled->snapshots.push_back(std::move(pending));
  }
  marks.erase(marks.begin(), passed);
}

void EngineCore::PublishSnapshots(Scheduled* scheduled) {
  const Sequence& sequence = *scheduled->sequence;
  for (const auto& pending : scheduled->snapshots) {
    caches_->Publish(sequence.cache_key(), sequence.tokens, pending->mark.position, sequence.caches,
                     std::move(pending->slots), pending->mark.point);
  }
  scheduled->snapshots.clear();
}

void EngineCore::DropSnapshots() {
  for (Scheduled& scheduled : work_.scheduled) {
    for (const auto& pending : scheduled.snapshots) {
      if (!pending->slots.empty()) caches_->DropSnapshot(&pending->slots);
    }
    scheduled.snapshots.clear();
  }
}

}  // namespace morphserve
