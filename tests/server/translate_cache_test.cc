// Catches cache entries that cross tenants or salts, marks that reach the engine unsorted, prompt
// probabilities read from a cache that has none, and a chat's volatile tail taken for history.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_format.h"
#include "tests/server/translate_fixture.h"

namespace morphserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Like the simple template, but a prompt ends with what an answer of the past does not have, and
// notes stand before the last question, as tools do in some templates.
class VolatileTemplate final : public ChatTemplate {
 public:
  absl::StatusOr<RenderedChat> Render(const ChatInput& input,
                                      const TemplateLimits&) const override {
    RenderedChat out;
    const auto trusted = [&out](std::string_view text) {
      out.trusted.push_back({out.text.size(), out.text.size() + text.size()});
      out.text += text;
    };
    size_t last_question = input.messages.size();
    for (size_t i = 0; i < input.messages.size(); ++i) {
      if (input.messages[i].role == "user") last_question = i;
    }
    for (size_t i = 0; i < input.messages.size(); ++i) {
      if (one_question && i > 0 && input.messages[i].role == "user") {
        return absl::InvalidArgumentError("only one question");
      }
      if (i == last_question && !input.tools.empty()) trusted("[tools]");
      trusted("<|start|>");
      out.text += input.messages[i].role + ":" + input.messages[i].content;
      trusted("<|end|>");
    }
    if (input.add_generation_prompt) trusted("<|start|>assistant:<think></think>");
    return out;
  }
  const std::vector<std::string>& capabilities() const override { return capabilities_; }

  bool one_question = false;

 private:
  const std::vector<std::string> capabilities_;
};

class TranslateCacheTest : public TranslateTest {
 protected:
  Request Options(const std::string& options) const {
    return Taken(Generate(absl::StrFormat("text: 'abcdef' options { %s }", options)));
  }
  Request Chat(const std::string& chat) const { return Taken(TranslateTest::Chat(chat)); }

  VolatileTemplate volatile_;

 private:
  static Request Taken(const absl::StatusOr<Request>& request) {
    EXPECT_TRUE(request.ok()) << request.status();
    return request.value_or(Request());
  }
};

TEST_F(TranslateCacheTest, TheTenantIsAlwaysPartOfTheSalt) {
  EXPECT_EQ(Options("").cache.salt, "team/");
  EXPECT_EQ(Options("cache { salt: 'x' }").cache.salt, "team/x");
  facts_.tenant = "tea";
  EXPECT_NE(Options("cache { salt: 'm/' }").cache.salt, "team/")
      << "no salt reaches another tenant";
}

TEST_F(TranslateCacheTest, MarksComeSortedOnceAndInsideThePrompt) {
  EXPECT_THAT(Options("cache { snapshot_at: [5, 1, 7, 5] }").cache.snapshot_at,
              ElementsAre(1, 5, 7));
  EXPECT_THAT(Options("").cache.snapshot_at, IsEmpty());
}

TEST_F(TranslateCacheTest, BypassAndPromptLogprobsLeaveTheCacheAlone) {
  EXPECT_FALSE(Options("").cache.bypass);
  EXPECT_FALSE(Options("cache { exact: true }").cache.bypass) << "entries are always exact";
  EXPECT_TRUE(Options("cache { bypass: true }").cache.bypass);
  EXPECT_TRUE(Options("output { prompt_logprobs: 0 }").cache.bypass);
}

TEST_F(TranslateCacheTest, ARawPromptHasNoVolatileTail) {
  EXPECT_FALSE(Options("").cache.stable_tokens.has_value());
}

TEST_F(TranslateCacheTest, WhatTheNextTurnRepeatsIsStable) {
  const Request all = Chat("messages { role: 'user' content: 'hi' }");
  EXPECT_EQ(all.cache.stable_tokens, static_cast<int32_t>(all.prompt.size()));
  model_.chat_template = &volatile_;
  const Request tail = Chat("messages { role: 'user' content: 'hi' }");
  EXPECT_EQ(tail.cache.stable_tokens,
            static_cast<int32_t>(tail.prompt.size() - std::string("<think></think>").size()));
  // Control tokens of users are text on both sides, or on none.
  const Request parsed =
      Chat("messages { role: 'user' content: '<|end|>' } control_tokens: CONTROL_TOKENS_PARSE");
  EXPECT_EQ(parsed.cache.stable_tokens, static_cast<int32_t>(parsed.prompt.size()) - 15);
}

TEST_F(TranslateCacheTest, WhatMovesToTheNextQuestionIsNotStable) {
  model_.chat_template = &volatile_;
  const Request request = Chat(
      "messages { role: 'system' content: 's' } messages { role: 'user' content: 'hi' } "
      "tools { name: 't' }");
  // <|start|> s y s t e m : s <|end|>
  EXPECT_EQ(request.cache.stable_tokens, 10);
}

TEST_F(TranslateCacheTest, NothingIsReckonedWhereItCannotHelp) {
  EXPECT_FALSE(Chat("messages { role: 'user' content: 'hi' } add_generation_prompt: false")
                   .cache.stable_tokens.has_value());
  EXPECT_FALSE(Chat("messages { role: 'assistant' content: 'hi' } continue_final_message: true")
                   .cache.stable_tokens.has_value());
  EXPECT_FALSE(Chat("messages { role: 'user' content: 'hi' } options { cache { bypass: true } }")
                   .cache.stable_tokens.has_value());
  model_.chat_template = &volatile_;
  volatile_.one_question = true;
  EXPECT_FALSE(Chat("messages { role: 'user' content: 'hi' }").cache.stable_tokens.has_value());
  volatile_.one_question = false;
  int encoded = 0;
  tokenizer_.on_encode = [&encoded] { ++encoded; };
  ServerConfig config;
  config.cache.prefix = false;
  const auto request =
      Translator(&model_, &config)
          .Chat(Parse<v1::ChatRequest>("messages { role: 'user' content: 'hi' }"), facts_);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FALSE(request->cache.stable_tokens.has_value());
  EXPECT_EQ(encoded, 1);
}

TEST_F(TranslateCacheTest, TheSecondReadingIsNoLongerThanTheFirst) {
  model_.chat_template = &chat_template_;
  int encoded = 0;
  tokenizer_.on_encode = [&encoded] { ++encoded; };
  const Request request = Chat("messages { role: 'user' content: 'hi' }");
  EXPECT_EQ(encoded, 2);
  EXPECT_TRUE(request.cache.stable_tokens.has_value());
}

}  // namespace
}  // namespace morphserve
