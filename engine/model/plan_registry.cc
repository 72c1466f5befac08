#include "engine/model/plan_registry.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"

namespace morphserve {
namespace {

constexpr size_t kPrefixMin = 6;  // "p-" and four digits.

}  // namespace

PlanRegistry::PlanRegistry(std::shared_ptr<const LayerPlan> active, int32_t table_max,
                           int32_t history_max)
    : table_max_(table_max), history_max_(history_max) {
  MS_CHECK(table_max >= 1 && history_max >= 2);
  for (auto& history : history_) history.push_back({.plan = active, .epoch = 1});
  plans_.push_back({.plan = std::move(active),
                    .label = "",
                    .origin = "start",
                    .state = PlanState::kReady,
                    .last_epoch = 1});
}

std::shared_ptr<const LayerPlan> PlanRegistry::Get(PlanPointer pointer) const {
  MutexLock lock(&mutex_);
  return history_[static_cast<size_t>(pointer)].back().plan;
}

uint64_t PlanRegistry::epoch() const {
  MutexLock lock(&mutex_);
  return epoch_;
}

uint64_t PlanRegistry::version() const {
  MutexLock lock(&mutex_);
  return version_;
}

absl::StatusOr<std::shared_ptr<const LayerPlan>> PlanRegistry::Find(std::string_view id) const {
  MutexLock lock(&mutex_);
  const PlanEntry* found = nullptr;
  for (const PlanEntry& entry : plans_) {
    const std::string& whole = entry.plan->id();
    const bool matches =
        whole == id || (id.size() >= kPrefixMin && whole.compare(0, id.size(), id) == 0);
    if (!matches) continue;
    if (found != nullptr) {
      return absl::NotFoundError(absl::StrFormat("plan prefix %s names several plans", id));
    }
    found = &entry;
  }
  if (found == nullptr) {
    return absl::NotFoundError(absl::StrFormat("plan %s is not in the plan table", id));
  }
  if (found->state == PlanState::kWithdrawn) {
    return absl::FailedPreconditionError(
        absl::StrFormat("plan %s was withdrawn: %s", found->plan->id(), found->withdrawn_why));
  }
  return found->plan;
}

PlanEntry* PlanRegistry::FindEntry(std::string_view id) {
  for (PlanEntry& entry : plans_) {
    if (entry.plan->id() == id) return &entry;
  }
  return nullptr;
}

bool PlanRegistry::Named(const LayerPlan& plan) const {
  for (const auto& history : history_) {
    for (const PlanVisit& visit : history) {
      if (visit.plan->id() == plan.id()) return true;
    }
  }
  return false;
}

absl::StatusOr<std::shared_ptr<const LayerPlan>> PlanRegistry::Register(
    std::shared_ptr<const LayerPlan> plan, std::string label, std::string origin) {
  MutexLock lock(&mutex_);
  if (const PlanEntry* known = FindEntry(plan->id()); known != nullptr) return known->plan;
  if (static_cast<int32_t>(plans_.size()) >= table_max_) {
    const auto oldest = std::find_if(plans_.begin(), plans_.end(), [this](const PlanEntry& entry) {
      return !Named(*entry.plan);
    });
    if (oldest == plans_.end()) {
      return absl::ResourceExhaustedError(
          absl::StrFormat("the plan table holds %d plans, all named by a pointer; limit is %d",
                          plans_.size(), table_max_));
    }
    plans_.erase(oldest);
  }
  ++version_;
  plans_.push_back({.plan = plan, .label = std::move(label), .origin = std::move(origin)});
  return plan;
}

absl::Status PlanRegistry::Remove(std::string_view id) {
  MutexLock lock(&mutex_);
  const PlanEntry* entry = FindEntry(id);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrFormat("plan %s is not in the plan table", id));
  }
  for (const auto& history : history_) {
    if (history.back().plan->id() == id) {
      return absl::FailedPreconditionError(absl::StrFormat("plan %s is named by a pointer", id));
    }
  }
  ++version_;
  std::erase_if(plans_, [&](const PlanEntry& e) { return e.plan->id() == id; });
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> PlanRegistry::Point(PlanPointer pointer, std::string_view id,
                                             double share) {
  MutexLock lock(&mutex_);
  PlanEntry* entry = FindEntry(id);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrFormat("plan %s is not in the plan table", id));
  }
  if (entry->state == PlanState::kWithdrawn) {
    return absl::FailedPreconditionError(
        absl::StrFormat("plan %s was withdrawn: %s", id, entry->withdrawn_why));
  }
  ++version_;
  entry->last_epoch = ++epoch_;
  std::vector<PlanVisit>& history = history_[static_cast<size_t>(pointer)];
  if (pointer == PlanPointer::kActive) {
    trial_ = share < 1 ? Trial{.share = share, .before = history.back().plan} : Trial{};
  }
  history.push_back({.plan = entry->plan, .epoch = epoch_});
  if (static_cast<int32_t>(history.size()) > history_max_) history.erase(history.begin());
  return epoch_;
}

void PlanRegistry::EndTrial() {
  MutexLock lock(&mutex_);
  trial_ = {};
  ++version_;
}

std::shared_ptr<const LayerPlan> PlanRegistry::PlanFor(std::string_view request_id) const {
  MutexLock lock(&mutex_);
  const auto& active = history_[static_cast<size_t>(PlanPointer::kActive)].back().plan;
  if (trial_.before == nullptr) return active;
  // FNV-1a, finished so that ids that differ in their last digit spread too.
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : request_id) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3ull;
  hash = (hash ^ (hash >> 33)) * 0xff51afd7ed558ccdull;
  hash ^= hash >> 33;
  const double drawn = static_cast<double>(hash >> 11) * 0x1p-53;
  return drawn < trial_.share ? active : trial_.before;
}

absl::Status PlanRegistry::MarkReady(std::string_view id) {
  MutexLock lock(&mutex_);
  PlanEntry* entry = FindEntry(id);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrFormat("plan %s is not in the plan table", id));
  }
  entry->state = PlanState::kReady;
  entry->withdrawn_why.clear();
  ++version_;
  return absl::OkStatus();
}

absl::Status PlanRegistry::Withdraw(std::string_view id, std::string why) {
  MutexLock lock(&mutex_);
  PlanEntry* entry = FindEntry(id);
  if (entry == nullptr) {
    return absl::NotFoundError(absl::StrFormat("plan %s is not in the plan table", id));
  }
  const auto usable = [&](const PlanVisit& visit) {
    const PlanEntry* named = FindEntry(visit.plan->id());
    return named != nullptr && named != entry && named->state != PlanState::kWithdrawn;
  };
  std::array<const PlanVisit*, kPlanPointers> back{};
  for (size_t p = 0; p < history_.size(); ++p) {
    if (history_[p].back().plan->id() != id) continue;
    for (const PlanVisit& visit : history_[p]) {
      if (usable(visit)) back[p] = &visit;
    }
    if (back[p] == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrFormat("plan %s is the only one that a pointer has ever named", id));
    }
  }
  entry->state = PlanState::kWithdrawn;
  entry->withdrawn_why = std::move(why);
  const bool active_moves = back[static_cast<size_t>(PlanPointer::kActive)] != nullptr;
  if (active_moves || (trial_.before != nullptr && trial_.before->id() == id)) trial_ = {};
  for (size_t p = 0; p < history_.size(); ++p) {
    if (back[p] == nullptr) continue;
    const PlanVisit visit{.plan = back[p]->plan, .epoch = ++epoch_};
    FindEntry(visit.plan->id())->last_epoch = epoch_;
    history_[p].push_back(visit);
    if (static_cast<int32_t>(history_[p].size()) > history_max_) {
      history_[p].erase(history_[p].begin());
    }
  }
  ++version_;
  return absl::OkStatus();
}

std::vector<PlanEntry> PlanRegistry::List() const {
  MutexLock lock(&mutex_);
  return plans_;
}

std::vector<PlanVisit> PlanRegistry::History(PlanPointer pointer) const {
  MutexLock lock(&mutex_);
  return history_[static_cast<size_t>(pointer)];
}

}  // namespace morphserve
