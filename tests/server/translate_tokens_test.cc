// Text to tokens and back for clients, and their count. Catches: an input that is taken in two ways
// at once, a split character that is lost, a count that differs from what a request sends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/server/translate_fixture.h"

namespace morphserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST_F(TranslateTest, TokenizeGivesIdsAndPieces) {
  const absl::Time now = facts_.received;
  const auto text =
      translator_.Tokenize(Parse<v1::TokenizeRequest>("text: 'hi' pieces: true"), now);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->token_ids(), ElementsAre(257, 'h', 'i'));
  EXPECT_THAT(text->pieces(), ElementsAre("<|start|>", "h", "i"));
  const auto chat = translator_.Tokenize(
      Parse<v1::TokenizeRequest>("chat { messages { role: 'u' } add_generation_prompt: false }"),
      now);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_THAT(chat->token_ids(), ElementsAre(257, 'u', ':', 256));
  EXPECT_THAT(chat->pieces(), IsEmpty());
  const struct {
    const char* request;
    const char* field;
  } cases[] = {{"", "input"},
               {"chat { messages { role: 'u' } } add_special_tokens: true", "add_special_tokens"},
               {"chat { messages { role: 'u' } options { } }", "chat.options"},
               {"chat { messages { role: 'u' } model: 'tiny' }", "chat.model"},
               {"chat { }", "chat.messages"}};
  for (const auto& c : cases) {
    EXPECT_THAT(
        FaultyFields(translator_.Tokenize(Parse<v1::TokenizeRequest>(c.request), now).status()),
        ElementsAre(c.field))
        << c.request;
  }
}

TEST_F(TranslateTest, DetokenizeSeparatesAnIncompleteTail) {
  const auto whole =
      translator_.Detokenize(Parse<v1::DetokenizeRequest>("token_ids: [104, 0xE2, 0x82]"));
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->text(), "h");
  EXPECT_EQ(whole->incomplete_tail(), "\xE2\x82");
  EXPECT_EQ(translator_.Detokenize(Parse<v1::DetokenizeRequest>("token_ids: [104, 256]"))->text(),
            "h<|end|>");
  EXPECT_EQ(translator_
                .Detokenize(
                    Parse<v1::DetokenizeRequest>("token_ids: [104, 256] skip_special_tokens: true"))
                ->text(),
            "h");
  EXPECT_EQ(translator_.Detokenize({})->text(), "");
  EXPECT_THAT(FaultyFields(translator_
                               .Detokenize(Parse<v1::DetokenizeRequest>(
                                   "token_ids: [1, 260, 258, 4294967295]"))
                               .status()),
              ElementsAre("token_ids[1]", "token_ids[2]", "token_ids[3]"));
}

TEST_F(TranslateTest, CountTokensCountsWhatGenerateWouldSend) {
  const auto plain = translator_.CountTokens(Parse<v1::CountTokensRequest>("text: 'hi'"), facts_);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->tokens(), 3u);
  EXPECT_EQ(plain->context_tokens_max(), 512u);
  EXPECT_FALSE(plain->has_cached_tokens());
  EXPECT_EQ(plain->plan_id(), "");
  const auto longer =
      translator_.CountTokens(Parse<v1::CountTokensRequest>(TextOf(100'000)), facts_);
  ASSERT_TRUE(longer.ok()) << longer.status();
  EXPECT_EQ(longer->tokens(), 100'001u);
}

}  // namespace
}  // namespace morphserve
