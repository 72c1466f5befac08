// Requests to what the engine takes: every field out of range is refused by name, every default is
// the one that the API promises, and nothing is ignored.
#include "server/translate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/translate_options.h"
#include "tests/server/translate_fixture.h"

namespace morphserve {
namespace {

using testing::ByteTokenizer;
using ::testing::ElementsAre;
using testing::FakeEngine;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(TranslateTest, AbsentFieldsTakeTheDefaultsOfTheApi) {
  const absl::StatusOr<Request> request = Generate("text: 'abc'");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->prompt, ElementsAre(ByteTokenizer::kStart, 'a', 'b', 'c'));
  EXPECT_EQ(request->sampling.temperature, 1);
  EXPECT_EQ(request->sampling.top_p, 1);
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_EQ(request->sampling.min_p, 0);
  EXPECT_EQ(request->sampling.repetition_penalty, 1);
  EXPECT_EQ(request->sampling.n, 1);
  EXPECT_EQ(request->stopping.max_tokens, 512 - 4);
  EXPECT_EQ(request->stopping.min_tokens, 0);
  EXPECT_EQ(request->output.logprobs, -1);
  EXPECT_EQ(request->output.prompt_logprobs, -1);
  EXPECT_TRUE(request->output.skip_special_tokens);
  EXPECT_TRUE(request->output.text);
  EXPECT_EQ(request->priority, 0);
  EXPECT_FALSE(request->plan_id.has_value());
  EXPECT_EQ(request->tenant, "team");
  EXPECT_EQ(request->deadline, facts_.received + absl::Seconds(600));
}

TEST_F(TranslateTest, SeedsAreDrawnApartWhenAbsent) {
  const absl::StatusOr<Request> a = Generate("text: 'abc'");
  const absl::StatusOr<Request> b = Generate("text: 'abc'");
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(a->sampling.seed, b->sampling.seed);
}

TEST_F(TranslateTest, TheModelsGenerationDefaultsComeBeforeThoseOfTheApi) {
  model_.generation.temperature = 0.6F;
  model_.generation.top_p = 0.95F;
  model_.generation.top_k = 20;
  model_.generation.min_p = std::numeric_limits<float>::quiet_NaN();  // A broken file.
  model_.generation.repetition_penalty = 7.0F;                        // Out of range.
  const absl::StatusOr<Request> request = Options("sampling { top_p: 0.5 }");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->sampling.temperature, 0.6F);
  EXPECT_EQ(request->sampling.top_p, 0.5F);
  EXPECT_EQ(request->sampling.top_k, 20);
  EXPECT_EQ(request->sampling.min_p, 0);
  EXPECT_EQ(request->sampling.repetition_penalty, 1);
}

TEST_F(TranslateTest, EveryFieldReachesTheEngine) {
  const absl::StatusOr<Request> request = Options(R"(
    sampling { temperature: 0 top_p: 0.9 top_k: 40 min_p: 0.1 presence_penalty: -2
               frequency_penalty: 2 repetition_penalty: 1.5 seed: 18446744073709551615
               logit_bias { key: 9 value: -100 } logit_bias { key: 3 value: 1.5 }
               allowed_token_ids: [5, 4, 5] banned_token_ids: [7] n: 8 }
    stopping { max_tokens: 9 min_tokens: 9 stop: ['x', 'yy'] stop_token_ids: [1, 2]
               include_stop: true ignore_eos: true }
    output { token_ids: true logprobs: 20 prompt_logprobs: 5 skip_special_tokens: false }
    scheduling { priority: -100 require_complete: true }
    cache { bypass: true salt: 's' snapshot_at: 2 exact: true }
    plan { full_layers: 3 })");
  ASSERT_TRUE(request.ok()) << request.status();
  const SamplingParams& sampling = request->sampling;
  EXPECT_EQ(sampling.temperature, 0);
  EXPECT_EQ(sampling.top_p, 0.9F);
  EXPECT_EQ(sampling.top_k, 40);
  EXPECT_EQ(sampling.min_p, 0.1F);
  EXPECT_EQ(sampling.presence_penalty, -2);
  EXPECT_EQ(sampling.frequency_penalty, 2);
  EXPECT_EQ(sampling.repetition_penalty, 1.5F);
  EXPECT_EQ(sampling.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_THAT(sampling.logit_bias, ElementsAre(std::pair(3, 1.5F), std::pair(9, -100.0F)));
  EXPECT_THAT(sampling.allowed, ElementsAre(4, 5));
  EXPECT_THAT(sampling.banned, ElementsAre(7));
  EXPECT_EQ(sampling.n, 8);
  EXPECT_EQ(request->stopping.max_tokens, 9);
  EXPECT_EQ(request->stopping.min_tokens, 9);
  EXPECT_THAT(request->stopping.stop, ElementsAre("x", "yy"));
  EXPECT_THAT(request->stopping.stop_token_ids, ElementsAre(1, 2));
  EXPECT_TRUE(request->stopping.include_stop);
  EXPECT_TRUE(request->stopping.ignore_eos);
  EXPECT_EQ(request->output.logprobs, 20);
  EXPECT_EQ(request->output.prompt_logprobs, 5);
  EXPECT_FALSE(request->output.skip_special_tokens);
  EXPECT_EQ(request->priority, -100);
  EXPECT_TRUE(request->require_complete);
  EXPECT_TRUE(request->cache.bypass);
  EXPECT_EQ(request->cache.salt, "team/s");
  EXPECT_THAT(request->cache.snapshot_at, ElementsAre(2));
  EXPECT_EQ(request->plan_id, engine_.plans().active()->id());
}

struct BadField {
  const char* options;
  const char* field;
  // Without it a failure, and the test's name in reports, would show the bytes of two pointers.
  friend void PrintTo(const BadField& bad, std::ostream* out) { *out << bad.options; }
};

class BadFieldTest : public TranslateTest, public ::testing::WithParamInterface<BadField> {};

TEST_P(BadFieldTest, IsRefusedByName) {
  const absl::Status status = Options(GetParam().options).status();
  EXPECT_EQ(ReasonOf(status), reason::kFieldInvalid) << status;
  EXPECT_THAT(FaultyFields(status), ElementsAre(GetParam().field)) << status;
}

INSTANTIATE_TEST_SUITE_P(
    Options, BadFieldTest,
    ::testing::Values(
        BadField{"sampling { temperature: -0.1 }", "options.sampling.temperature"},
        BadField{"sampling { temperature: 2.01 }", "options.sampling.temperature"},
        BadField{"sampling { temperature: nan }", "options.sampling.temperature"},
        BadField{"sampling { temperature: inf }", "options.sampling.temperature"},
        BadField{"sampling { top_p: 0 }", "options.sampling.top_p"},
        BadField{"sampling { top_p: 1.5 }", "options.sampling.top_p"},
        BadField{"sampling { top_p: nan }", "options.sampling.top_p"},
        BadField{"sampling { top_k: 261 }", "options.sampling.top_k"},
        BadField{"sampling { top_k: 4294967295 }", "options.sampling.top_k"},
        BadField{"sampling { min_p: -1 }", "options.sampling.min_p"},
        BadField{"sampling { min_p: 1.1 }", "options.sampling.min_p"},
        BadField{"sampling { presence_penalty: 2.5 }", "options.sampling.presence_penalty"},
        BadField{"sampling { presence_penalty: -inf }", "options.sampling.presence_penalty"},
        BadField{"sampling { frequency_penalty: -2.5 }", "options.sampling.frequency_penalty"},
        BadField{"sampling { repetition_penalty: 0 }", "options.sampling.repetition_penalty"},
        BadField{"sampling { repetition_penalty: 2.5 }", "options.sampling.repetition_penalty"},
        BadField{"sampling { n: 0 }", "options.sampling.n"},
        BadField{"sampling { n: 9 }", "options.sampling.n"},
        BadField{"sampling { n: 4294967295 }", "options.sampling.n"},
        BadField{"sampling { logit_bias { key: 260 value: 1 } }",
                 "options.sampling.logit_bias[260]"},
        BadField{"sampling { logit_bias { key: 1 value: 100.5 } }",
                 "options.sampling.logit_bias[1]"},
        BadField{"sampling { logit_bias { key: 1 value: nan } }", "options.sampling.logit_bias[1]"},
        BadField{"sampling { allowed_token_ids: [1, 260] }",
                 "options.sampling.allowed_token_ids[1]"},
        BadField{"sampling { banned_token_ids: 4294967295 }",
                 "options.sampling.banned_token_ids[0]"},
        BadField{"sampling { allowed_token_ids: [1, 2] banned_token_ids: [2, 1] }",
                 "options.sampling.allowed_token_ids"},
        BadField{"sampling { allowed_token_ids: 258 }", "options.sampling.allowed_token_ids"},
        BadField{"sampling { allowed_token_ids: 256 } stopping { min_tokens: 1 }",
                 "options.sampling.allowed_token_ids"},
        BadField{"stopping { max_tokens: 0 }", "options.stopping.max_tokens"},
        BadField{"stopping { max_tokens: 5 min_tokens: 6 }", "options.stopping.min_tokens"},
        BadField{"stopping { min_tokens: 4294967295 }", "options.stopping.min_tokens"},
        BadField{"stopping { stop: '' }", "options.stopping.stop[0]"},
        BadField{"stopping { stop_token_ids: [1, 300] }", "options.stopping.stop_token_ids[1]"},
        BadField{"output { logprobs: 21 }", "options.output.logprobs"},
        BadField{"output { prompt_logprobs: 6 }", "options.output.prompt_logprobs"},
        BadField{"output { text: false } stopping { stop: 'x' }", "options.stopping.stop"},
        BadField{"scheduling { priority: 101 }", "options.scheduling.priority"},
        BadField{"scheduling { priority: -101 }", "options.scheduling.priority"},
        BadField{"plan { plan_id: '' }", "options.plan.plan_id"},
        BadField{"plan { tier: QUALITY_TIER_UNSPECIFIED }", "options.plan.tier"},
        BadField{"plan { full_layers: 4 }", "options.plan.full_layers"},
        BadField{"plan { full_layers: 4294967295 }", "options.plan.full_layers"},
        BadField{"cache { snapshot_at: 0 }", "options.cache.snapshot_at[0]"},
        BadField{"cache { snapshot_at: [4, 5] }", "options.cache.snapshot_at[1]"},
        BadField{"cache { snapshot_at: [1, 1, 1, 1, 1, 1, 1, 1, 1] }",
                 "options.cache.snapshot_at"}));

TEST_F(TranslateTest, ListsAboveTheirLimitsAreRefused) {
  v1::GenerateRequest request;
  request.set_text("abc");
  v1::Sampling* sampling = request.mutable_options()->mutable_sampling();
  for (uint32_t i = 0; i < 4097; ++i) {
    sampling->add_allowed_token_ids(1);
    sampling->add_banned_token_ids(2);
    if (i < 1025) (*sampling->mutable_logit_bias())[i] = 0;
  }
  v1::Stopping* stopping = request.mutable_options()->mutable_stopping();
  for (int i = 0; i < 17; ++i) stopping->add_stop("x");
  for (int i = 0; i < 65; ++i) stopping->add_stop_token_ids(1);
  EXPECT_THAT(FaultyFields(translator_.Generate(request, facts_).status()),
              ElementsAre("options.sampling.logit_bias", "options.sampling.allowed_token_ids",
                          "options.sampling.banned_token_ids", "options.stopping.stop",
                          "options.stopping.stop_token_ids"));
  request.clear_options();
  request.mutable_options()->mutable_stopping()->add_stop(std::string(257, 'x'));
  request.mutable_options()->mutable_cache()->set_salt(std::string(129, 'x'));
  EXPECT_THAT(FaultyFields(translator_.Generate(request, facts_).status()),
              ElementsAre("options.stopping.stop[0]", "options.cache.salt"));
}

TEST_F(TranslateTest, AllFaultsComeTogether) {
  const absl::Status status =
      Generate("options { sampling { top_p: 7 n: 0 } output { logprobs: 99 } }").status();
  EXPECT_THAT(FaultyFields(status), ElementsAre("prompt", "options.sampling.top_p",
                                                "options.sampling.n", "options.output.logprobs"));
}

TEST_F(TranslateTest, WhatThisReleaseLacksIsUnimplementedByName) {
  const struct {
    const char* options;
    const char* field;
  } cases[] = {{"constraint { regex: 'a' }", "options.constraint.regex"},
               {"constraint { json_object: false }", "options.constraint.json_object"},
               {"constraint { choices { values: 'a' } }", "options.constraint.choices"},
               {"plan { prefer_warm: true }", "options.plan.prefer_warm"},
               {"scheduling { ttft_slo_ms: 0 }", "options.scheduling.ttft_slo_ms"},
               {"scheduling { tpot_slo_ms: 1 }", "options.scheduling.tpot_slo_ms"}};
  for (const auto& c : cases) {
    const absl::Status status = Options(c.options).status();
    EXPECT_EQ(ReasonOf(status), reason::kFeatureUnavailable) << c.field << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.field));
  }
}

TEST_F(TranslateTest, FieldsOfALaterApiAreNotIgnored) {
  v1::GenerateRequest request;
  request.set_text("abc");
  v1::Sampling* sampling = request.mutable_options()->mutable_sampling();
  sampling->GetReflection()->MutableUnknownFields(sampling)->AddVarint(99, 1);
  const absl::Status status = translator_.Generate(request, facts_).status();
  EXPECT_EQ(ReasonOf(status), reason::kFeatureUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("field number 99 of Sampling"));
}

TEST_F(TranslateTest, PrioritiesAboveTheCredentialsCeilingAreRefused) {
  facts_.priority_max = -5;
  EXPECT_EQ(Options("")->priority, -5);
  EXPECT_EQ(Options("scheduling { priority: -5 }")->priority, -5);
  EXPECT_THAT(FaultyFields(Options("scheduling { priority: -4 }").status()),
              ElementsAre("options.scheduling.priority"));
}

TEST_F(TranslateTest, DeadlinesAreTheCallsOwnUpToTheCap) {
  facts_.deadline = facts_.received + absl::Seconds(5);
  EXPECT_EQ(Options("")->deadline, facts_.deadline);
  facts_.deadline = facts_.received + absl::Hours(48);
  EXPECT_EQ(Options("")->deadline, facts_.received + absl::Seconds(3600));
}

TEST_F(TranslateTest, PromptsThatDoNotFitTheContextAreRefused) {
  EXPECT_EQ(ReasonOf(Generate(TextOf(511)).status()), reason::kContextTooLong);
  const absl::StatusOr<Request> last = Generate(TextOf(510));
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ(last->stopping.max_tokens, 1);
  const absl::Status status = Options("stopping { max_tokens: 509 }").status();
  EXPECT_EQ(ReasonOf(status), reason::kContextTooLong);
  EXPECT_EQ(status.message(),
            "prompt has 4 tokens and max_tokens is 509; limit of their sum is 512");
}

TEST_F(TranslateTest, TextThatCannotFitIsRefusedBeforeItIsTokenised) {
  // 4 x 512 tokens x 9 bytes of the longest piece.
  const absl::Status status = Generate(TextOf(18433)).status();
  EXPECT_EQ(ReasonOf(status), reason::kContextTooLong);
  EXPECT_THAT(std::string(status.message()), HasSubstr("18433 bytes"));
  v1::GenerateRequest huge;
  huge.set_text(std::string((4 << 20) + 1, 'a'));
  EXPECT_THAT(FaultyFields(translator_.Generate(huge, facts_).status()), ElementsAre("text"));
}

TEST_F(TranslateTest, TokenPromptsAreTakenAsTheyAre) {
  EXPECT_THAT(Generate("tokens { ids: [0, 259, 256] }")->prompt, ElementsAre(0, 259, 256));
  EXPECT_THAT(FaultyFields(Generate("tokens { ids: [0, 260] }").status()),
              ElementsAre("tokens.ids[1]"));
  EXPECT_THAT(FaultyFields(Generate("tokens { }").status()), ElementsAre("tokens.ids"));
  EXPECT_THAT(FaultyFields(Generate("tokens { ids: 1 } add_special_tokens: false").status()),
              ElementsAre("add_special_tokens"));
  EXPECT_THAT(FaultyFields(Generate("text: ''").status()), ElementsAre("text"));
  v1::GenerateRequest many;
  for (int i = 0; i < 513; ++i) many.mutable_tokens()->add_ids(1);
  EXPECT_EQ(ReasonOf(translator_.Generate(many, facts_).status()), reason::kContextTooLong);
}

TEST_F(TranslateTest, ControlTokensInARawPromptAreControlTokens) {
  EXPECT_THAT(Generate("text: 'a<|end|>' add_special_tokens: false")->prompt,
              ElementsAre('a', ByteTokenizer::kEnd));
}

TEST_F(TranslateTest, AnUnknownModelIsNotFound) {
  EXPECT_EQ(ReasonOf(Generate("model: 'other' text: 'a'").status()), reason::kModelNotFound);
  EXPECT_TRUE(Generate("model: 'tiny' text: 'a'").ok());
}

TEST_F(TranslateTest, AModelWithoutATokenizerServesIdsOnly) {
  FakeEngine engine(nullptr);
  model_.engine = &engine;
  model_.chat_template = nullptr;
  EXPECT_EQ(ReasonOf(Generate("text: 'a'").status()), reason::kNoTokenizer);
  EXPECT_EQ(ReasonOf(Chat("messages { role: 'user' content: 'a' }").status()),
            reason::kNoTokenizer);
  const absl::StatusOr<Request> ids = Generate("tokens { ids: 1 }");
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_FALSE(ids->output.text);
  EXPECT_EQ(ReasonOf(Generate("tokens { ids: 1 } options { output { text: true } }").status()),
            reason::kNoTokenizer);
  EXPECT_THAT(
      FaultyFields(Generate("tokens { ids: 1 } options { stopping { stop: 'x' } }").status()),
      ElementsAre("options.stopping.stop"));
}

}  // namespace
}  // namespace morphserve
