// The file that keeps a machine's measured steps over restarts (setting morph.cost_cache). The file
// holds the measurements, not the fit, and a key of everything that they depend on; a file of
// another key, or one that is damaged, is refused and measured anew. Thread rule: reentrant.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "morph/cost_model.h"

namespace morphserve {

struct CostKey {
  std::string plan_id;  // Of the all-full plan: it names base checkpoint and branches.
  std::string device;   // With its number of threads.
  std::string version;  // Of the server.
  std::string shape;    // Limits that steps depend on: "rows 256, sequences 32, F16".
  bool operator==(const CostKey&) const = default;
};

// NOT_FOUND without a file; FAILED_PRECONDITION names the part of the key that differs;
// INVALID_ARGUMENT for whatever is not a sound cost cache.
absl::StatusOr<CostModel> LoadCosts(const std::string& path, const CostKey& key, int32_t layers);
// The same from the file's text.
absl::StatusOr<CostModel> ParseCosts(std::string_view text, const CostKey& key, int32_t layers);
std::string PrintCosts(const CostKey& key, const CostModel& model);
// Replaces the file at once or not at all. UNAVAILABLE.
absl::Status SaveCosts(const std::string& path, const CostKey& key, const CostModel& model);

}  // namespace morphserve
