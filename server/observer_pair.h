// ObserverPair tells two observers of an engine everything, in order. Thread rule: as
// EngineObserver. Ownership: borrows both.
#pragma once

#include <string_view>

#include "engine/engine_observer.h"

namespace morphserve {

class ObserverPair final : public EngineObserver {
 public:
  ObserverPair(EngineObserver* first, EngineObserver* second) : first_(first), second_(second) {}

  void OnStep(const StepReport& report) override {
    first_->OnStep(report);
    second_->OnStep(report);
  }
  void OnFirstToken(std::string_view plan_id, double ttft_s) override {
    first_->OnFirstToken(plan_id, ttft_s);
    second_->OnFirstToken(plan_id, ttft_s);
  }
  void OnTokenGap(std::string_view plan_id, double gap_s) override {
    first_->OnTokenGap(plan_id, gap_s);
    second_->OnTokenGap(plan_id, gap_s);
  }
  void OnPreemption(PreemptedBy resource, bool spilled) override {
    first_->OnPreemption(resource, spilled);
    second_->OnPreemption(resource, spilled);
  }
  void OnNonFinite(std::string_view plan_id, std::string_view where) override {
    first_->OnNonFinite(plan_id, where);
    second_->OnNonFinite(plan_id, where);
  }
  void OnPrefixLookup(std::string_view plan_id, int32_t prompt_tokens,
                      const CacheHit& hit) override {
    first_->OnPrefixLookup(plan_id, prompt_tokens, hit);
    second_->OnPrefixLookup(plan_id, prompt_tokens, hit);
  }
  void OnRequestEnd(const RequestReport& report) override {
    first_->OnRequestEnd(report);
    second_->OnRequestEnd(report);
  }

 private:
  EngineObserver* const first_;
  EngineObserver* const second_;
};

}  // namespace morphserve
