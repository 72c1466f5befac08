// The autopilot's target as an operator knows it: what it is, who set it, whether a restart keeps
// it; and the file that does (setting morph.autopilot.target_file): JSON {format, base_id, set_at,
// target}. The file is of one base checkpoint: what a token may take on another model is another
// question. Thread rule: reentrant.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "morph/autopilot.h"

namespace morphserve {

enum class TargetSource : uint8_t {
  kSettings,
  kCall,  // Since the start.
  kFile,  // Before it.
};

struct StandingTarget {
  AutopilotTarget target = {};
  TargetSource source = TargetSource::kSettings;
  absl::Time set_at = absl::InfinitePast();  // By the call; of settings: never.
  bool kept = true;                          // A restart leads to it again.
  std::string note = {};  // Why it is not kept, or why a file was refused; may be empty.
};

// INVALID_ARGUMENT for whatever is no sound target of a model of `layers` layers;
// FAILED_PRECONDITION when it is of another base. Source and `kept` are those of a file.
absl::StatusOr<StandingTarget> ParseTarget(std::string_view text, const std::string& base_id,
                                           int32_t layers);
std::string PrintTarget(const StandingTarget& standing, const std::string& base_id);

// NOT_FOUND when there is no file; else as ParseTarget.
absl::StatusOr<StandingTarget> LoadTarget(const std::string& path, const std::string& base_id,
                                          int32_t layers);
// UNAVAILABLE, with the file as it was, when it cannot be written.
absl::Status SaveTarget(const std::string& path, const StandingTarget& standing,
                        const std::string& base_id);

}  // namespace morphserve
