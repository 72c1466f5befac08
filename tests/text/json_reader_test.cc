// The reader of model JSON: what RFC 8259 allows, with its limits. Deep nesting must end in an
// error and not in a stack overflow.

#include "engine/text/json_reader.h"

#include <gtest/gtest.h>

#include <string>

namespace morphserve {
namespace {

absl::Status Refusal(std::string_view text, const JsonLimits& limits = {}) {
  return ParseJson(text, limits).status();
}

TEST(JsonReader, ReadsEveryKindOfValueInOrder) {
  const auto value = ParseJson(R"({"b": [1, -2, 2.5, 1e3, "x\u00e9\ud83d\ude00", true, null, {}],)"
                               R"( "a": 18446744073709551615})",
                               {});
  ASSERT_TRUE(value.ok()) << value.status();
  ASSERT_EQ(value->object()->size(), 2U);
  EXPECT_EQ((*value->object())[0].key, "b");
  const JsonValue::Array& list = *value->Find("b")->array();
  ASSERT_EQ(list.size(), 8U);
  EXPECT_EQ(list[0].integer(), 1);
  EXPECT_EQ(list[1].integer(), -2);
  EXPECT_EQ(list[2].number(), 2.5);
  EXPECT_EQ(list[3].integer(), std::nullopt);
  EXPECT_EQ(list[3].number(), 1000.0);
  EXPECT_EQ(*list[4].string(), "x\u00e9\U0001F600");
  EXPECT_EQ(list[5].boolean(), true);
  EXPECT_TRUE(list[6].is_null());
  EXPECT_NE(list[7].object(), nullptr);
  EXPECT_EQ(value->Find("a")->integer(), std::nullopt);  // Beyond 64 bits: no integer.
  EXPECT_EQ(value->Find("c"), nullptr);
}

TEST(JsonReader, RefusesWhatIsNotJsonWithTheOffset) {
  for (const char* text : {"", "{", "[1,]", "{\"a\":1,}", "nul", "[1] 2", "\"\xFF\"", "\"\\ud800\"",
                           "{a:1}", "[1e999999]", "'x'", "\"\n\""}) {
    const absl::Status status = Refusal(text);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_NE(std::string(status.message()).find("byte offset"), std::string::npos) << text;
  }
}

TEST(JsonReader, RefusesTheSameKeyTwice) {
  EXPECT_FALSE(Refusal(R"({"a": 1, "b": 2, "a": 3})").ok());
  EXPECT_TRUE(Refusal(R"({"a": 1, "b": {"a": 3}})").ok());
}

TEST(JsonReader, RefusesDeepNestingHoweverDeep) {
  JsonLimits limits;
  limits.depth_max = 10;
  EXPECT_TRUE(Refusal(std::string(10, '[') + std::string(10, ']'), limits).ok());
  EXPECT_FALSE(Refusal(std::string(11, '[') + std::string(11, ']'), limits).ok());
  EXPECT_FALSE(Refusal(std::string(1000000, '[')).ok());
}

TEST(JsonReader, RefusesTooManyBytesAndTooManyValues) {
  JsonLimits limits;
  limits.bytes_max = 8;
  EXPECT_FALSE(Refusal("[1,2,3,4]", limits).ok());
  limits = {};
  limits.values_max = 4;
  EXPECT_TRUE(Refusal("[1,2,3]", limits).ok());
  EXPECT_FALSE(Refusal("[1,2,3,4]", limits).ok());
}

}  // namespace
}  // namespace morphserve
