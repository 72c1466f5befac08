// What mode RESELECT needs, made from the settings: the store of rankings and the selector that
// fills it. Thread rule: Make on the loading thread.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "engine/base/clock.h"
#include "engine/engine.h"
#include "morph/ranking_store.h"
#include "morph/reselector.h"
#include "server/server_config.h"

namespace morphserve {

struct LayerSelectionParts {
  std::unique_ptr<RankingStore> store;
  std::unique_ptr<Reselector> selector;
};

// Both null on a dense model. Refuses a rankings file that is broken or of other layers, and a text
// that cannot be used, with the setting's name. Borrows engine and clock.
absl::StatusOr<LayerSelectionParts> MakeLayerSelection(Engine* engine, const ServerConfig& config,
                                                       const Clock* clock);

}  // namespace morphserve
