// LayerSelection finds which layers of a model are worth keeping full, by every selector on the
// same data: a sweep that makes one layer at a time linear (interaction, the gates that follow from
// it, local_kl, halo), then the
// joint search over gates (flashmorph), beside uniform and random. It is long work in short jobs:
// RunSlice does as much as fits, between serving steps if need be. With a checkpoint file, a
// selection that was cut off goes on where it was and ends with the same bits. Same source, data
// and options: same result, bit for bit, whatever the slices and threads. Thread rule: one thread,
// but Cancel from any. Ownership: owns buffers and data; borrows the source.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/base/clock.h"
#include "morph/alignment.h"
#include "morph/calibration_data.h"
#include "morph/gate_optimizer.h"
#include "morph/layer_sweep.h"
#include "morph/selection_model.h"
#include "morph/selection_report.h"
#include "morph/work_slices.h"

namespace morphserve {

struct SelectionOptions {
  uint64_t seed = 0;
  int32_t tokens = 1024;  // Of a recall sample: calibrate at the longest context served.
  int32_t samples = 4;
  int32_t scored_max = 160;   // Positions of a sample that are looked at, evenly thinned.
  int32_t plain_samples = 1;  // Of plain text, for halo's commonsense term. 0: no halo.
  int32_t plain_tokens = 512;
  bool gates = true;  // Run flashmorph.
  GateReading reading = GateReading::kTeacherStream;
  int32_t steps = 150;
  double rate = 2e-2;
  double rate_end = 2e-3;
  int32_t watched_k = 0;  // Stop early when this top set stands still; 0: never.
  double lambda = 0;      // 0: what gives mean_gate under the interaction matrix.
  double mean_gate = 0.5;
  int32_t block_rows = 0;       // Of a job; 0: as many as suit the backend.
  std::string checkpoint = "";  // A file to keep and resume progress in; empty: none.
};

// What a selection looks at.
struct SelectionData {
  std::vector<CalibrationSample> recall;
  std::vector<CalibrationSample> plain;
};

// Passkey samples and plain text as the options say. `text` as in calibration_data.h.
absl::StatusOr<SelectionData> MakeSelectionData(const Tokenizer* tokenizer, std::string_view text,
                                                const SelectionOptions& options);

enum class SelectionPhase : uint8_t { kSweep, kPlainSweep, kGates, kDone };
const char* SelectionPhaseName(SelectionPhase phase);

struct SelectionProgress {
  SelectionPhase phase = SelectionPhase::kSweep;
  int32_t unit = 0;     // Samples or steps of the phase that are finished,
  int32_t units = 0;    // of so many.
  double fraction = 0;  // Of the whole selection, by FLOPs.
  double loss = 0;      // Of the last gate step.
  double mean_gate = 1;
};

class LayerSelection {
 public:
  // Resumes from options.checkpoint when it exists and belongs to the same source, data and
  // options; one that does not is FAILED_PRECONDITION. INVALID_ARGUMENT for options out of range.
  static absl::StatusOr<std::unique_ptr<LayerSelection>> Create(const SelectionSource& source,
                                                                SelectionData data,
                                                                const SelectionOptions& options,
                                                                const Clock* clock);

  // Bytes that a selection will hold.
  static int64_t Bytes(const SelectionSource& source, const SelectionOptions& options);

  // Runs jobs until `until`, at least one, and waits for them. True: there is more to do. CANCELLED
  // after Cancel. Any error ends the selection.
  absl::StatusOr<bool> RunSlice(absl::Time until);

  void Cancel() { cancelled_.store(true, std::memory_order_relaxed); }

  // Called on the running thread after every finished sample and step.
  void OnProgress(std::function<void(const SelectionProgress&)> callback) {
    on_progress_ = std::move(callback);
  }
  const SelectionProgress& progress() const { return progress_; }

  // After the last slice.
  const SelectionReport& report() const { return report_; }
  const SweepTotals& sweep() const { return sweep_->totals(); }

 private:
  struct PhaseCost {
    double seconds = 0;
    double flops = 0;
    int64_t tokens = 0;
  };

  LayerSelection(SelectionData data, const SelectionOptions& options, const Clock* clock)
      : data_(std::move(data)), options_(options), clock_(clock) {}
  void AddNextUnit();
  void StartGates();
  void AddGateStep();
  absl::Status FinishUnit();
  void Report();
  double PlannedFlops() const;
  PhaseCost& cost() { return costs_[static_cast<size_t>(progress_.phase)]; }
  std::string Fingerprint() const;
  absl::Status Save() const;
  absl::Status Resume();

  const SelectionData data_;
  const SelectionOptions options_;
  const Clock* const clock_;
  std::unique_ptr<SelectionModel> model_;
  std::unique_ptr<LayerSweep> sweep_;
  std::unique_ptr<AlignmentLoss> loss_;
  std::unique_ptr<GateOptimizer> optimizer_;
  double lambda_ = 0;
  AlignmentResult step_;
  WorkList list_;
  WorkSlices slices_;
  bool unit_open_ = false;
  bool save_failed_ = false;  // Told once.
  PhaseCost costs_[3];
  double counted_flops_ = 0;  // Of sweep_ and loss_, entered in costs_.
  SelectionProgress progress_;
  SelectionReport report_;
  std::function<void(const SelectionProgress&)> on_progress_;
  std::atomic<bool> cancelled_{false};
};

}  // namespace morphserve
