#include "morph/standing_target.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/file_reader.h"
#include "engine/loader/json_text.h"
#include "engine/model/branches_lists.h"
#include "morph/replace_file.h"

namespace morphserve {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kFormat = 1;
constexpr int64_t kBytesMax = int64_t{1} << 16;
constexpr char kWhat[] = "autopilot target";

// Every member must be there: a target that is half a file's and half a default is nobody's.
absl::StatusOr<AutopilotTarget> ReadTarget(const JsonObject& object, int32_t layers) {
  MS_RETURN_IF_ERROR(
      CheckKeys(object, {"enabled", "tpot_ms", "percentile", "full_layers_min", "full_layers_max",
                         "window_s", "cool_down_s", "hysteresis", "quality_min", "samples_min"}));
  AutopilotTarget out;
  double window_s, cool_down_s;
  if (!object.Has("enabled")) return object.Refuse("enabled", "is missing");
  MS_ASSIGN_OR_RETURN(out.enabled, object.Bool("enabled", false));
  MS_ASSIGN_OR_RETURN(out.tpot_ms, object.Number("tpot_ms", std::nullopt));
  MS_ASSIGN_OR_RETURN(out.percentile, object.Number("percentile", std::nullopt));
  MS_ASSIGN_OR_RETURN(out.k_min, object.Int("full_layers_min", std::nullopt));
  MS_ASSIGN_OR_RETURN(out.k_max, object.Int("full_layers_max", std::nullopt));
  MS_ASSIGN_OR_RETURN(window_s, object.Number("window_s", std::nullopt));
  MS_ASSIGN_OR_RETURN(cool_down_s, object.Number("cool_down_s", std::nullopt));
  MS_ASSIGN_OR_RETURN(out.hysteresis, object.Number("hysteresis", std::nullopt));
  MS_ASSIGN_OR_RETURN(out.quality_min, object.Number("quality_min", std::nullopt));
  MS_ASSIGN_OR_RETURN(out.samples_min, object.Int("samples_min", std::nullopt));
  out.window = absl::Seconds(window_s);
  out.cool_down = absl::Seconds(cool_down_s);
  if (const absl::Status sound = CheckAutopilotTarget(out, layers); !sound.ok()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s", object.what(), std::string(sound.message())));
  }
  return out;
}

}  // namespace

absl::StatusOr<StandingTarget> ParseTarget(std::string_view text, const std::string& base_id,
                                           int32_t layers) {
  MS_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(text, kWhat));
  const JsonObject object(json, kWhat);
  MS_RETURN_IF_ERROR(CheckKeys(object, {"format", "base_id", "set_at", "target"}));
  MS_ASSIGN_OR_RETURN(const int32_t format, object.Int("format", std::nullopt));
  if (format != kFormat) {
    return object.Refuse("format", absl::StrFormat("version %d; %d is supported", format, kFormat));
  }
  MS_ASSIGN_OR_RETURN(const std::string base, object.String("base_id", ""));
  if (base != base_id) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s.base_id is '%s'; what is served has %s", kWhat, base.substr(0, 64), base_id));
  }
  StandingTarget out{.source = TargetSource::kFile};
  MS_ASSIGN_OR_RETURN(const std::string set_at, object.String("set_at", ""));
  if (!absl::ParseTime(absl::RFC3339_full, set_at, &out.set_at, nullptr)) {
    return object.Refuse("set_at", "is no time");
  }
  MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> target, object.Object("target"));
  if (!target.has_value()) return object.Refuse("target", "is missing");
  MS_ASSIGN_OR_RETURN(out.target, ReadTarget(*target, layers));
  return out;
}

std::string PrintTarget(const StandingTarget& standing, const std::string& base_id) {
  const AutopilotTarget& t = standing.target;
  const Json out = {
      {"format", kFormat},
      {"base_id", base_id},
      {"set_at", absl::FormatTime(absl::RFC3339_full, standing.set_at, absl::UTCTimeZone())},
      {"target",
       {{"enabled", t.enabled},
        {"tpot_ms", t.tpot_ms},
        {"percentile", t.percentile},
        {"full_layers_min", t.k_min},
        {"full_layers_max", t.k_max},
        {"window_s", absl::ToDoubleSeconds(t.window)},
        {"cool_down_s", absl::ToDoubleSeconds(t.cool_down)},
        {"hysteresis", t.hysteresis},
        {"quality_min", t.quality_min},
        {"samples_min", t.samples_min}}}};
  return out.dump(1) + "\n";
}

absl::StatusOr<StandingTarget> LoadTarget(const std::string& path, const std::string& base_id,
                                          int32_t layers) {
  MS_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kBytesMax));
  return ParseTarget(text, base_id, layers);
}

absl::Status SaveTarget(const std::string& path, const StandingTarget& standing,
                        const std::string& base_id) {
  return ReplaceFile(path, PrintTarget(standing, base_id),
                     "the file of morph.autopilot.target_file");
}

}  // namespace morphserve
