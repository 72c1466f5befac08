// After a selection: the few sets of full layers that are worth a closer look, and true forward
// passes of the hybrids that they make, in slices between serving steps. The interaction matrix
// knows layers near the full model only, so the set that it likes best need not be the best one.
// Thread rule: as LabTask; results after its end.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/branches.h"
#include "morph/lab_task.h"
#include "morph/plan_quality.h"
#include "morph/selection_report.h"
#include "morph/work_slices.h"

namespace morphserve {

// The sets of `full_layers` layers, sorted, that a selector of the report offers, its own first.
// For `interaction` also those of its order and of its gates, and those one swap away that Q finds
// cheapest; at most `count_max`.
std::vector<std::vector<int32_t>> CandidateSets(const SelectionReport& report,
                                                const SelectorResult& selector, int32_t full_layers,
                                                int32_t count_max);

// Passkeys and plain text for a check of sets; `text` as in calibration_data.h.
absl::StatusOr<std::vector<EvaluationSet>> MakeCheckTexts(const Tokenizer* tokenizer,
                                                          std::string_view text, uint64_t seed,
                                                          int32_t tokens, int32_t rows);

class SetCheckTask final : public LabTask {
 public:
  // `checked` (may be null) is called with the number of sets that are done. Errors of
  // SelectionModel::Create.
  static absl::StatusOr<std::unique_ptr<SetCheckTask>> Create(
      const SelectionSource& source, std::vector<EvaluationSet> texts,
      std::vector<std::vector<int32_t>> sets, std::function<void(int32_t)> checked);
  // Bytes that a check will hold.
  static int64_t Bytes(const SelectionSource& source, int32_t tokens, int32_t rows);

  absl::StatusOr<bool> Piece(Lab& lab, absl::Time until) override;
  void GiveBack(Lab&) override {}

  // The set whose predictions are closest to the full model's, and its figures.
  size_t best() const;
  BranchesQuality Figures(size_t set) const;

 private:
  SetCheckTask(std::vector<EvaluationSet> texts, std::vector<std::vector<int32_t>> sets)
      : texts_(std::move(texts)), sets_(std::move(sets)), results_(sets_.size()) {}

  const std::vector<EvaluationSet> texts_;
  const std::vector<std::vector<int32_t>> sets_;
  std::vector<std::vector<SetQuality>> results_;  // [set][text]
  std::function<void(int32_t)> checked_;
  std::unique_ptr<SelectionModel> model_;
  std::unique_ptr<PlanQuality> quality_;
  WorkList list_;
  WorkSlices slices_;
  size_t next_ = 0;
};

}  // namespace morphserve
