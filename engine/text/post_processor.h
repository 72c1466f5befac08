// PostProcessor puts the ids that a model's template wants (BOS, EOS, ...) around an encoded text.
// Thread rule: plain data. Source: TemplateProcessing of Hugging Face tokenizers, single sequence.
#pragma once

#include <cstdint>
#include <vector>

namespace morphserve {

struct PostProcessor {
  std::vector<int32_t> before;
  std::vector<int32_t> after;

  // `ids` becomes before + ids + after.
  void Apply(std::vector<int32_t>* ids) const {
    ids->insert(ids->begin(), before.begin(), before.end());
    ids->insert(ids->end(), after.begin(), after.end());
  }
};

}  // namespace morphserve
