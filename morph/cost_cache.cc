#include "morph/cost_cache.h"

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/file_reader.h"
#include "engine/loader/json_text.h"
#include "morph/replace_file.h"

namespace morphserve {
namespace {

constexpr char kWhat[] = "cost cache";
constexpr int32_t kFormat = 1;
constexpr int64_t kBytesMax = int64_t{1} << 20;
constexpr size_t kPointsMax = 4096;
constexpr double kMsMax = 1e7;

absl::StatusOr<CostPoint> ParsePoint(const nlohmann::json& value) {
  if (!value.is_object()) return absl::InvalidArgumentError("cost cache.points holds no objects");
  const JsonObject object(value, "cost cache.points");
  CostPoint point;
  MS_ASSIGN_OR_RETURN(point.prefill, object.Bool("prefill", false));
  MS_ASSIGN_OR_RETURN(point.full_layers, object.Int("full_layers", std::nullopt));
  MS_ASSIGN_OR_RETURN(point.rows, object.Int("rows", std::nullopt));
  MS_ASSIGN_OR_RETURN(point.context, object.Number("context", std::nullopt));
  MS_ASSIGN_OR_RETURN(point.ms, object.Number("ms", std::nullopt));
  if (!(point.ms > 0 && point.ms <= kMsMax)) return object.Refuse("ms", "is out of range");
  if (!(point.context >= 0 && point.context <= kMsMax)) {
    return object.Refuse("context", "is out of range");
  }
  return point;
}

}  // namespace

absl::StatusOr<CostModel> ParseCosts(std::string_view text, const CostKey& key, int32_t layers) {
  MS_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(text, kWhat));
  const JsonObject object(json, kWhat);
  MS_ASSIGN_OR_RETURN(const int32_t format, object.Int("format", std::nullopt));
  if (format != kFormat) return object.Refuse("format", "is not 1");
  const std::pair<const char*, const std::string*> parts[] = {{"plan_id", &key.plan_id},
                                                              {"device", &key.device},
                                                              {"version", &key.version},
                                                              {"shape", &key.shape}};
  for (const auto& [name, wanted] : parts) {
    MS_ASSIGN_OR_RETURN(const std::string found, object.String(name, ""));
    if (found != *wanted) {
      return absl::FailedPreconditionError(absl::StrFormat("cost cache is of another %s", name));
    }
  }
  const nlohmann::json* list = object.Find("points");
  if (list == nullptr || !list->is_array() || list->size() > kPointsMax) {
    return object.Refuse("points", "is no list of measured steps");
  }
  std::vector<CostPoint> points;
  for (const nlohmann::json& value : *list) {
    MS_ASSIGN_OR_RETURN(const CostPoint point, ParsePoint(value));
    points.push_back(point);
  }
  auto model = CostModel::Fit(layers, std::move(points));
  if (!model.ok()) return absl::InvalidArgumentError(model.status().message());
  return model;
}

absl::StatusOr<CostModel> LoadCosts(const std::string& path, const CostKey& key, int32_t layers) {
  MS_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kBytesMax));
  return ParseCosts(text, key, layers);
}

std::string PrintCosts(const CostKey& key, const CostModel& model) {
  nlohmann::ordered_json json = {
      {"format", kFormat},    {"plan_id", key.plan_id},
      {"device", key.device}, {"version", key.version},
      {"shape", key.shape},   {"points", nlohmann::ordered_json::array()}};
  for (const CostPoint& point : model.points()) {
    json["points"].push_back({{"prefill", point.prefill},
                              {"full_layers", point.full_layers},
                              {"rows", point.rows},
                              {"context", point.context},
                              {"ms", point.ms}});
  }
  // Device names come from the system: what is not UTF-8 in them must not throw.
  return json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

absl::Status SaveCosts(const std::string& path, const CostKey& key, const CostModel& model) {
  return ReplaceFile(path, PrintCosts(key, model), "the file of morph.cost_cache");
}

}  // namespace morphserve
