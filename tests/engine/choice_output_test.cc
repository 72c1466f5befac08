// Catches: text that leaks part of a stop string, a wrong reason, ids that end too early, counts
// that penalties would get wrong.
#include "engine/sampling/choice_output.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/engine/fake_tokenizer.h"

namespace morphserve {
namespace {

struct Outcome {
  std::string text;
  std::optional<FinishedEvent> finished;
  int32_t taken = 0;
};

// Feeds the bytes of `text` (then `after`) until the choice ends.
Outcome Feed(const Request& request, const std::string& text, std::vector<int32_t> after = {}) {
  static const FakeTokenizer tokenizer;
  ChoiceOutput output(request, &tokenizer, 0);
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  ids.insert(ids.end(), after.begin(), after.end());
  Outcome outcome;
  for (const int32_t id : ids) {
    if (outcome.finished.has_value()) break;
    ++outcome.taken;
    outcome.finished = output.Take(id, &outcome.text);
  }
  return outcome;
}

Request WithMax(int32_t max_tokens) {
  Request request;
  request.prompt = {1, 2, 3};
  request.stopping.max_tokens = max_tokens;
  return request;
}

TEST(ChoiceOutput, EndsAtMaxTokensAndFlushesUnfinishedText) {
  const Outcome outcome = Feed(WithMax(3), "ab\xC3z");
  EXPECT_EQ(outcome.text, "ab\xEF\xBF\xBD");
  EXPECT_EQ(outcome.finished->reason, FinishReason::kLength);
  EXPECT_EQ(outcome.finished->completion_tokens, 3);
}

TEST(ChoiceOutput, EndsAtTheEndTokenWithoutItsText) {
  const Outcome outcome = Feed(WithMax(10), "hello", {FakeTokenizer::kEnd, 'x'});
  EXPECT_EQ(outcome.text, "hello");
  EXPECT_EQ(outcome.finished->reason, FinishReason::kEos);
  EXPECT_EQ(outcome.finished->stop_token_id, FakeTokenizer::kEnd);
  EXPECT_EQ(outcome.taken, 6);
}

TEST(ChoiceOutput, IgnoresTheEndTokenWhenAskedTo) {
  Request request = WithMax(7);
  request.stopping.ignore_eos = true;
  const Outcome outcome = Feed(request, "hello", {FakeTokenizer::kEnd, 'x'});
  EXPECT_EQ(outcome.text, "hellox");
  EXPECT_EQ(outcome.finished->reason, FinishReason::kLength);
}

TEST(ChoiceOutput, CutsAtAStopStringOrKeepsIt) {
  Request request = WithMax(50);
  request.stopping.stop = {"END"};
  Outcome outcome = Feed(request, "abENENDxyz");
  EXPECT_EQ(outcome.text, "abEN");
  EXPECT_EQ(outcome.finished->stop, "END");
  EXPECT_EQ(outcome.finished->reason, FinishReason::kStop);
  EXPECT_EQ(outcome.taken, 7);
  request.stopping.include_stop = true;
  EXPECT_EQ(Feed(request, "abENENDxyz").text, "abENEND");
}

TEST(ChoiceOutput, HoldsBackOnlyWhatMayStillMatch) {
  const FakeTokenizer tokenizer;
  Request request = WithMax(50);
  request.stopping.stop = {"END"};
  ChoiceOutput output(request, &tokenizer, 0);
  std::string text;
  output.Take('a', &text);
  EXPECT_EQ(text, "a");
  output.Take('E', &text);
  output.Take('N', &text);
  EXPECT_EQ(text, "a");
  output.Take('x', &text);
  EXPECT_EQ(text, "aENx");
}

TEST(ChoiceOutput, StopStringsBelowMinTokensAreText) {
  Request request = WithMax(50);
  request.stopping.stop = {"ab"};
  request.stopping.min_tokens = 4;
  const Outcome outcome = Feed(request, "ababab");
  EXPECT_EQ(outcome.text, "abab");
  EXPECT_EQ(outcome.taken, 6);
}

TEST(ChoiceOutput, AStopIdEndsAndIsNamed) {
  Request request = WithMax(50);
  request.stopping.stop_token_ids = {'c'};
  Outcome outcome = Feed(request, "abcd");
  EXPECT_EQ(outcome.text, "ab");
  EXPECT_EQ(outcome.finished->reason, FinishReason::kStop);
  EXPECT_EQ(outcome.finished->stop_token_id, 'c');
  request.stopping.include_stop = true;
  EXPECT_EQ(Feed(request, "abcd").text, "abc");
}

TEST(ChoiceOutput, BansEndIdsOnlyUntilMinTokens) {
  const FakeTokenizer tokenizer;
  Request request = WithMax(50);
  request.stopping.min_tokens = 2;
  request.stopping.stop_token_ids = {'q'};
  request.sampling.banned = {'z'};
  ChoiceOutput output(request, &tokenizer, 0);
  std::string text;
  const auto banned = [&] {
    const auto span = output.NextSample(0).banned;
    return std::vector<int32_t>(span.begin(), span.end());
  };
  EXPECT_EQ(banned(), (std::vector<int32_t>{'z', FakeTokenizer::kEnd, 'q'}));
  output.Take('a', &text);
  output.Take('b', &text);
  EXPECT_EQ(banned(), (std::vector<int32_t>{'z'}));
}

TEST(ChoiceOutput, CountsPromptAndOutputApartForPenalties) {
  Request request = WithMax(50);
  request.prompt = {5, 5, 6};
  request.sampling.repetition_penalty = 1.5F;
  ChoiceOutput output(request, nullptr, 0);
  std::string text;
  output.Take(6, &text);
  output.Take(7, &text);
  output.Take(7, &text);
  std::map<int32_t, int32_t> counts;
  for (const auto& entry : output.NextSample(0).seen) counts[entry.id] = entry.output_count;
  EXPECT_EQ(counts, (std::map<int32_t, int32_t>{{5, 0}, {6, 1}, {7, 2}}));
}

}  // namespace
}  // namespace morphserve
