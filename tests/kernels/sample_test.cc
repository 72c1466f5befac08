// Sampling against a plain fp64 statement of the contract over thousands of rows: dense ties, cuts
// of every kind, masks and penalties. A wrong order among equal logits, a cut off by one, a lazily
// sorted prefix that misses a candidate, or a random number that depends on anything but its key
// shows here.
#include "kernels/sample.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/philox.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/sample_reference.h"

namespace morphserve::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

SampleArgs ArgsFor(std::vector<float>* logits) {
  SampleArgs args;
  args.logits = logits->data();
  args.vocab = args.piece_count = static_cast<int32_t>(logits->size());
  return args;
}

SampleResult Draw(std::vector<float> logits, SampleArgs args) {
  SampleScratch scratch;
  args.logits = logits.data();
  args.vocab = static_cast<int32_t>(logits.size());
  if (args.piece_count == 0) args.piece_count = args.vocab;
  return cpu::Sample(args, &scratch);
}

TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, TheUniformUsesEveryBitOfItsKeyAndStaysBelowOne) {
  EXPECT_EQ(PhiloxUniform(0, 0, 0), static_cast<float>(0x6627e8) / 16777216.0f);
  EXPECT_NE(PhiloxUniform(1, 0, 0), PhiloxUniform(uint64_t{1} << 32, 0, 0));
  EXPECT_NE(PhiloxUniform(1, 2, 3), PhiloxUniform(1, 3, 2));
  double sum = 0;
  for (uint32_t i = 0; i < 20000; ++i) {
    const float u = PhiloxUniform(42, i, i % 3);
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    sum += static_cast<double>(u);
  }
  EXPECT_NEAR(sum / 20000, 0.5, 0.01);  // Five standard deviations.
}

TEST(SampleGreedy, FindsTheFirstOfTheLargestAtEveryPlaceAndSizeOnEveryTarget) {
  ForEachTarget([&](const std::string& target, bool) {
    for (size_t vocab = 1; vocab <= 40; ++vocab) {
      for (size_t place = 0; place < vocab; ++place) {
        std::vector<float> logits(vocab, -3.0f);
        logits[place] = 2.0f;
        logits[vocab - 1] = 2.0f;  // A tie with the last one.
        SampleArgs args;
        args.temperature = 0;
        ASSERT_EQ(Draw(logits, args).token, static_cast<int32_t>(place)) << target << vocab;
      }
    }
  });
}

TEST(SampleGreedy, NaNAndInfinityAreReportedWhereverTheyAre) {
  for (size_t vocab : {1, 7, 16, 33}) {
    for (size_t place = 0; place < vocab; ++place) {
      for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
        std::vector<float> logits(vocab, 1.0f);
        logits[place] = bad;
        for (float temperature : {0.0f, 1.0f}) {
          SampleArgs args;
          args.temperature = temperature;
          const SampleResult result = Draw(logits, args);
          EXPECT_FALSE(result.finite);
          EXPECT_EQ(result.token, -1);
        }
      }
    }
  }
}

TEST(Sample, NoSurvivorIsReported) {
  SampleArgs args;
  EXPECT_FALSE(Draw(std::vector<float>(9, -kInf), args).finite);
  const std::vector<int32_t> all = {0, 1, 2}, unknown = {-5, 77};
  args.banned = all;
  EXPECT_FALSE(Draw({1, 2, 3}, args).finite);
  args.banned = {};
  args.allowed = unknown;
  EXPECT_FALSE(Draw({1, 2, 3}, args).finite);
}

TEST(Sample, RowsOfTheHeadWithoutATokenAreNeverChosen) {
  SampleArgs args;
  args.piece_count = 5;
  args.temperature = 0;
  EXPECT_EQ(Draw({0, 1, 2, 1, 0, 9, 9, 9}, args).token, 2);
  args.temperature = 5;
  for (uint32_t position = 0; position < 200; ++position) {
    args.position = position;
    EXPECT_LT(Draw({0, 1, 2, 1, 0, 9, 9, 9}, args).token, 5);
  }
}

// Logits of several kinds: smooth, coarse (many ties), all equal, one giant, with -inf among them.
std::vector<float> LogitsOfKind(int kind, size_t vocab, Numbers* numbers) {
  std::vector<float> logits = numbers->Normals(vocab, 3.0f);
  for (float& l : logits) {
    if (kind == 1) l = std::round(l);
    if (kind == 2) l = 0.25f;
    if (kind == 4 && numbers->Below(3) == 0) l = -kInf;
    if (kind == 5) l *= 1e4f;
  }
  if (kind == 3) logits[vocab / 2] = 60.0f;
  logits[0] = std::max(logits[0], -50.0f);
  return logits;
}

TEST(Sample, AgreesWithThePlainDefinitionForEveryCut) {
  struct Cut {
    int32_t top_k;
    float top_p, min_p;
  };
  const Cut cuts[] = {{0, 1, 0},     {1, 1, 0},       {5, 1, 0},        {40, 0.9f, 0},
                      {0, 0.95f, 0}, {0, 0.5f, 0.1f}, {0, 1, 0.05f},    {100, 0.99f, 0.01f},
                      {0, 0.0f, 0},  {100000, 1, 0},  {0, 0.99999f, 0}, {3, 1, 0.9f},
                      {0, 1, 1.0f}};  // Only ties with the best: p < min_p p[0] is strict.
  int checked = 0, close = 0;
  ForEachTarget([&](const std::string& target, bool) {
    Numbers numbers(77);
    for (size_t vocab : {1, 3, 63, 64, 65, 1000, 5003}) {
      for (int kind = 0; kind < 6; ++kind) {
        for (const Cut& cut : cuts) {
          const std::vector<float> logits = LogitsOfKind(kind, vocab, &numbers);
          SampleArgs args;
          args.temperature = kind == 5 ? 1000.0f : 0.5f + static_cast<float>(numbers.Below(4)) / 2;
          args.top_k = cut.top_k;
          args.top_p = cut.top_p;
          args.min_p = cut.min_p;
          args.seed = numbers.Bits();
          args.position = static_cast<uint32_t>(numbers.Bits());
          args.choice = 3;
          std::vector<float> divided = logits;
          for (float& l : divided) l /= args.temperature;
          const auto survivors = reference::Survivors(
              divided, cut.top_k, static_cast<double>(cut.top_p), static_cast<double>(cut.min_p));
          const SampleResult result = Draw(logits, args);
          ASSERT_TRUE(result.finite);
          const auto u = static_cast<double>(PhiloxUniform(args.seed, args.position, args.choice));
          // A survivor more or less at a threshold moves every interval by its probability, about
          // 1e-6 relative to rounding; the few draws that fall so close to an edge are counted.
          const double margin = reference::Margin(survivors, result.token, u);
          ++checked;
          close += margin < 0;
          ASSERT_GT(margin, -2e-3) << target << " vocab " << vocab << " kind " << kind << " top_k "
                                   << cut.top_k << " top_p " << cut.top_p << " min_p " << cut.min_p;
        }
      }
    }
  });
  EXPECT_GT(checked, 1000);
  EXPECT_LE(close, checked / 200);
}

TEST(Sample, DrawsEveryTokenAsOftenAsItsProbabilitySays) {
  const std::vector<float> logits = {1.0f, 3.0f, 2.0f, 3.0f, -1.0f};
  const auto survivors = reference::Survivors(logits, 0, 1, 0);
  std::vector<int> counts(5, 0);
  constexpr int kDraws = 20000;
  SampleArgs args;
  args.seed = 9;
  for (int i = 0; i < kDraws; ++i) {
    args.position = static_cast<uint32_t>(i);
    ++counts[static_cast<size_t>(Draw(logits, args).token)];
  }
  for (const auto& s : survivors) {
    const double expected = s.probability * kDraws;
    EXPECT_NEAR(counts[static_cast<size_t>(s.id)], expected, 5 * std::sqrt(expected) + 1);
  }
}

TEST(Sample, BiasBansAndAllowedIdsComeBeforePenaltiesAndTemperature) {
  SampleArgs args;
  args.temperature = 0;
  const std::vector<std::pair<int32_t, float>> bias = {{0, 10.0f}, {2, -10.0f}, {99, 5.0f}};
  args.logit_bias = bias;
  EXPECT_EQ(Draw({1, 2, 3, 4}, args).token, 0);
  const std::vector<int32_t> banned = {0, -1, 400};
  args.banned = banned;
  EXPECT_EQ(Draw({1, 2, 3, 4}, args).token, 3);
  const std::vector<int32_t> allowed = {0, 2, 1, 1};
  args.allowed = allowed;
  EXPECT_EQ(Draw({1, 2, 3, 4}, args).token, 1);  // 0 is banned, 2 is biased down.
  // Repetition acts on the biased value: 10 + 1 halves below 6.
  args = {};
  args.temperature = 0;
  args.logit_bias = bias;
  const std::vector<TokenCount> seen = {{0, 0}};
  args.seen = seen;
  args.repetition_penalty = 2;
  EXPECT_EQ(Draw({1, 2, 3, 6}, args).token, 3);
  EXPECT_EQ(Draw({1, 2, 3, 5}, args).token, 0);
}

TEST(Sample, PenaltiesFollowTheirFormulas) {
  SampleArgs args;
  args.temperature = 0;
  args.logprobs = -1;
  // A positive logit shrinks, a negative one grows more negative.
  args.repetition_penalty = 1.5f;
  const std::vector<TokenCount> both = {{0, 1}, {1, 2}};
  args.seen = both;
  EXPECT_EQ(Draw({3.0f, 2.9f, 2.1f}, args).token, 2);
  EXPECT_EQ(Draw({-2.0f, -3.0f, -2.9f}, args).token, 2);
  EXPECT_EQ(Draw({-2.0f, -3.0f, -3.1f}, args).token, 0);
  // Frequency counts, presence does not; prompt-only ids are spared.
  args.repetition_penalty = 1;
  args.frequency_penalty = 1;
  args.presence_penalty = 0.5f;
  EXPECT_EQ(Draw({3.0f, 4.0f, 1.4f}, args).token, 0);    // 1.5, 1.5 (tie), 1.4
  EXPECT_EQ(Draw({3.0f, 4.125f, 1.6f}, args).token, 1);  // 1.5, 1.625, 1.6
  const std::vector<TokenCount> prompt_only = {{0, 0}, {1, 0}, {-4, 1}, {50, 1}};
  args.seen = prompt_only;
  EXPECT_EQ(Draw({3.0f, 2.9f, 2.8f}, args).token, 0);
}

TEST(Sample, TheSmallestTemperaturesAreGreedy) {
  SampleArgs args;
  for (float temperature : {1e-38f, 1e-45f, 1e-30f}) {
    args.temperature = temperature;
    EXPECT_EQ(Draw({5.0f, 70.0f, 69.0f, 70.0f}, args).token, 1);
    EXPECT_EQ(Draw({-5e9f, -7.0f, -6.5f}, args).token, 2);
  }
}

TEST(Sample, OneSeedGivesOneTokenWhateverTheScratchHeld) {
  Numbers numbers(5);
  const std::vector<float> logits = numbers.Normals(3000, 2.0f);
  SampleScratch used;
  for (uint32_t i = 0; i < 30; ++i) {
    std::vector<float> row = logits;
    SampleArgs args = ArgsFor(&row);
    args.seed = i;
    args.logprobs = static_cast<int32_t>(i % 4);
    const SampleResult first = cpu::Sample(args, &used);
    const SampleResult again = Draw(logits, args);
    EXPECT_EQ(first.token, again.token);
    EXPECT_EQ(first.logprob, again.logprob);
  }
}

// log-softmax in fp64.
std::vector<double> Logprobs(const std::vector<float>& logits) {
  const auto most = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (float l : logits) sum += std::exp(static_cast<double>(l) - most);
  std::vector<double> out;
  for (float l : logits) out.push_back(static_cast<double>(l) - most - std::log(sum));
  return out;
}

TEST(Sample, LogprobsAreTheModelsOwnUntouchedByMasksAndTemperature) {
  Numbers numbers(6);
  for (size_t vocab : {1, 5, 17, 300, 49152}) {
    std::vector<float> logits = numbers.Normals(vocab, 4.0f);
    if (vocab >= 17) logits[3] = logits[11] = logits[7] = 30.0f;  // Ties at the top.
    const auto expected = Logprobs(logits);
    SampleArgs args;
    args.temperature = 0.3f;
    args.logprobs = 20;
    args.seed = 4;
    const std::vector<std::pair<int32_t, float>> bias = {{0, 100.0f}};
    args.logit_bias = bias;
    const SampleResult result = Draw(logits, args);
    ASSERT_EQ(result.token, 0);
    EXPECT_NEAR(result.logprob, expected[0], 1e-5);
    std::vector<int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    EXPECT_EQ(order[static_cast<size_t>(result.rank - 1)], 0);
    ASSERT_EQ(result.top.size(), std::min<size_t>(20, vocab));
    for (size_t i = 0; i < result.top.size(); ++i) {
      EXPECT_EQ(result.top[i].id, order[i]);
      EXPECT_NEAR(result.top[i].logprob, expected[static_cast<size_t>(order[i])], 1e-5);
    }
  }
}

TEST(Sample, RowsWithoutATokenCountInTheSumButAreNotListed) {
  const std::vector<float> logits = {1, 2, 0, 3, 3};
  SampleScratch scratch;
  const SampleResult result = cpu::ScoreToken(logits.data(), 5, 3, 0, 10, &scratch);
  const auto expected = Logprobs(logits);
  EXPECT_NEAR(result.logprob, expected[0], 1e-6);
  EXPECT_EQ(result.rank, 2);
  ASSERT_EQ(result.top.size(), 3u);
  EXPECT_EQ(result.top[0].id, 1);
}

TEST(ScoreToken, RanksTiesBySmallerIdAndRefusesUnknownIds) {
  const std::vector<float> logits = {2, 5, 5, 1, 5};
  SampleScratch scratch;
  const std::vector<int32_t> ranks = {4, 1, 2, 5, 3};
  for (int32_t id = 0; id < 5; ++id) {
    const SampleResult result = cpu::ScoreToken(logits.data(), 5, 5, id, 0, &scratch);
    EXPECT_EQ(result.token, id);
    EXPECT_EQ(result.rank, ranks[static_cast<size_t>(id)]);
    EXPECT_TRUE(result.top.empty());
  }
  EXPECT_FALSE(cpu::ScoreToken(logits.data(), 5, 5, 5, 0, &scratch).finite);
  EXPECT_FALSE(cpu::ScoreToken(logits.data(), 5, 5, -1, 0, &scratch).finite);
  EXPECT_FALSE(cpu::ScoreToken(logits.data(), 0, 0, 0, 0, &scratch).finite);
}

}  // namespace
}  // namespace morphserve::kernels
