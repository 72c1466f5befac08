// What a report is made of: the answers of one running server, and the loads that the reader asked
// about. Nothing else enters the page.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "morphserve/v1/models.pb.h"
#include "morphserve/v1/morph.pb.h"
#include "server/ctl/ranking_agreement.h"

namespace morphserve::ctl {

struct ReportData {
  v1::ServerInfo server;
  v1::ModelInfo model;
  v1::ListPlansResponse plans;
  v1::GetActivePlanResponse active;
  std::optional<v1::GetCostsResponse> costs;
  std::string costs_missing;  // Why there are none.
  // Of the default method; its rankings, interaction and measured sets are all that is stored.
  std::optional<v1::GetLayerScoresResponse> scores;
  std::string scores_missing;
  std::vector<RankedLayers> rankings;  // Of `scores`, with the sets of each.
  std::vector<uint32_t> contexts;      // Load points: tokens, rising ...
  std::vector<uint32_t> batches;       // ... and sequences in a step.
  absl::Time made_at;
};

// The budget that a page without a smaller one in use looks at: every fourth layer full.
uint32_t FocusBudget(const ReportData& data);

}  // namespace morphserve::ctl
