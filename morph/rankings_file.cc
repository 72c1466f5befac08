#include "morph/rankings_file.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/file_reader.h"
#include "engine/loader/json_text.h"
#include "engine/model/branches_lists.h"
#include "engine/model/stored_plans.h"
#include "morph/replace_file.h"

namespace morphserve {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kFormat = 1;
constexpr int64_t kBytesMax = int64_t{64} << 20;
constexpr char kWhat[] = "rankings file";

Json JsonOf(const BranchesRanking& ranking) {
  Json out = {{"selector", ranking.selector}};
  if (!ranking.order.empty()) out["order"] = ranking.order;
  if (!ranking.sets.empty()) out["sets"] = ranking.sets;
  if (!ranking.gates.empty()) out["gates"] = ranking.gates;
  out["context"] = ranking.context;
  out["seed"] = ranking.seed;
  return out;
}

Json JsonOf(const BranchesQuality& row) {
  Json out = {{"selector", row.selector}, {"k", row.k},
              {"layers", row.layers},     {"kl", row.kl},
              {"ppl", row.ppl},           {"recall", Json::object()}};
  if (row.full_ppl > 0) out["full_ppl"] = row.full_ppl;
  for (const auto& [test, share] : row.recall) out["recall"][test] = share;
  return out;
}

Json JsonOf(const RankingLists& lists) {
  Json out = {{"rankings", Json::array()}};
  for (const BranchesRanking& ranking : lists.rankings) out["rankings"].push_back(JsonOf(ranking));
  if (!lists.interaction.empty()) out["Q"] = lists.interaction;
  out["quality"] = Json::array();
  for (const BranchesQuality& row : lists.quality) out["quality"].push_back(JsonOf(row));
  return out;
}

absl::Status CheckId(const JsonObject& object, const char* field, const Sha256Digest& id) {
  MS_ASSIGN_OR_RETURN(const std::string found, object.String(field, ""));
  if (found == HexDigest(id)) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrFormat("%s.%s is '%s'; what is served has %s",
                                                       object.what(), field, found.substr(0, 64),
                                                       HexDigest(id)));
}

}  // namespace

void MergeLists(RankingLists newer, size_t rankings_max, size_t quality_max, RankingLists* lists) {
  for (BranchesRanking& ranking : newer.rankings) {
    std::erase_if(lists->rankings, [&ranking](const BranchesRanking& old) {
      return RankingName(old) == RankingName(ranking);
    });
    lists->rankings.push_back(std::move(ranking));
  }
  for (BranchesQuality& row : newer.quality) {
    std::erase_if(lists->quality,
                  [&row](const BranchesQuality& old) { return old.layers == row.layers; });
    lists->quality.push_back(std::move(row));
  }
  if (!newer.interaction.empty()) lists->interaction = std::move(newer.interaction);
  const auto keep_newest = [](auto* list, size_t count_max) {
    if (list->size() <= count_max) return;
    list->erase(list->begin(), list->end() - static_cast<ptrdiff_t>(count_max));
  };
  keep_newest(&lists->rankings, rankings_max);
  keep_newest(&lists->quality, quality_max);
}

std::string PrintLists(const RankingLists& lists) { return JsonOf(lists).dump(1); }

absl::StatusOr<RankingLists> ParseRankings(std::string_view text, const RankingsKey& key,
                                           int32_t layers) {
  MS_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(text, kWhat));
  const JsonObject object(json, kWhat);
  MS_RETURN_IF_ERROR(
      CheckKeys(object, {"format", "base_id", "branches_id", "rankings", "Q", "quality"}));
  MS_ASSIGN_OR_RETURN(const int32_t format, object.Int("format", std::nullopt));
  if (format != kFormat) {
    return object.Refuse("format", absl::StrFormat("version %d; %d is supported", format, kFormat));
  }
  MS_RETURN_IF_ERROR(CheckId(object, "base_id", key.base_id));
  MS_RETURN_IF_ERROR(CheckId(object, "branches_id", key.branches_id));
  BranchesHeader header;
  MS_RETURN_IF_ERROR(ReadSelectionLists(object, layers, &header));
  for (BranchesRanking& ranking : header.rankings) {
    if (ranking.is_default) {
      return object.Refuse("rankings", "the default ranking is the branches file's");
    }
    ranking.here = true;
  }
  for (BranchesQuality& row : header.quality) row.here = true;
  return RankingLists{.rankings = std::move(header.rankings),
                      .interaction = std::move(header.interaction),
                      .quality = std::move(header.quality)};
}

std::string PrintRankings(const RankingsKey& key, const RankingLists& lists) {
  Json out = {{"format", kFormat},
              {"base_id", HexDigest(key.base_id)},
              {"branches_id", HexDigest(key.branches_id)}};
  out.update(JsonOf(lists));
  return out.dump() + "\n";
}

absl::StatusOr<RankingLists> LoadRankings(const std::string& path, const RankingsKey& key,
                                          int32_t layers) {
  MS_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kBytesMax));
  return ParseRankings(text, key, layers);
}

absl::Status SaveRankings(const std::string& path, const RankingsKey& key,
                          const RankingLists& lists) {
  return ReplaceFile(path, PrintRankings(key, lists), "the file of morph.rankings_file");
}

}  // namespace morphserve
