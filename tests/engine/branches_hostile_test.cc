// Catches: a damaged branches file that ends the process or reads past its bytes (under the
// sanitizers), and an accepted one that breaks the promises of its header. Damaged copies of good
// files, from fixed seeds, and everything the fuzzer ever kept.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "tests/fuzz/branches_targets.h"

namespace morphserve {
namespace {

std::vector<std::string> Corpus() {
  std::vector<std::string> out;
  const std::string folder = std::string(MORPHSERVE_SOURCE_DIR) + "/tests/fuzz/corpus/branches";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    out.push_back(text.str());
  }
  return out;
}

TEST(HostileBranches, TheFuzzersCorpusReplays) {
  const std::vector<std::string> corpus = Corpus();
  EXPECT_GT(corpus.size(), 10U);
  for (const std::string& input : corpus) fuzz::FuzzBranches(input);
}

TEST(HostileBranches, ADamagedFileEndsInACleanStatus) {
  std::mt19937 random(20);
  for (const std::string& good : Corpus()) {
    if (good.empty()) continue;
    for (int round = 0; round < 150; ++round) {
      std::string bytes = good;
      const size_t at = 1 + random() % (bytes.size() - 1);
      switch (random() % 4) {
        case 0: bytes[at] = static_cast<char>(random()); break;
        case 1: bytes[at] = static_cast<char>('0' + random() % 10); break;
        case 2: bytes.erase(at, 1 + random() % 8); break;
        default: bytes.insert(at, bytes.substr(1 + random() % at, random() % 16)); break;
      }
      fuzz::FuzzBranches(bytes);
    }
  }
}

TEST(HostileBranches, MetadataCutAnywhereEndsInACleanStatus) {
  for (const std::string& good : Corpus()) {
    if (good.empty() || good[0] != 'm') continue;
    for (size_t length = 0; length < good.size(); length += 3) {
      fuzz::FuzzBranches(std::string_view(good).substr(0, length));
    }
  }
}

}  // namespace
}  // namespace morphserve
