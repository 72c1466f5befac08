#include "server/layer_selection.h"

#include <utility>

#include "engine/base/status_macros.h"
#include "server/settings_load.h"

namespace morphserve {

absl::StatusOr<LayerSelectionParts> MakeLayerSelection(Engine* engine, const ServerConfig& config,
                                                       const Clock* clock) {
  constexpr size_t kCalibrationBytesMax = size_t{16} << 20;
  LayerSelectionParts parts;
  if (engine->branches() == nullptr) return parts;
  const auto& morph = config.morph;
  ReselectOptions options{.tokens = morph.reselect_tokens,
                          .samples = morph.reselect_samples,
                          .steps = morph.reselect_steps,
                          .seed = morph.reselect_seed,
                          .workspace_bytes = morph.workspace_bytes,
                          .progress_path = morph.rankings_file};
  if (!morph.reselect_text.empty()) {
    MS_ASSIGN_OR_RETURN(options.text, ReadSmallFile(morph.reselect_text, kCalibrationBytesMax,
                                                    "the file of morph.reselect_text"));
  }
  MS_ASSIGN_OR_RETURN(const SelectionSource source, SelectionSourceOf(engine));
  MS_ASSIGN_OR_RETURN(parts.store,
                      RankingStore::Open(engine, RankingsKeyOf(source), morph.rankings_file));
  MS_ASSIGN_OR_RETURN(parts.selector, Reselector::Create(engine, source, parts.store.get(), clock,
                                                         std::move(options)));
  return parts;
}

}  // namespace morphserve
