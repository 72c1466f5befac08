// Where a request's id comes from. Catches: an id that breaks log lines, a header that wins over
// the field, a traceparent that is not one.
#include "server/request_id.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/server/translate_fixture.h"

namespace morphserve {
namespace {

using ::testing::ElementsAre;

TEST_F(TranslateTest, RequestIdsComeFromTheFieldThenTheHeaderThenUs) {
  v1::GenerationOptions options;
  EXPECT_TRUE(IsValidRequestId(*ChooseRequestId(options, facts_)));
  facts_.header_request_id = "from.header:1";
  EXPECT_EQ(*ChooseRequestId(options, facts_), "from.header:1");
  options.set_request_id("from-field");
  EXPECT_EQ(*ChooseRequestId(options, facts_), "from-field");
  for (const std::string& bad : {std::string(), std::string("a b"), std::string(65, 'a'),
                                 std::string("a\n"), std::string("\xC3\xA9")}) {
    options.set_request_id(bad);
    EXPECT_THAT(FaultyFields(ChooseRequestId(options, facts_).status()),
                ElementsAre("options.request_id"))
        << bad;
  }
  options.clear_request_id();
  facts_.header_request_id = "a b";
  EXPECT_THAT(FaultyFields(ChooseRequestId(options, facts_).status()),
              ElementsAre("metadata x-request-id"));
}

TEST(RequestId, TraceparentsMustBeWellFormed) {
  const std::string good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  EXPECT_TRUE(IsValidTraceparent(good));
  EXPECT_FALSE(IsValidTraceparent(good + "-x"));
  EXPECT_FALSE(IsValidTraceparent("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
  EXPECT_FALSE(IsValidTraceparent(""));
}

}  // namespace
}  // namespace morphserve
