#include "morph/lab_task.h"

#include <algorithm>
#include <random>
#include <span>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/reasons.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

// Leaves out slices until their time has paid for what earlier ones took too much.
class Pacer {
 public:
  bool Due(absl::Duration budget) {
    if (debt_ < budget) return true;
    debt_ -= budget;
    return false;
  }
  void Spent(absl::Duration spent, absl::Duration budget) {
    debt_ = std::max(absl::ZeroDuration(), debt_ + spent - budget);
  }

 private:
  absl::Duration debt_;
};

struct TaskRun {
  LabTask* task = nullptr;
  const std::atomic<bool>* cancel = nullptr;
  absl::Time deadline;
  Pacer pacer;
  absl::Status status;
  bool begun = false;

  bool Finish(Lab& lab, absl::Status end) {
    status = std::move(end);
    if (begun) task->GiveBack(lab);
    return false;
  }

  bool Slice(Lab& lab, absl::Duration budget) {
    const absl::Time begin = lab.clock->Now();
    if (budget == absl::ZeroDuration()) {
      return Finish(lab, WithReason(absl::UnavailableError("the server stops"), reason::kDraining));
    }
    if (cancel != nullptr && cancel->load()) {
      return Finish(lab, WithReason(absl::CancelledError("cancelled"), reason::kCancelled));
    }
    if (begin > deadline) {
      return Finish(lab, WithReason(absl::DeadlineExceededError("took longer than it may"),
                                    reason::kPhaseTimeout));
    }
    if (!pacer.Due(budget)) return true;
    begun = true;
    const absl::Time until = begin + budget;
    absl::Time now = begin;
    while (now < until) {
      const absl::StatusOr<bool> more = task->Piece(lab, until);
      if (!more.ok()) return Finish(lab, more.status());
      if (!*more) return Finish(lab, absl::OkStatus());
      now = lab.clock->Now();
    }
    pacer.Spent(now - begin, budget);
    return true;
  }
};

// Sixteen-bit words whose every reading is finite and no denormal: as f16 0.125 .. 0.5, as bf16 and
// as the upper half of an f32 tiny numbers, of either sign.
std::vector<std::byte> RandomBytes() {
  constexpr size_t kBytes = size_t{1} << 20;
  std::vector<std::byte> bytes(kBytes);
  std::mt19937 random(1);
  for (size_t i = 0; i < kBytes; i += 2) {
    const auto bits = static_cast<uint32_t>(random());
    const uint32_t word = 0x3000u + bits % 0x800u + (bits >> 31 << 15);
    bytes[i] = static_cast<std::byte>(word & 0xFF);
    bytes[i + 1] = static_cast<std::byte>(word >> 8);
  }
  return bytes;
}

void FillUnit(UnitMemory* memory, UnitAddress unit, int64_t bytes) {
  static const std::vector<std::byte>& kRandom = *new std::vector<std::byte>(RandomBytes());
  if (bytes <= static_cast<int64_t>(kRandom.size())) {
    // Another place in the block for every unit, so that they differ.
    const size_t room = kRandom.size() - static_cast<size_t>(bytes);
    const size_t at = room == 0 ? 0 : static_cast<size_t>(unit) * 64 % room / 2 * 2;
    memory->Write(unit, std::span(kRandom).subspan(at, static_cast<size_t>(bytes)));
    return;
  }
  std::vector<std::byte> whole;
  while (static_cast<int64_t>(whole.size()) < bytes) {
    const size_t part = std::min(kRandom.size(), static_cast<size_t>(bytes) - whole.size());
    whole.insert(whole.end(), kRandom.begin(), kRandom.begin() + static_cast<ptrdiff_t>(part));
  }
  memory->Write(unit, whole);
}

}  // namespace

absl::Status RunLabTask(Engine* engine, LabTask* task, const std::atomic<bool>* cancel,
                        absl::Time deadline) {
  TaskRun run{.task = task, .cancel = cancel, .deadline = deadline, .pacer = {}, .status = {}};
  const bool ran =
      engine->RunInLab([&run](Lab& lab, absl::Duration budget) { return run.Slice(lab, budget); });
  if (!ran && run.status.ok()) {
    return WithReason(absl::UnavailableError("the server stops"), reason::kDraining);
  }
  return run.status;
}

LabUnits::~LabUnits() { MS_CHECK(sequences_.empty()); }

absl::Status LabUnits::Take(Lab& lab, const LayerPlan& plan, int32_t sequences, int32_t length) {
  MS_CHECK(filled_ == 0);
  for (int32_t i = 0; i < sequences; ++i) {
    auto caches = std::make_unique<SequenceCaches>();
    if (!lab.caches->Reserve(plan, length, caches.get())) {
      GiveBack(lab);
      return WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                            "%d sequences of %d tokens under plan %s do not fit beside what runs",
                            sequences, length, plan.id())),
                        reason::kPlanMemory);
    }
    lab.adopt(caches.get());
    sequences_.push_back(std::move(caches));
  }
  return absl::OkStatus();
}

bool LabUnits::Fill(Lab& lab, int64_t page_bytes, int64_t slot_bytes) {
  if (sequences_.empty()) return false;
  const size_t layers = sequences_.front()->pages.size();
  if (filled_ == sequences_.size() * layers) return false;
  // One page and one slot are written, the first ones, and all others are copies of them: a device
  // copies thousands at once. Looked up each time, as units move.
  const SequenceCaches& first = *sequences_.front();
  const auto full = std::find_if(first.pages.begin(), first.pages.end(),
                                 [](const auto& pages) { return !pages.empty(); });
  const auto linear = std::find_if(first.slots.begin(), first.slots.end(),
                                   [](UnitAddress slot) { return slot >= 0; });
  if (filled_ == 0) {
    if (full != first.pages.end()) FillUnit(lab.memory, full->front(), page_bytes);
    if (linear != first.slots.end()) FillUnit(lab.memory, *linear, slot_bytes);
  }
  const SequenceCaches& caches = *sequences_[filled_ / layers];
  const size_t layer = filled_ % layers;
  std::vector<UnitCopy> copies;
  for (const UnitAddress page : caches.pages[layer]) {
    if (page == full->front()) continue;
    copies.push_back({.from = full->front(), .to = page, .bytes = page_bytes});
  }
  const UnitAddress slot = caches.slots[layer];
  if (slot >= 0 && slot != *linear) {
    copies.push_back({.from = *linear, .to = slot, .bytes = slot_bytes});
  }
  lab.memory->Copy(copies);
  ++filled_;
  return true;
}

void LabUnits::GiveBack(Lab& lab) {
  for (const auto& caches : sequences_) {
    lab.forget(caches.get());
    lab.caches->Release(caches.get());
  }
  sequences_.clear();
  filled_ = 0;
}

}  // namespace morphserve
