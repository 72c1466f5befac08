// FakeRunner stands in for the model in engine tests. It keeps tokens where a model keeps K and V:
// every row writes its token into its sequence's pages of every layer, and the token it samples is
// a hash of what the pages hold. So a stale, shared, moved or lost page, a wrong position or a
// wrong row changes the output. The expected output of a prompt is computed by FakeContinuation
// from the tokens alone.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "engine/runner/model_runner.h"
#include "kernels/common/types.h"

namespace morphserve {

inline constexpr int32_t kFakeVocab = 1000;
// Room for one token a position and layer.
inline constexpr int64_t kFakePageBytes = kPageTokens * static_cast<int64_t>(sizeof(int32_t));

inline int32_t FakeNextToken(const std::vector<int32_t>& tokens, uint64_t seed, uint32_t choice) {
  uint64_t hash = 0xcbf29ce484222325ull ^ seed ^ (uint64_t{choice} << 32);
  for (const int32_t token : tokens)
    hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001b3ull;
  hash ^= hash >> 29;
  return static_cast<int32_t>(hash % kFakeVocab);
}

// The `count` tokens that follow `prompt`.
inline std::vector<int32_t> FakeContinuation(std::vector<int32_t> prompt, int32_t count,
                                             uint64_t seed = 0, uint32_t choice = 0) {
  std::vector<int32_t> out;
  for (int32_t i = 0; i < count; ++i) {
    out.push_back(FakeNextToken(prompt, seed, choice));
    prompt.push_back(out.back());
  }
  return out;
}

class FakeRunner final : public ModelRunner {
 public:
  FakeRunner(UnitPool* pages, int32_t layers) : pages_(pages), layers_(layers) {}

  absl::Status Run(const StepBatch& batch, std::vector<kernels::SampleResult>* results) override {
    ++steps;
    rows_max = std::max(rows_max, batch.rows());
    if (fail_step.has_value() && *fail_step == steps) return absl::InternalError("made to fail");
    for (const StepSegment& s : batch.segments) {
      for (int32_t r = 0; r < s.row_count; ++r) {
        for (int32_t l = 0; l < layers_; ++l) {
          *Cell(*s.caches, l, s.position + r) = batch.tokens[static_cast<size_t>(s.row_begin + r)];
        }
      }
    }
    results->assign(batch.logit_rows.size(), {});
    for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
      Sample(batch, batch.logit_rows[i], &(*results)[i]);
    }
    return absl::OkStatus();
  }

  void CopyPages(std::span<const PageCopy> copies) override {
    for (const PageCopy& copy : copies) {
      std::memcpy(pages_->data(copy.to), pages_->data(copy.from), kFakePageBytes);
    }
  }

  int32_t steps = 0;
  int32_t rows_max = 0;
  std::optional<int32_t> fail_step;
  std::optional<uint64_t> non_finite_seed;  // Sequences of this seed get a non-finite result.

 private:
  int32_t* Cell(const SequenceCaches& caches, int32_t layer, int32_t position) const {
    const auto& table = caches.pages[static_cast<size_t>(layer)];
    const UnitAddress page = table.at(static_cast<size_t>(position / kPageTokens));
    return reinterpret_cast<int32_t*>(pages_->data(page)) + position % kPageTokens;
  }

  void Sample(const StepBatch& batch, const LogitRow& row, kernels::SampleResult* result) const {
    for (const StepSegment& s : batch.segments) {
      if (row.row < s.row_begin || row.row >= s.row_begin + s.row_count) continue;
      const int32_t length = s.position + row.row - s.row_begin + 1;
      for (int32_t l = 0; l < layers_; ++l) {
        std::vector<int32_t> seen;
        for (int32_t p = 0; p < length; ++p) seen.push_back(*Cell(*s.caches, l, p));
        const int32_t token = FakeNextToken(seen, row.sample.seed, row.sample.choice);
        if (l > 0 && token != result->token) result->token = -2;  // Layers disagree.
        if (l == 0) result->token = token;
      }
      if (row.score_token >= 0) result->token = row.score_token;
      result->logprob = -static_cast<float>(length);
      result->finite = !(non_finite_seed.has_value() && *non_finite_seed == row.sample.seed);
    }
  }

  UnitPool* const pages_;
  const int32_t layers_;
};

}  // namespace morphserve
