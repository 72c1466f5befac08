// PlanVerifier tries a plan before it serves: what its answers to a few probe prompts look like
// beside those of the all-full plan, and how long a step at the target's load really takes. The
// controller judges the report; tests have a verifier of their own. Thread rule: Verify from one
// thread at a time, not the engine's.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/model/layer_plan.h"
#include "morph/cost_model.h"
#include "morph/load_point.h"
#include "morph/target.h"

namespace morphserve {

// What a canary must keep to.
struct CanaryBounds {
  int32_t prompts = 8;  // 0 .. kProbePrompts; 0 compares nothing.
  double kl_max = 0.10;
  double agreement_min = 0;
  std::optional<double> recall_min = {};  // Share of passkeys to get right; absent: only told.
  double latency_slack = 0.10;            // Of the target, that a measured time may exceed it by.
};

struct VerifyRequest {
  std::shared_ptr<const LayerPlan> plan;
  int32_t prompts = 8;
  bool recall = false;  // Passkeys too, which take seconds.
  // The load at which a step is measured; absent: not measured.
  std::optional<LoadPoint> load;
  const CostModel* costs = nullptr;  // Carries a smaller measurement to the load; may be null.
};

struct VerifyReport {
  bool finite = true;
  int32_t positions = 0;  // Compared; 0: none, and the next three say nothing.
  double kl = 0;          // Mean, in nats, of the all-full plan from this one.
  double quality = 0;     // Perplexity of the all-full plan over that of this one.
  double agreement = 0;   // Share of positions with the same most likely token.
  // Share of the passkeys' tokens that are right; absent: not asked, or the model has no text.
  std::optional<double> recall = {};
  std::optional<double> full_recall = {};  // Of the all-full plan.
  std::optional<double> step_ms = {};      // At the load that was asked.
  int32_t measured_running = 0;            // Sequences that it was really measured with.
};

class PlanVerifier {
 public:
  virtual ~PlanVerifier() = default;
  // `progress` gets 0 .. 1 and may be null; `cancel` may be null. Errors of RunLabTask, and
  // RESOURCE_EXHAUSTED / PLAN_MEMORY when there are no units for the probes.
  virtual absl::StatusOr<VerifyReport> Verify(const VerifyRequest& request,
                                              const std::atomic<bool>* cancel, absl::Time deadline,
                                              const std::function<void(double)>& progress) = 0;
};

// FAILED_PRECONDITION / CANARY_FAILED or TARGET_MISSED with the figure and its bound. The step of
// the report is a median; at the bound's percentile it takes `spread` of it more.
absl::Status JudgeCanary(const VerifyReport& report, const CanaryBounds& bounds,
                         const std::optional<LatencyBound>& latency, double spread);

}  // namespace morphserve
