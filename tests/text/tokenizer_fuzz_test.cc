// Replays the fuzzers' corpora, each input also with bytes changed, cut and doubled by a seeded
// generator. The targets abort on a broken promise, and sanitized builds on an over-read.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/tokenizer_targets.h"

namespace morphserve::fuzz {
namespace {

std::vector<std::string> Corpus(const std::string& name) {
  std::vector<std::string> inputs;
  const std::string folder = std::string(MORPHSERVE_SOURCE_DIR "/tests/fuzz/corpus/") + name;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  std::sort(inputs.begin(), inputs.end());
  return inputs;
}

std::string Mutate(std::string input, std::mt19937* random) {
  const auto place = [&] { return (*random)() % (input.size() + 1); };
  for (size_t n = 1 + (*random)() % 3; n > 0; --n) {
    const size_t at = place();
    switch ((*random)() % 4) {
      case 0: input.insert(at, 1, static_cast<char>((*random)() % 256)); break;
      case 1: input.erase(at, (*random)() % 6); break;
      case 2: input.insert(at, input.substr(place(), (*random)() % 12)); break;
      default:
        if (at < input.size()) input[at] = static_cast<char>((*random)() % 256);
    }
  }
  return input;
}

void Replay(const std::string& name, const std::function<void(std::string_view)>& target) {
  const std::vector<std::string> inputs = Corpus(name);
  ASSERT_GE(inputs.size(), 4U);
  std::mt19937 random(41);
  for (const std::string& input : inputs) {
    target(input);
    for (int round = 0; round < 300; ++round) target(Mutate(input, &random));
  }
}

TEST(FuzzCorpus, TokenizerJsonFilesAreReadOrRefusedCleanly) {
  Replay("tokenizer_json", FuzzTokenizerJson);
}

TEST(FuzzCorpus, TokenizerMetadataIsReadOrRefusedCleanly) {
  Replay("tokenizer_gguf", FuzzTokenizerGguf);
}

TEST(FuzzCorpus, AnyBytesBecomeValidText) { Replay("detokenizer", FuzzDetokenizer); }

}  // namespace
}  // namespace morphserve::fuzz
