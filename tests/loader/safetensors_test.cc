// Catches: an offset relative to the wrong place, a range, shape or header length that is believed
// instead of checked, and a shard name that leaves the folder.
#include "engine/loader/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/loader/gguf_builder.h"
#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string File(const std::string& header, size_t data_bytes) {
  return Raw(static_cast<uint64_t>(header.size())) + header + std::string(data_bytes, '\x3c');
}

absl::StatusOr<std::vector<TensorInfo>> Read(const std::string& bytes) {
  return ReadSafetensorsHeader(*OpenMemory(bytes), 3);
}

std::string Refusal(const std::string& header, size_t data_bytes) {
  const auto read = Read(File(header, data_bytes));
  EXPECT_FALSE(read.ok()) << header;
  return read.ok() ? "" : std::string(read.status().message());
}

// One tensor entry of a header.
std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

TEST(Safetensors, ReadsTypesShapesAndAbsoluteOffsets) {
  const std::string header =
      "{\"__metadata__\":{\"format\":\"pt\"}," + Entry("b", "BF16", "[2,3]", "[8,20]") + "," +
      Entry("a", "F32", "[2]", "[0,8]") + "," + Entry("c", "F16", "[]", "[20,22]") + "}   ";
  const auto tensors = Read(File(header, 22));
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3U);
  const TensorInfo& b = (*tensors)[1];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_THAT(b.shape, ElementsAre(2, 3));
  EXPECT_EQ(b.offset, static_cast<int64_t>(8 + header.size() + 8));
  EXPECT_EQ(b.bytes, 12);
  EXPECT_EQ(b.file, 3);
  EXPECT_EQ((*tensors)[2].elements(), 1);
}

TEST(Safetensors, RefusesHeadersThatTheFileCannotHold) {
  EXPECT_FALSE(Read("").ok());
  EXPECT_FALSE(Read("1234567").ok());
  for (const uint64_t length : {~0ULL, 1ULL << 63, 1ULL << 40, 3ULL}) {
    EXPECT_FALSE(Read(Raw(length) + "{}").ok()) << length;
  }
  EXPECT_TRUE(Read(Raw<uint64_t>(2) + "{}").ok());
  EXPECT_FALSE(Read(Raw<uint64_t>(2) + "{}x").ok());
  EXPECT_FALSE(Read(Raw<uint64_t>(2) + "[]").ok());
}

TEST(Safetensors, NamesTheTensorWhoseEntryIsWrong) {
  const std::pair<std::string, const char*> wrong[] = {
      {Entry("w", "I64", "[1]", "[0,8]"), "type I64"},
      {Entry("w", "F8_E5M2", "[8]", "[0,8]"), "type F8_E5M2"},
      {Entry("w", "F32", "[2]", "[0,4]"), "takes 8 bytes"},
      {Entry("w", "F32", "[3]", "[0,8]"), "more than the file"},
      {Entry("w", "F32", "[0]", "[0,8]"), "extent 0"},
      {Entry("w", "F32", "[-2]", "[0,8]"), "natural number"},
      {Entry("w", "F32", "[2.0]", "[0,8]"), "natural number"},
      {Entry("w", "F32", "2", "[0,8]"), "shape"},
      {Entry("w", "F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), "shape"},
      {Entry("w", "F32", "[4294967296,4294967296]", "[0,8]"), "more than the file"},
      {Entry("w", "F32", "[2]", "[8,0]"), "data offsets 8 to 0"},
      {Entry("w", "F32", "[2]", "[8,16]"), "data section has 8"},
      {Entry("w", "F32", "[2]", "[0,18446744073709551615]"), "data section has 8"},
      {Entry("w", "F32", "[2]", "[-1,8]"), "two natural numbers"},
      {Entry("w", "F32", "[2]", "[0]"), "two natural numbers"},
      {"\"w\":{\"dtype\":\"F32\",\"shape\":[2]}", "missing"},
      {"\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}", "member"},
      {"\"w\":7", "not an object"}};
  for (const auto& [entry, why] : wrong) {
    const std::string refusal = Refusal("{" + entry + "}", 8);
    EXPECT_THAT(refusal, HasSubstr(why));
    EXPECT_THAT(refusal, HasSubstr("tensor w"));
  }
}

TEST(Safetensors, RefusesOverlapsGapsAndUnownedBytes) {
  const std::string a = Entry("a", "F32", "[2]", "[0,8]");
  EXPECT_THAT(Refusal("{" + a + "," + Entry("b", "F32", "[1]", "[4,8]") + "}", 8),
              HasSubstr("overlaps"));
  EXPECT_THAT(Refusal("{" + a + "," + Entry("b", "F32", "[1]", "[12,16]") + "}", 16),
              HasSubstr("leaves a gap"));
  EXPECT_THAT(Refusal("{" + a + "}", 9), HasSubstr("data section has 9 bytes"));
  EXPECT_THAT(Refusal("{" + a + "," + a + "}", 8), HasSubstr("appears twice"));
  EXPECT_THAT(Refusal("{" + Entry("a\\n", "F32", "[2]", "[0,8]") + "}", 8),
              HasSubstr("not printable"));
}

TEST(Safetensors, RefusesAFileCutAtAnyByte) {
  const std::string bytes = File("{" + Entry("a", "F32", "[2]", "[0,8]") + "}", 8);
  ASSERT_TRUE(Read(bytes).ok());
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(Read(bytes.substr(0, length)).ok()) << length;
  }
}

TEST(Safetensors, ShardNamesCannotLeaveTheFolder) {
  for (const char* name :
       {"../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".x.safetensors", "..", "",
        "x.bin", "a\\\\b.safetensors", "a b.safetensors"}) {
    const auto index = ParseShardIndex(std::string("{\"weight_map\":{\"w\":\"") + name + "\"}}");
    EXPECT_THAT(std::string(index.status().message()), HasSubstr("plain name")) << name;
  }
  for (const char* text : {"{}", "{\"weight_map\":[]}", "{\"weight_map\":{}}",
                           "{\"weight_map\":{\"w\":3}}", "[]", ""}) {
    EXPECT_FALSE(ParseShardIndex(text).ok()) << text;
  }
}

TEST(Safetensors, ShardsMustHoldWhatTheIndexSays) {
  const TempFolder folder;
  const auto open = [&folder] { return OpenSafetensorsFolder(folder.path()).status(); };
  EXPECT_EQ(open().code(), absl::StatusCode::kNotFound);
  folder.Write("model.safetensors.index.json",
               R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  folder.Write("1.safetensors", File("{" + Entry("a", "F32", "[1]", "[0,4]") + "}", 4));
  EXPECT_EQ(open().code(), absl::StatusCode::kNotFound);
  const std::string b = Entry("b", "F32", "[1]", "[0,4]");
  folder.Write("2.safetensors", File("{" + b + "}", 4));
  const auto whole = OpenSafetensorsFolder(folder.path());
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->files.size(), 2U);
  EXPECT_EQ(whole->tensors[1].file, 1);
  folder.Write("2.safetensors", File("{" + Entry("x", "F32", "[1]", "[0,4]") + "}", 4));
  EXPECT_THAT(std::string(open().message()), HasSubstr("tensor x"));
  folder.Write("2.safetensors", File("{}", 0));
  EXPECT_THAT(std::string(open().message()), HasSubstr("tensor b"));
  folder.Write("2.safetensors", File("{" + b + "," + Entry("a", "F32", "[1]", "[4,8]") + "}", 8));
  EXPECT_THAT(std::string(open().message()), HasSubstr("tensor a"));
  folder.Write("2.safetensors", "short");
  EXPECT_FALSE(open().ok());
}

}  // namespace
}  // namespace morphserve
