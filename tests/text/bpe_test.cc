// The merge loop against the textbook one: scan all pairs, merge the best, start again. A wrong
// tie, a stale candidate taken or a neighbour not looked at gives another row of ids.

#include "engine/text/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <string>
#include <utility>

#include "engine/text/sentencepiece_bpe.h"

namespace morphserve {
namespace {

using Ids = std::vector<int32_t>;

// A vocabulary over a few letters, built by random merges.
BpeSpec RandomSpec(std::mt19937* random, int letters, int merges) {
  BpeSpec spec;
  for (int i = 0; i < letters; ++i) spec.tokens.emplace_back(1, static_cast<char>('a' + i));
  std::map<std::pair<int32_t, int32_t>, bool> used;
  for (int tries = 0; tries < merges * 4 && static_cast<int>(spec.merges.size()) < merges;
       ++tries) {
    const auto left = static_cast<int32_t>((*random)() % spec.tokens.size());
    const auto right = static_cast<int32_t>((*random)() % spec.tokens.size());
    const std::string joined =
        spec.tokens[static_cast<size_t>(left)] + spec.tokens[static_cast<size_t>(right)];
    if (joined.size() > 12 || used[{left, right}]) continue;
    used[{left, right}] = true;
    // One text is one token, however it came about.
    auto known = std::find(spec.tokens.begin(), spec.tokens.end(), joined);
    const auto result = static_cast<int32_t>(known - spec.tokens.begin());
    if (known == spec.tokens.end()) spec.tokens.push_back(joined);
    spec.merges.push_back({left, right, static_cast<int32_t>(spec.merges.size()), result});
  }
  spec.in_model.assign(spec.tokens.size(), true);
  return spec;
}

Ids TextbookEncode(const std::vector<BpeMerge>& merges, Ids ids) {
  while (true) {
    const BpeMerge* best = nullptr;
    size_t at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (const BpeMerge& merge : merges) {
        if (merge.left != ids[i] || merge.right != ids[i + 1]) continue;
        if (best == nullptr || merge.rank < best->rank) {
          best = &merge;
          at = i;
        }
      }
    }
    if (best == nullptr) return ids;
    ids[at] = best->result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

std::string RandomText(std::mt19937* random, int letters, size_t length) {
  std::string text;
  for (size_t i = 0; i < length; ++i) {
    text.push_back(static_cast<char>('a' + (*random)() % static_cast<unsigned>(letters)));
  }
  return text;
}

TEST(Bpe, MergesInTheOrderOfTheTextbookLoop) {
  std::mt19937 random(17);
  for (int round = 0; round < 60; ++round) {
    const int letters = 2 + round % 4;
    const BpeSpec spec = RandomSpec(&random, letters, 5 + round);
    const auto bpe = Bpe::Create(spec);
    BpeScratch scratch;
    for (size_t length = 1; length < 60; length += 1 + length / 8) {
      const std::string text = RandomText(&random, letters, length);
      Ids start;
      for (const char c : text) start.push_back(c - 'a');
      Ids ids;
      EXPECT_EQ(bpe->Encode(text, false, &scratch, &ids), 0U);
      EXPECT_EQ(ids, TextbookEncode(spec.merges, start)) << text;
    }
  }
}

// SentencePiece's own loop: any two neighbours whose joined text is a piece, best score first, then
// leftmost.
Ids ScoreEncode(const std::vector<std::string>& tokens, const std::vector<double>& scores,
                std::vector<std::string> symbols) {
  const auto find = [&](const std::string& text) {
    return std::find(tokens.begin(), tokens.end(), text) - tokens.begin();
  };
  while (true) {
    double best = 0;
    size_t at = symbols.size();
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto id = static_cast<size_t>(find(symbols[i] + symbols[i + 1]));
      if (id == tokens.size()) continue;
      if (at == symbols.size() || scores[id] > best) {
        best = scores[id];
        at = i;
      }
    }
    if (at == symbols.size()) break;
    symbols[at] += symbols[at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  Ids ids;
  for (const std::string& symbol : symbols) {
    const auto id = static_cast<size_t>(find(symbol));
    ids.push_back(id == tokens.size() ? -1 : static_cast<int32_t>(id));
  }
  return ids;
}

TEST(Bpe, MergesSentencePieceScoresAsSentencePieceDoes) {
  std::mt19937 random(23);
  for (int round = 0; round < 60; ++round) {
    const int letters = 2 + round % 4;
    BpeSpec spec = RandomSpec(&random, letters, 8 + round);
    // Pieces whose letters are no pieces: they may merge all the same.
    spec.in_model[0] = round % 3 != 0;
    std::vector<double> scores;
    for (size_t id = 0; id < spec.tokens.size(); ++id)
      scores.push_back(-static_cast<double>(random() % 9));
    auto merges = BuildSentencePieceMerges(spec.tokens, spec.in_model, scores);
    ASSERT_TRUE(merges.ok());
    std::vector<std::string> known = spec.tokens;
    if (!spec.in_model[0]) known[0] = "not a piece";
    spec.merges = merges->merges;
    spec.characters_without_token = merges->characters_without_token;
    spec.fallback_last = true;
    const auto bpe = Bpe::Create(spec);
    BpeScratch scratch;
    for (size_t length = 1; length < 50; length += 1 + length / 8) {
      const std::string text = RandomText(&random, letters, length);
      std::vector<std::string> symbols;
      for (const char c : text) symbols.emplace_back(1, c);
      Ids expected = ScoreEncode(known, scores, symbols);
      const auto dropped = static_cast<size_t>(std::count(expected.begin(), expected.end(), -1));
      std::erase(expected, -1);
      Ids ids;
      EXPECT_EQ(bpe->Encode(text, false, &scratch, &ids), dropped);
      EXPECT_EQ(ids, expected) << text;
    }
  }
}

TEST(Bpe, EncodesOnePieceOfAHundredThousandLettersInOneGo) {
  BpeSpec spec;
  spec.tokens = {"a", "b", "aa", "ab", "aaaa", "aab"};
  spec.in_model.assign(spec.tokens.size(), true);
  spec.merges = {{0, 0, 0, 2}, {0, 1, 1, 3}, {2, 2, 2, 4}, {0, 3, 3, 5}};
  const auto bpe = Bpe::Create(spec);
  BpeScratch scratch;
  std::mt19937 random(5);
  for (const std::string& text : {std::string(100000, 'a'), RandomText(&random, 2, 100000)}) {
    Ids ids;
    EXPECT_EQ(bpe->Encode(text, false, &scratch, &ids), 0U);
    EXPECT_LT(ids.size(), 75000U);
    std::string joined;
    for (const int32_t id : ids) joined += spec.tokens[static_cast<size_t>(id)];
    EXPECT_EQ(joined, text);
  }
}

TEST(Bpe, ProtectedIdsAreOutOfReachOnlyWhenAsked) {
  BpeSpec spec;
  spec.tokens = {"<", "s", ">", "s>", "<s>"};
  spec.in_model.assign(5, true);
  spec.merges = {{1, 2, 0, 3}, {0, 3, 1, 4}};
  spec.protected_ids = {4};
  spec.ignore_merges = true;
  const auto bpe = Bpe::Create(spec);
  BpeScratch scratch;
  EXPECT_TRUE(bpe->protection_matters());
  EXPECT_EQ(bpe->FindWhole("<s>", false, &scratch), 4);
  EXPECT_EQ(bpe->FindWhole("<s>", true, &scratch), std::nullopt);
  Ids open;
  Ids safe;
  bpe->Encode("<s>", false, &scratch, &open);
  bpe->Encode("<s>", true, &scratch, &safe);
  EXPECT_EQ(open, Ids{4});
  EXPECT_EQ(safe, (Ids{0, 3}));
}

TEST(SentencePieceMerges, RefusesAScoreThatIsNotANumber) {
  EXPECT_FALSE(BuildSentencePieceMerges({"a"}, {true}, {std::nan("")}).ok());
}

}  // namespace
}  // namespace morphserve
