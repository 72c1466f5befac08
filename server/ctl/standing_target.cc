#include "server/ctl/standing_target.h"

#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {

std::string TargetText(const v1::AutopilotTarget& target) {
  if (target.tpot_ms() <= 0) return "none";
  return absl::StrFormat("%s; p%g of %.3g ms between tokens, %d to %d full layers, quality %g",
                         target.enabled() ? "on" : "off", target.percentile(), target.tpot_ms(),
                         target.full_layers_min(), target.full_layers_max(), target.quality_min());
}

std::string OriginText(const v1::AutopilotTargetOrigin& origin) {
  std::string out = "settings";
  if (origin.has_set_at()) {
    const absl::Time at = absl::FromUnixSeconds(origin.set_at().seconds());
    out = absl::StrFormat(
        "call of %s%s", absl::FormatTime(absl::RFC3339_sec, at, absl::UTCTimeZone()),
        origin.source() == v1::AUTOPILOT_TARGET_SOURCE_FILE ? ", before the server's start" : "");
    out += origin.kept() ? ", kept over restarts" : ", not kept over restarts";
  }
  if (!origin.note().empty()) out += ": " + SafeForTerminal(origin.note());
  return out;
}

}  // namespace morphserve::ctl
