// Catches: any damaged file that ends the process or reads past its bytes (under the sanitizers),
// and an accepted one that breaks the promises of the headers. Thousands of damaged copies of good
// files, from fixed seeds, and everything the fuzzers ever kept.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/loader_targets.h"
#include "tests/loader/gguf_builder.h"
#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

using Target = void (*)(std::string_view);

// Damages `count` places: a bit, a byte, or eight bytes at once to an extreme.
std::string Damage(std::string bytes, size_t header_bytes, std::mt19937* random) {
  const size_t count = 1 + (*random)() % 4;
  for (size_t i = 0; i < count; ++i) {
    const size_t at = (*random)() % header_bytes;
    switch ((*random)() % 4) {
      case 0: bytes[at] = static_cast<char>(bytes[at] ^ (1 << ((*random)() % 8))); break;
      case 1: bytes[at] = static_cast<char>((*random)()); break;
      case 2: {
        const char fill = (*random)() % 2 == 0 ? '\xff' : '\0';
        std::fill_n(bytes.begin() + static_cast<int64_t>(at),
                    std::min<size_t>(8, bytes.size() - at), fill);
        break;
      }
      default: bytes.erase(at, 1 + (*random)() % 8); break;
    }
    if (bytes.size() < header_bytes) header_bytes = std::max<size_t>(bytes.size(), 1);
    if (bytes.empty()) return bytes;
  }
  return bytes;
}

void RunDamaged(Target target, const std::string& good, size_t header_bytes, int rounds,
                uint32_t seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < rounds; ++i) target(Damage(good, header_bytes, &random));
}

std::string GgufWithText() {
  GgufBuilder builder = SmallNetwork();
  builder.String("tokenizer.ggml.model", "gpt2")
      .String("tokenizer.ggml.pre", "smollm")
      .Array("tokenizer.ggml.tokens", GgufType::kString, 4,
             RawString("a") + RawString("b") + RawString("ab") + RawString("<e>"))
      .Array("tokenizer.ggml.token_type", GgufType::kI32, 4,
             Raw<int32_t>(1) + Raw<int32_t>(1) + Raw<int32_t>(1) + Raw<int32_t>(3))
      .Array("tokenizer.ggml.merges", GgufType::kString, 1, RawString("a b"))
      .U32("tokenizer.ggml.eos_token_id", 3)
      .String("tokenizer.chat_template", "{{ messages }}");
  return builder.Build();
}

TEST(HostileFiles, ADamagedGgufEndsInACleanStatus) {
  for (const std::string& good : {SmallNetwork().Build(), GgufWithText()}) {
    fuzz::FuzzGguf(good);
    RunDamaged(fuzz::FuzzGguf, good, std::min<size_t>(good.size(), 2400), 3000, 11);
  }
}

TEST(HostileFiles, AGgufCutAnywhereEndsInACleanStatus) {
  const std::string good = GgufWithText();
  for (size_t length = 0; length < good.size(); ++length) {
    fuzz::FuzzGguf(std::string_view(good).substr(0, length));
  }
}

TEST(HostileFiles, EveryByteOfAGgufHeaderMayBeExtreme) {
  const std::string good = GgufWithText();
  for (size_t at = 0; at < good.size() && at < 2400; ++at) {
    for (const char value : {'\0', '\x01', '\x7f', '\x80', '\xff'}) {
      std::string bytes = good;
      bytes[at] = value;
      fuzz::FuzzGguf(bytes);
    }
  }
}

TEST(HostileFiles, DamagedSafetensorsEndInACleanStatus) {
  const std::string bytes =
      ReadBytes(GoldenPath("tiny/qwen3-norm-sharded-bf16/model-00003-of-00003.safetensors"));
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  RunDamaged(fuzz::FuzzSafetensors, "h" + bytes, static_cast<size_t>(header) + 9, 2000, 12);
  const std::string index =
      "i" + ReadBytes(GoldenPath("tiny/qwen3-norm-sharded-bf16/model.safetensors.index.json"));
  RunDamaged(fuzz::FuzzSafetensors, index, index.size(), 2000, 13);
}

TEST(HostileFiles, ADamagedConfigurationEndsInACleanStatus) {
  for (const char* name :
       {"llama-llama3-tied-f32", "llama-yarn-bias-bf16", "llama-linear-text-f16",
        "mistral-window-bf16", "qwen2-bias-window-f16", "qwen3-norm-sharded-bf16"}) {
    const std::string good = ReadBytes(GoldenPath(std::string("tiny/") + name + "/config.json"));
    fuzz::FuzzConfigJson(good);
    RunDamaged(fuzz::FuzzConfigJson, good, good.size(), 1500, 14);
    for (size_t length = 0; length < good.size(); ++length) {
      fuzz::FuzzConfigJson(std::string_view(good).substr(0, length));
    }
  }
}

TEST(HostileFiles, TheFuzzersCorporaReplay) {
  const std::pair<const char*, Target> targets[] = {{"gguf", fuzz::FuzzGguf},
                                                    {"safetensors", fuzz::FuzzSafetensors},
                                                    {"config_json", fuzz::FuzzConfigJson}};
  for (const auto& [name, target] : targets) {
    const std::string folder = std::string(MORPHSERVE_SOURCE_DIR) + "/tests/fuzz/corpus/" + name;
    int inputs = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      target(ReadBytes(entry.path().string()));
      ++inputs;
    }
    EXPECT_GT(inputs, 5) << name;
  }
}

}  // namespace
}  // namespace morphserve
