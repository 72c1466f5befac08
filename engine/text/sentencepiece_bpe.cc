#include "engine/text/sentencepiece_bpe.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

// A piece of k characters splits k - 1 ways, each half hashed: longer pieces would cost time
// quadratic in their length, and no trained vocabulary has them.
constexpr size_t kPieceBytesMax = 1024;

}  // namespace

absl::StatusOr<SentencePieceMerges> BuildSentencePieceMerges(const std::vector<std::string>& tokens,
                                                             const std::vector<bool>& in_model,
                                                             const std::vector<double>& scores) {
  MS_CHECK(tokens.size() == in_model.size() && tokens.size() == scores.size());
  SentencePieceMerges result;
  absl::flat_hash_map<std::string_view, int32_t> ids;
  std::vector<double> ranking;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!in_model[id]) continue;
    if (std::isnan(scores[id])) {
      return absl::InvalidArgumentError(absl::StrFormat("score of token %d is not a number", id));
    }
    if (tokens[id].size() > kPieceBytesMax) {
      return absl::InvalidArgumentError(absl::StrFormat("token %d has %d bytes; limit is %d", id,
                                                        tokens[id].size(), kPieceBytesMax));
    }
    ids.emplace(tokens[id], static_cast<int32_t>(id));
    ranking.push_back(scores[id]);
  }
  std::sort(ranking.begin(), ranking.end(), std::greater<>());
  ranking.erase(std::unique(ranking.begin(), ranking.end()), ranking.end());

  const size_t pieces = tokens.size();
  // Views into `tokens`: the vector of strings below may move while it grows.
  for (size_t id = 0; id < pieces; ++id) {
    if (!in_model[id]) continue;
    const std::string_view text = tokens[id];
    for (size_t i = 0; i < text.size();) {
      const std::string_view character = text.substr(i, Utf8Length(text[i]));
      const auto next = static_cast<int32_t>(pieces + result.characters_without_token.size());
      if (ids.emplace(character, next).second) {
        result.characters_without_token.emplace_back(character);
      }
      i += character.size();
    }
  }
  for (size_t id = 0; id < pieces; ++id) {
    if (!in_model[id] || tokens[id].empty()) continue;
    const std::string_view text = tokens[id];
    const auto better =
        std::lower_bound(ranking.begin(), ranking.end(), scores[id], std::greater<>());
    const auto rank = static_cast<int32_t>(better - ranking.begin());
    for (size_t cut = Utf8Length(text[0]); cut < text.size(); cut += Utf8Length(text[cut])) {
      const auto left = ids.find(text.substr(0, cut));
      const auto right = ids.find(text.substr(cut));
      if (left == ids.end() || right == ids.end()) continue;
      result.merges.push_back({left->second, right->second, rank, static_cast<int32_t>(id)});
    }
  }
  return result;
}

}  // namespace morphserve
