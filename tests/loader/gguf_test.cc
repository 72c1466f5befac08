// Catches: a value read with the wrong width or sign, shapes in file order, an offset that is not
// made absolute, and above all a count, length, type or range that is believed instead of checked.
#include "engine/loader/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "tests/loader/gguf_builder.h"

namespace morphserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& bytes) {
  return GgufFile::Open(OpenMemory(bytes));
}

// The message of the refusal; fails the test when the file is accepted.
std::string Refusal(const std::string& bytes) {
  const auto opened = Open(bytes);
  EXPECT_FALSE(opened.ok());
  return opened.ok() ? "" : std::string(opened.status().message());
}
std::string Refusal(const GgufBuilder& builder) { return Refusal(builder.Build()); }

TEST(Gguf, ReadsEveryScalarType) {
  GgufBuilder builder;
  builder.Key("u8", GgufType::kU8, Raw<uint8_t>(200))
      .Key("i8", GgufType::kI8, Raw<int8_t>(-100))
      .Key("u16", GgufType::kU16, Raw<uint16_t>(60000))
      .Key("i16", GgufType::kI16, Raw<int16_t>(-30000))
      .Key("u32", GgufType::kU32, Raw<uint32_t>(4000000000U))
      .Key("i32", GgufType::kI32, Raw<int32_t>(-2000000000))
      .Key("u64", GgufType::kU64, Raw<uint64_t>(1ULL << 40))
      .Key("huge", GgufType::kU64, Raw<uint64_t>(~0ULL))
      .Key("i64", GgufType::kI64, Raw<int64_t>(-(1LL << 40)))
      .Key("f32", GgufType::kF32, Raw(1.5F))
      .Key("f64", GgufType::kF64, Raw(-2.25))
      .Key("yes", GgufType::kBool, Raw<uint8_t>(1))
      .String("text", "caf\xC3\xA9");
  for (const uint32_t version : {2U, 3U}) {
    builder.version = version;
    const auto file = Open(builder.Build());
    ASSERT_TRUE(file.ok()) << file.status();
    const GgufMetadata& m = (*file)->metadata();
    EXPECT_EQ((*file)->version(), version);
    EXPECT_EQ(*m.Integer("u8"), 200);
    EXPECT_EQ(*m.Integer("i8"), -100);
    EXPECT_EQ(*m.Integer("u16"), 60000);
    EXPECT_EQ(*m.Integer("i16"), -30000);
    EXPECT_EQ(*m.Integer("u32"), 4000000000);
    EXPECT_EQ(*m.Integer("i32"), -2000000000);
    EXPECT_EQ(*m.Integer("u64"), 1LL << 40);
    EXPECT_EQ(*m.Integer("i64"), -(1LL << 40));
    EXPECT_EQ(m.Integer("huge").status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(*m.Float("huge"), static_cast<double>(~0ULL));
    EXPECT_EQ(*m.Float("f32"), 1.5);
    EXPECT_EQ(*m.Float("f64"), -2.25);
    EXPECT_EQ(*m.Float("i8"), -100);
    EXPECT_TRUE(*m.Bool("yes"));
    EXPECT_EQ(*m.String("text"), "caf\xC3\xA9");
  }
}

TEST(Gguf, ReadsArrays) {
  GgufBuilder builder;
  builder.Array("ints", GgufType::kI16, 3, Raw<int16_t>(-1) + Raw<int16_t>(0) + Raw<int16_t>(7))
      .Array("floats", GgufType::kF32, 2, Raw(0.5F) + Raw(-1.0F))
      .Array("words", GgufType::kString, 2, RawString("a") + RawString(""))
      .Array("flags", GgufType::kBool, 2, std::string("\x01\x00", 2))
      .Array("none", GgufType::kString, 0, "");
  const auto file = Open(builder.Build());
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufMetadata& m = (*file)->metadata();
  EXPECT_THAT(**m.Integers("ints"), ElementsAre(-1, 0, 7));
  EXPECT_THAT(**m.Floats("floats"), ElementsAre(0.5, -1.0));
  EXPECT_THAT(**m.Strings("words"), ElementsAre("a", ""));
  EXPECT_THAT(**m.Integers("flags"), ElementsAre(1, 0));
  EXPECT_TRUE((*m.Strings("none"))->empty());
}

TEST(Gguf, AccessorsNameTheKeyThatIsMissingOrOfAnotherType) {
  GgufBuilder builder;
  builder.String("text", "x").U32("number", 1);
  const auto file = Open(builder.Build());
  ASSERT_TRUE(file.ok());
  const GgufMetadata& m = (*file)->metadata();
  EXPECT_EQ(m.Integer("absent").status().code(), absl::StatusCode::kNotFound);
  for (const absl::Status& status :
       {m.Integer("text").status(), m.Float("text").status(), m.Bool("text").status(),
        m.Strings("text").status(), m.Integers("text").status(), m.Floats("text").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("text"));
  }
  EXPECT_THAT(std::string(m.String("number").status().message()), HasSubstr("number"));
}

TEST(Gguf, TurnsShapesRowMajorAndOffsetsAbsolute) {
  GgufBuilder builder;
  builder.Append("a", {64, 3}, 2, 2 * 3 * 18).Append("b", {5}, 0, 20);
  const auto file = Open(builder.Build());
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<TensorInfo>& tensors = (*file)->tensors();
  ASSERT_EQ(tensors.size(), 2U);
  EXPECT_THAT(tensors[0].shape, ElementsAre(3, 64));
  EXPECT_EQ(tensors[0].dtype, DType::kQ4_0);
  EXPECT_EQ(tensors[0].bytes, 108);
  EXPECT_EQ(tensors[0].offset % 32, 0);
  EXPECT_EQ(tensors[1].offset, tensors[0].offset + 128);
}

TEST(Gguf, ObeysTheStatedAlignment) {
  GgufBuilder builder;
  builder.alignment = 4096;
  builder.U32("general.alignment", 4096).Append("a", {4}, 0, 16);
  const auto file = Open(builder.Build());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors()[0].offset, 4096);
}

TEST(Gguf, RefusesOtherFormatsAndVersions) {
  GgufBuilder builder;
  builder.magic = "GGML";
  EXPECT_THAT(Refusal(builder), HasSubstr("no GGUF magic at offset 0"));
  builder.magic = "GGUF";
  builder.version = 1;
  EXPECT_THAT(Refusal(builder), HasSubstr("version 1"));
  builder.version = 0x03000000;
  EXPECT_THAT(Refusal(builder), HasSubstr("big-endian"));
}

TEST(Gguf, RefusesCountsThatTheFileCannotHold) {
  const std::string start = "GGUF" + Raw<uint32_t>(3);
  for (const uint64_t count : {~0ULL, 1ULL << 62, 1ULL << 17, 2ULL}) {
    EXPECT_THAT(Refusal(start + Raw(count) + Raw<uint64_t>(0)), HasSubstr("tensors"));
    EXPECT_THAT(Refusal(start + Raw<uint64_t>(0) + Raw(count)), HasSubstr("metadata keys"));
  }
}

TEST(Gguf, RefusesLengthsThatTheFileCannotHold) {
  for (const uint64_t length : {~0ULL, 1ULL << 63, 1ULL << 40, 100ULL}) {
    GgufBuilder text;
    text.Key("k", GgufType::kString, Raw(length));
    EXPECT_THAT(Refusal(text.Header()), HasSubstr("string of"));
    for (const GgufType type :
         {GgufType::kU8, GgufType::kF64, GgufType::kString, GgufType::kBool}) {
      GgufBuilder array;
      array.Array("k", type, length, "");
      EXPECT_THAT(Refusal(array.Header()), HasSubstr("array of")) << length;
    }
  }
}

TEST(Gguf, RefusesNestedArraysUnknownTypesAndOddBooleans) {
  GgufBuilder nested;
  nested.Array("k", GgufType::kArray, 1, std::string(32, '\0'));
  EXPECT_THAT(Refusal(nested), HasSubstr("array of arrays"));
  GgufBuilder unknown;
  unknown.Key("k", static_cast<GgufType>(13), Raw<uint64_t>(0));
  EXPECT_THAT(Refusal(unknown), HasSubstr("unknown type 13"));
  GgufBuilder array;
  array.Array("k", static_cast<GgufType>(77), 0, "");
  EXPECT_THAT(Refusal(array), HasSubstr("unknown type 77"));
  GgufBuilder boolean;
  boolean.Key("k", GgufType::kBool, Raw<uint8_t>(2));
  EXPECT_THAT(Refusal(boolean), HasSubstr("boolean of value 2"));
  GgufBuilder range;
  range.Array("k", GgufType::kU64, 1, Raw(~0ULL));
  EXPECT_THAT(Refusal(range), HasSubstr("out of range"));
}

TEST(Gguf, RefusesRepeatedAndUnprintableNames) {
  GgufBuilder keys;
  keys.U32("k", 1).U32("k", 1);
  EXPECT_THAT(Refusal(keys), HasSubstr("second metadata key k"));
  GgufBuilder tensors;
  tensors.Append("t", {4}, 0, 16).Append("t", {4}, 0, 16);
  EXPECT_THAT(Refusal(tensors), HasSubstr("tensor t appears twice"));
  for (const std::string& name : {std::string(), std::string("a\nb"), std::string("a\0b", 3)}) {
    GgufBuilder key;
    key.U32(name, 1);
    EXPECT_THAT(Refusal(key), HasSubstr("not printable at offset 24"));
    GgufBuilder tensor;
    tensor.Append(name, {4}, 0, 16);
    EXPECT_THAT(Refusal(tensor), HasSubstr("not printable"));
  }
}

TEST(Gguf, NamesTensorTypesThatItDoesNotSupport) {
  const std::pair<uint32_t, const char*> types[] = {{6, "Q5_0"},   {10, "Q2_K"}, {17, "IQ2_XS"},
                                                    {39, "MXFP4"}, {28, "F64"},  {4000, "4000"}};
  for (const auto& [number, name] : types) {
    GgufBuilder builder;
    builder.Append("w", {256}, number, 4096);
    EXPECT_THAT(Refusal(builder), HasSubstr("tensor w"));
    EXPECT_THAT(Refusal(builder), HasSubstr(name));
  }
}

TEST(Gguf, RefusesShapesThatOverflowOrSplitBlocks) {
  const uint64_t big = 1ULL << 33;
  const std::vector<uint64_t> wrong[] = {{0},        {},     {1, 1, 1, 1, 1},     {~0ULL},
                                         {big, big}, {4, 0}, {big, big, big, big}};
  for (const std::vector<uint64_t>& dimensions : wrong) {
    GgufBuilder builder;
    builder.Append("w", dimensions, 0, 16);
    EXPECT_THAT(Refusal(builder), HasSubstr("tensor w"));
  }
  GgufBuilder builder;
  builder.Append("w", {48, 2}, 2, 108);
  EXPECT_THAT(Refusal(builder), HasSubstr("rows of 48 elements; blocks of Q4_0 have 32"));
}

TEST(Gguf, RefusesTensorsOutsideTheFileOrOverEachOther) {
  for (const uint64_t offset : {64ULL, 1ULL << 62, ~0ULL - 31, ~0ULL}) {
    GgufBuilder builder;
    builder.Append("w", {8}, 0, 32);
    builder.tensors()[0].offset = offset;
    EXPECT_THAT(Refusal(builder), HasSubstr("tensor w")) << offset;
  }
  GgufBuilder overlap;
  overlap.Append("a", {16}, 0, 64).Append("b", {8}, 0, 32);
  overlap.tensors()[1].offset = 32;
  EXPECT_THAT(Refusal(overlap), HasSubstr("tensor b at offset"));
  EXPECT_THAT(Refusal(overlap), HasSubstr("overlaps tensor a"));
  GgufBuilder same;
  same.Append("a", {8}, 0, 32);
  same.Tensor({"b", {8}, 0, 0});
  EXPECT_THAT(Refusal(same), HasSubstr("overlaps"));
  GgufBuilder crooked;
  crooked.Append("a", {8}, 0, 64);
  crooked.tensors()[0].offset = 4;
  EXPECT_THAT(Refusal(crooked), HasSubstr("not a multiple of the alignment 32"));
}

TEST(Gguf, RefusesAlignmentsThatAreNone) {
  for (const uint32_t alignment : {0U, 1U, 4U, 24U, 33U, 1U << 21, ~0U}) {
    GgufBuilder builder;
    builder.U32("general.alignment", alignment).Append("a", {8}, 0, 32);
    EXPECT_THAT(Refusal(builder), HasSubstr("general.alignment")) << alignment;
  }
  GgufBuilder text;
  text.String("general.alignment", "32");
  EXPECT_THAT(Refusal(text), HasSubstr("general.alignment"));
}

TEST(Gguf, RefusesAFileCutAtAnyByte) {
  GgufBuilder builder = SmallNetwork();
  builder.Array("tokens", GgufType::kString, 2, RawString("a") + RawString("bc"));
  const std::string bytes = builder.Build();
  ASSERT_TRUE(Open(bytes).ok());
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(Open(bytes.substr(0, length)).ok()) << length;
  }
}

}  // namespace
}  // namespace morphserve
