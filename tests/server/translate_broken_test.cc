// Input that nobody would write: damaged messages, and JSON as deep as it is long. Catches: a
// crash, a request outside its bounds, an error that repeats a secret.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "server/translate_json.h"
#include "tests/server/translate_fixture.h"

namespace morphserve {
namespace {

using testing::ByteTokenizer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// Valid messages with random bytes changed: whatever still parses must end in a request within the
// bounds, or in a status of the catalogue. The sanitizers see the rest.
TEST_F(TranslateTest, BrokenMessagesNeverDoHarm) {
  const std::vector<std::string> seeds = {
      Parse<v1::GenerateRequest>(
          "model: 'tiny' text: 'some text' options { request_id: 'r' sampling { temperature: 0.5 "
          "top_k: 9 logit_bias { key: 3 value: 2 } allowed_token_ids: [1, 2, 3] n: 2 } stopping { "
          "max_tokens: 7 min_tokens: 2 stop: 'ab' stop_token_ids: 4 } output { logprobs: 3 } plan "
          "{ tier: QUALITY_TIER_BALANCED } scheduling { priority: -3 } }")
          .SerializeAsString(),
      Parse<v1::ChatRequest>(
          "messages { role: 'user' content: 'hello' tool_calls { name: 'f' arguments_json: "
          "'{\"a\": [1]}' } } tools { name: 'f' parameters_json: '{}' } template_args_json: "
          "'{\"x\": 1}' control_tokens: CONTROL_TOKENS_REFUSE options { sampling { seed: 1 } }")
          .SerializeAsString()};
  std::mt19937 random(11);
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = seeds[random() % seeds.size()];
    for (uint32_t changes = random() % 4; changes > 0; --changes) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (random() % 8 == 0) bytes.resize(random() % bytes.size());
    absl::StatusOr<Request> request = absl::UnknownError("no message");
    v1::GenerateRequest generate;
    v1::ChatRequest chat;
    if (round % 2 == 0 && generate.ParsePartialFromString(bytes)) {
      request = translator_.Generate(generate, facts_);
    } else if (round % 2 == 1 && chat.ParsePartialFromString(bytes)) {
      request = translator_.Chat(chat, facts_);
    } else {
      continue;
    }
    if (!request.ok()) {
      EXPECT_NE(ReasonOf(request.status()), "") << request.status();
      continue;
    }
    ++accepted;
    ASSERT_GE(request->stopping.max_tokens, 1);
    ASSERT_LE(request->prompt.size() + static_cast<size_t>(request->stopping.max_tokens), 512u);
    ASSERT_LE(request->stopping.min_tokens, request->stopping.max_tokens);
    ASSERT_TRUE(std::isfinite(request->sampling.temperature));
    for (const int32_t id : request->prompt) ASSERT_TRUE(id >= 0 && id < ByteTokenizer::kVocab);
  }
  EXPECT_GT(accepted, 1000);
}

TEST(TranslateJson, DepthIsBoundedWithoutRecursion) {
  const auto nested = [](int depth) {
    const auto brackets = static_cast<size_t>(depth - 1);
    return absl::StrFormat("{\"a\":%s%s}", std::string(brackets, '['), std::string(brackets, ']'));
  };
  EXPECT_TRUE(CheckJsonObject(nested(32), nullptr).ok());
  EXPECT_THAT(std::string(CheckJsonObject(nested(33), nullptr).message()),
              HasSubstr("deeper than 32"));
  EXPECT_FALSE(CheckJsonObject(nested(1'000'000), nullptr).ok());
  EXPECT_FALSE(CheckJsonObject(std::string(1'000'000, '['), nullptr).ok());
}

TEST(TranslateJson, OnlyOneWholeObjectPasses) {
  for (const char* bad : {"", " ", "3", "null", "[]", "{", "{}}", "{} {}", "{\"a\":}", "{'a':1}",
                          "{\"a\":\"\\ud800\"}", "{\"a\":\"\xFF\"}", "{\"a\":1e999}"}) {
    EXPECT_FALSE(CheckJsonObject(bad, nullptr).ok()) << bad;
  }
  std::vector<std::string> keys;
  EXPECT_TRUE(CheckJsonObject(R"({"a": {"x": 1}, "b": [true, null, -1.5]})", &keys).ok());
  EXPECT_THAT(keys, ElementsAre("a", "b"));
}

TEST(TranslateJson, FaultsDoNotRepeatTheInput) {
  const absl::Status status = CheckJsonObject(R"({"a": secret})", nullptr);
  EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
  EXPECT_THAT(std::string(status.message()), HasSubstr("byte 7"));
}

}  // namespace
}  // namespace morphserve
