#include "engine/model/branches_lists.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

using Json = nlohmann::json;

constexpr size_t kRecallMax = 64;
constexpr size_t kNameBytesMax = 64;

// Selectors and the names of measurements: they end up in messages, metrics and answers.
bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= kNameBytesMax &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
         });
}

absl::StatusOr<std::string> Name(const JsonObject& object, const char* key) {
  MS_ASSIGN_OR_RETURN(std::string name, object.String(key, ""));
  if (!IsName(name)) {
    return object.Refuse(key, "not a name of lower-case letters, digits and _, 1 to 64 bytes");
  }
  return name;
}

// Distinct layers of the base, in the order of the file.
absl::StatusOr<std::vector<int32_t>> Layers(const Json& json, int32_t layers,
                                            const std::string& what) {
  const auto refuse = [&what](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat(what, ": ", why));
  };
  if (!json.is_array()) return refuse("not an array");
  std::vector<bool> seen(static_cast<size_t>(layers), false);
  std::vector<int32_t> out;
  for (const Json& item : json) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() >= static_cast<uint64_t>(layers)) {
      return refuse(absl::StrFormat("holds what is no layer of the base, which has %d", layers));
    }
    const auto layer = item.get<size_t>();
    if (seen[layer]) return refuse(absl::StrFormat("layer %u appears twice", layer));
    seen[layer] = true;
    out.push_back(static_cast<int32_t>(layer));
  }
  return out;
}

absl::StatusOr<std::vector<double>> Numbers(const Json& json, int32_t count, double low,
                                            double high, const std::string& what) {
  if (!json.is_array() || json.size() != static_cast<size_t>(count)) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: not an array of %d", what, count));
  }
  std::vector<double> out;
  for (const Json& item : json) {
    const double value = item.is_number() ? item.get<double>() : std::nan("");
    if (!(value >= low && value <= high)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s[%u]: not a number from %g to %g", what, out.size(), low, high));
    }
    out.push_back(value);
  }
  return out;
}

absl::StatusOr<double> NumberIn(const JsonObject& object, std::string_view key, double low,
                                double high) {
  MS_ASSIGN_OR_RETURN(const double value, object.Number(key, std::nullopt));
  if (value < low || value > high) {
    return object.Refuse(key, absl::StrFormat("%g; it may be %g to %g", value, low, high));
  }
  return value;
}

absl::Status ReadSets(const JsonObject& object, int32_t layers, BranchesRanking* ranking) {
  const Json& json = *object.Find("sets");
  if (!json.is_array() || json.empty()) return object.Refuse("sets", "not an array with members");
  size_t size = 0;
  for (const Json& item : json) {
    const std::string what = absl::StrFormat("%s.sets[%u]", object.what(), ranking->sets.size());
    MS_ASSIGN_OR_RETURN(std::vector<int32_t> set, Layers(item, layers, what));
    if (set.size() <= size) {
      return absl::InvalidArgumentError(what + ": sets are not of rising size from 1");
    }
    size = set.size();
    std::sort(set.begin(), set.end());
    ranking->sets.push_back(std::move(set));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> Seed(const JsonObject& object) {
  const Json* seed = object.Find("seed");
  if (seed == nullptr) return 0;
  if (!seed->is_number_unsigned() ||
      seed->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return object.Refuse("seed", "not a natural number");
  }
  return seed->get<int64_t>();
}

absl::StatusOr<BranchesRanking> ReadRanking(const JsonObject& object, int32_t layers) {
  MS_RETURN_IF_ERROR(CheckKeys(
      object, {"selector", "order", "sets", "gates", "context", "seed", "default", "stale"}));
  BranchesRanking out;
  MS_ASSIGN_OR_RETURN(out.selector, Name(object, "selector"));
  if (!object.Has("order") && !object.Has("sets")) {
    return object.Refuse("order", "order or sets are needed");
  }
  if (const Json* order = object.Find("order"); order != nullptr) {
    const std::string what = object.what() + ".order";
    MS_ASSIGN_OR_RETURN(out.order, Layers(*order, layers, what));
    if (out.order.size() != static_cast<size_t>(layers)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: %u layers; the base has %d", what, out.order.size(), layers));
    }
  }
  if (object.Has("sets")) MS_RETURN_IF_ERROR(ReadSets(object, layers, &out));
  if (const Json* gates = object.Find("gates"); gates != nullptr) {
    MS_ASSIGN_OR_RETURN(out.gates, Numbers(*gates, layers, 0, 1, object.what() + ".gates"));
  }
  MS_ASSIGN_OR_RETURN(out.context, object.Int("context", 0));
  if (out.context < 0) return object.Refuse("context", "negative");
  MS_ASSIGN_OR_RETURN(out.seed, Seed(object));
  MS_ASSIGN_OR_RETURN(out.is_default, object.Bool("default", false));
  MS_ASSIGN_OR_RETURN(out.stale, object.Bool("stale", false));
  if (out.is_default && out.order.empty()) {
    return object.Refuse("default", "the default ranking needs an order");
  }
  return out;
}

absl::StatusOr<BranchesQuality> ReadQuality(const JsonObject& object, int32_t layers) {
  MS_RETURN_IF_ERROR(
      CheckKeys(object, {"selector", "k", "layers", "kl", "ppl", "full_ppl", "recall"}));
  BranchesQuality out;
  MS_ASSIGN_OR_RETURN(out.selector, Name(object, "selector"));
  MS_ASSIGN_OR_RETURN(out.k, object.Int("k", std::nullopt));
  const Json* full = object.Find("layers");
  if (full == nullptr) return object.Refuse("layers", "missing");
  MS_ASSIGN_OR_RETURN(out.layers, Layers(*full, layers, object.what() + ".layers"));
  std::sort(out.layers.begin(), out.layers.end());
  if (out.k < 0 || out.layers.size() != static_cast<size_t>(out.k)) {
    return object.Refuse("k", absl::StrFormat("%d; it names %u layers", out.k, out.layers.size()));
  }
  constexpr double kHuge = 1e12;
  MS_ASSIGN_OR_RETURN(out.kl, NumberIn(object, "kl", 0, kHuge));
  MS_ASSIGN_OR_RETURN(out.ppl, NumberIn(object, "ppl", 1, kHuge));
  if (object.Has("full_ppl")) {
    MS_ASSIGN_OR_RETURN(out.full_ppl, NumberIn(object, "full_ppl", 1, kHuge));
  }
  MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> recall, object.Object("recall"));
  if (!recall.has_value()) return out;
  if (recall->json().size() > kRecallMax) return object.Refuse("recall", "more than 64 members");
  for (const auto& [name, value] : recall->json().items()) {
    if (!IsName(name)) return object.Refuse("recall", "it has a member with no proper name");
    MS_ASSIGN_OR_RETURN(const double share, NumberIn(*recall, name, 0, 1));
    out.recall.emplace_back(name, share);
  }
  return out;
}

// The array of objects `key`, each through `read`.
template <typename T, typename Read>
absl::Status ReadArray(const JsonObject& object, const char* key, size_t count_max, Read read,
                       std::vector<T>* out) {
  const Json* json = object.Find(key);
  if (json == nullptr) return absl::OkStatus();
  if (!json->is_array() || json->size() > count_max) {
    return object.Refuse(key, absl::StrFormat("not an array of at most %u", count_max));
  }
  for (const Json& item : *json) {
    const std::string what = absl::StrFormat("%s.%s[%u]", object.what(), key, out->size());
    if (!item.is_object()) return absl::InvalidArgumentError(what + ": not an object");
    MS_ASSIGN_OR_RETURN(T value, read(JsonObject(item, what)));
    out->push_back(std::move(value));
  }
  return absl::OkStatus();
}

absl::Status ReadInteraction(const JsonObject& object, int32_t layers, BranchesHeader* header) {
  const Json* json = object.Find("Q");
  if (json == nullptr) return absl::OkStatus();
  if (!json->is_array() || json->size() != static_cast<size_t>(layers)) {
    return object.Refuse("Q", absl::StrFormat("not an array of %d rows", layers));
  }
  constexpr double kHuge = 1e30;
  for (const Json& row : *json) {
    const std::string what = absl::StrFormat("%s.Q[%u]", object.what(), header->interaction.size());
    MS_ASSIGN_OR_RETURN(std::vector<double> numbers, Numbers(row, layers, -kHuge, kHuge, what));
    header->interaction.push_back(std::move(numbers));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckKeys(const JsonObject& object, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.json().items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      return object.Refuse(key, "unknown member");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadSelectionLists(const JsonObject& object, int32_t layers, BranchesHeader* header) {
  MS_RETURN_IF_ERROR(ReadArray(
      object, "rankings", kRankingsMax,
      [layers](const JsonObject& item) { return ReadRanking(item, layers); }, &header->rankings));
  MS_RETURN_IF_ERROR(ReadInteraction(object, layers, header));
  return ReadArray(
      object, "quality", kQualityMax,
      [layers](const JsonObject& item) { return ReadQuality(item, layers); }, &header->quality);
}

absl::Status ReadBranchesLists(const JsonObject& object, int32_t layers, BranchesHeader* header) {
  MS_RETURN_IF_ERROR(ReadSelectionLists(object, layers, header));
  const auto defaults =
      std::count_if(header->rankings.begin(), header->rankings.end(),
                    [](const BranchesRanking& ranking) { return ranking.is_default; });
  if (!header->rankings.empty() && defaults != 1) {
    return object.Refuse("rankings",
                         absl::StrFormat("%d are the default; one has to be", defaults));
  }
  return absl::OkStatus();
}

}  // namespace morphserve
