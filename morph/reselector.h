// Reselector is the LayerSelector that runs on the engine's own model: calibration texts, the work
// of LayerSelection in slices between serving steps, a look at the best sets by true forward
// passes, and the RankingStore for what was found. Memory beside the arena is bounded by a setting
// and checked before the work begins. Thread rule: as LayerSelector. Ownership: borrows everything.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/clock.h"
#include "engine/engine.h"
#include "morph/layer_selector.h"
#include "morph/ranking_store.h"
#include "morph/selection.h"

namespace morphserve {

struct ReselectOptions {
  int32_t tokens = 0;  // Of a calibration text; 0: 1024, or the context limit where that is less.
  int32_t samples = 4;
  int32_t steps = 150;    // Of the gates.
  int64_t seed = 0;       // The next free one where the branches file has a ranking of that name.
  std::string text = "";  // To hide passkeys in; empty: the built-in one.
  int64_t workspace_bytes = int64_t{1} << 30;
  // Where progress is kept, a file a selector with this beginning; empty: a selection that was cut
  // off starts over.
  std::string progress_path = "";
};

// What a selection runs on: the engine's own weights, between its steps. FAILED_PRECONDITION /
// NOT_MORPHABLE on a dense model, UNAVAILABLE when the engine ends.
absl::StatusOr<SelectionSource> SelectionSourceOf(Engine* engine);
RankingsKey RankingsKeyOf(const SelectionSource& source);

class Reselector final : public LayerSelector {
 public:
  // INVALID_ARGUMENT when the options do not fit the model: calibration tokens beyond the context,
  // or a text that is too short or no UTF-8.
  static absl::StatusOr<std::unique_ptr<Reselector>> Create(Engine* engine,
                                                            const SelectionSource& source,
                                                            RankingStore* store, const Clock* clock,
                                                            ReselectOptions options);

  absl::Status Check(const std::string& selector) const override;
  absl::StatusOr<Selection> Select(const SelectRequest& request, const std::atomic<bool>* cancel,
                                   const Progress& progress) override;

 private:
  struct Run {
    SelectRequest request;
    const std::atomic<bool>* cancel;
    const Progress* progress;
    absl::Time begin;
  };
  Reselector(Engine* engine, const SelectionSource& source, RankingStore* store, const Clock* clock,
             ReselectOptions options)
      : engine_(engine),
        source_(source),
        store_(store),
        clock_(clock),
        options_(std::move(options)) {}
  SelectionOptions OptionsFor(const std::string& selector) const;
  std::string_view text() const;
  void Tell(const Run& run, double fraction, std::string doing) const;
  // Goes on from the progress file when it belongs to the same work.
  absl::StatusOr<std::unique_ptr<LayerSelection>> Open(const SelectionOptions& options) const;
  // Every selector's result, or of one that looks at nothing (uniform, random) its own.
  absl::StatusOr<SelectionReport> MakeReport(const Run& run) const;
  // Looks at the sets of the wanted budget; the best of them takes its place in `ranking`.
  absl::StatusOr<BranchesQuality> CheckSets(const Run& run, const SelectionReport& report,
                                            BranchesRanking* ranking) const;

  Engine* const engine_;
  const SelectionSource source_;
  RankingStore* const store_;
  const Clock* const clock_;
  const ReselectOptions options_;
};

}  // namespace morphserve
