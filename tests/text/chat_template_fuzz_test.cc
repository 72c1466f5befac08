// Replays the corpora of the template fuzzers, and cut and spliced forms of the golden sources:
// none may abort, over-read or return text that is not UTF-8. Finds what a fuzzer found once,
// again.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "tests/fuzz/template_targets.h"

namespace morphserve {
namespace {

std::vector<std::string> ReadFolder(const std::string& name) {
  std::vector<std::string> texts;
  const std::string folder = std::string(MORPHSERVE_SOURCE_DIR) + "/tests/" + name;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    texts.push_back(text.str());
  }
  return texts;
}

TEST(ChatTemplateFuzz, CorpusOfTemplateSourcesIsHandled) {
  const auto corpus = ReadFolder("fuzz/corpus/template_source");
  ASSERT_FALSE(corpus.empty());
  for (const std::string& source : corpus) fuzz::FuzzTemplateSource(source);
}

TEST(ChatTemplateFuzz, CorpusOfTemplateInputsIsHandled) {
  const auto corpus = ReadFolder("fuzz/corpus/template_input");
  ASSERT_FALSE(corpus.empty());
  for (const std::string& input : corpus) fuzz::FuzzTemplateInput(input);
}

TEST(ChatTemplateFuzz, DamagedTemplatesAreHandled) {
  const auto sources = ReadFolder("golden/templates/sources");
  std::mt19937 random(20240704);
  const auto below = [&random](size_t limit) {
    return static_cast<size_t>(random()) % std::max<size_t>(limit, 1);
  };
  for (int round = 0; round < 300; ++round) {
    std::string text = sources[below(sources.size())];
    const std::string& other = sources[below(sources.size())];
    const size_t at = below(text.size());
    switch (below(4)) {
      case 0: text.resize(at); break;
      case 1: text.erase(at, below(20)); break;
      case 2: text.insert(at, other.substr(below(other.size()), below(60))); break;
      default: text[at] = static_cast<char>(below(128)); break;
    }
    fuzz::FuzzTemplateSource(text);
  }
}

}  // namespace
}  // namespace morphserve
