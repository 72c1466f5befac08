// LabVerifier is the PlanVerifier that runs on the engine's own model, in slices between serving
// steps. What the all-full plan answers to the probe prompts is computed once and kept. Thread
// rule: as PlanVerifier.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/engine.h"
#include "morph/calibration_data.h"
#include "morph/verifier.h"
#include "morph/verifier_metrics.h"

namespace morphserve {

class LabVerifier final : public PlanVerifier {
 public:
  explicit LabVerifier(Engine* engine) : engine_(engine) {}

  absl::StatusOr<VerifyReport> Verify(const VerifyRequest& request, const std::atomic<bool>* cancel,
                                      absl::Time deadline,
                                      const std::function<void(double)>& progress) override;

 private:
  struct Run {
    const std::atomic<bool>* cancel;
    absl::Time deadline;
    const std::function<void(double)>* progress;
    double from, to;  // The run's part of the whole.
  };
  absl::Status FillReference(int32_t prompts, const Run& run);
  absl::Status Compare(const VerifyRequest& request, const Run& run, VerifyReport* report);
  absl::StatusOr<double> RecallOf(std::shared_ptr<const LayerPlan> plan, const Run& run);
  absl::Status CompareRecall(const VerifyRequest& request, Run run, VerifyReport* report);
  absl::Status MeasureStep(const VerifyRequest& request, const Run& run, VerifyReport* report);

  Engine* const engine_;
  std::vector<std::vector<int32_t>> prompts_;
  std::vector<ReferenceRow> reference_;  // [prompts][positions], as far as computed.
  std::vector<CalibrationSample> recall_probes_;
  std::optional<double> full_recall_;
};

}  // namespace morphserve
