// FakeRunner stands in for the model in engine tests. It keeps tokens where a model keeps its
// memory: at a full layer every row writes its token into its sequence's pages, at a linear layer
// it folds it into a hash in the slot, beside a count of positions. The token it samples is a hash
// of what pages and slots hold. So a stale, shared, moved, lost or restored-at-the-wrong-place page
// or slot, a wrong position or a wrong row changes the output. The expected output of a prompt is
// computed by FakeContinuation from the tokens alone.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "engine/runner/model_runner.h"
#include "kernels/common/types.h"

namespace morphserve {

inline constexpr int32_t kFakeVocab = 1000;
// Room for one token a position and layer; slots are as large.
inline constexpr int64_t kFakePageBytes = kPageTokens * static_cast<int64_t>(sizeof(int32_t));
inline constexpr int64_t kFakeSlotBytes = kFakePageBytes;

inline constexpr uint64_t kFakeBasis = 0xcbf29ce484222325ull;
inline uint64_t FakeFold(uint64_t hash, int32_t token) {
  return (hash ^ static_cast<uint64_t>(token)) * 0x100000001b3ull;
}
inline int32_t FakeToken(uint64_t hash, uint64_t seed, uint32_t choice) {
  hash = (hash ^ seed ^ (uint64_t{choice} << 32)) * 0x9e3779b97f4a7c15ull;
  hash ^= hash >> 29;
  return static_cast<int32_t>(hash % kFakeVocab);
}

inline int32_t FakeNextToken(const std::vector<int32_t>& tokens, uint64_t seed, uint32_t choice) {
  uint64_t hash = kFakeBasis;
  for (const int32_t token : tokens) hash = FakeFold(hash, token);
  return FakeToken(hash, seed, choice);
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
  FakeRunner(std::byte* base, int32_t layers) : base_(base), layers_(layers) {}

  absl::Status Run(const StepBatch& batch, StepResult* result) override {
    ++steps;
    rows_max = std::max(rows_max, batch.rows());
    rows_total += batch.rows();
    if (fail_step.has_value() && *fail_step == steps) return absl::InternalError("made to fail");
    result->nonfinite.assign(batch.segments.size(), 0);
    for (size_t i = 0; i < batch.segments.size(); ++i) {
      const StepSegment& s = batch.segments[i];
      if (sick_plan == s.plan->id()) result->nonfinite[i] = 1;
      for (int32_t l = 0; l < layers_; ++l) RunLayer(batch, s, l);
    }
    result->samples.assign(batch.logit_rows.size(), {});
    for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
      Sample(batch, batch.logit_rows[i], &result->samples[i]);
    }
    return absl::OkStatus();
  }

  absl::Status Health() override { return health; }

  int32_t steps = 0;
  int32_t rows_max = 0;
  int64_t rows_total = 0;
  std::optional<int32_t> fail_step;
  absl::Status health;                      // After a failed step.
  std::optional<uint64_t> non_finite_seed;  // Sequences of this seed get a non-finite result.
  std::string sick_plan;                    // Mixers of this plan give non-finite outputs.

 private:
  struct Slot {
    uint64_t hash;
    int64_t count;
  };
  static constexpr uint64_t kPoison = 0xdeadull;

  std::byte* At(UnitAddress unit) const { return base_ + int64_t{unit} * kArenaUnitBytes; }

  void RunLayer(const StepBatch& batch, const StepSegment& s, int32_t layer) const {
    const auto l = static_cast<size_t>(layer);
    if (s.plan->kind(layer) == LayerKind::kFull) {
      for (int32_t r = 0; r < s.row_count; ++r) {
        *Cell(*s.caches, layer, s.position + r) =
            batch.tokens[static_cast<size_t>(s.row_begin + r)];
      }
      return;
    }
    Slot slot{};
    std::memcpy(&slot, At(s.caches->slots[l]), sizeof slot);
    if (s.position == 0) slot = {.hash = kFakeBasis, .count = 0};
    int32_t emit = s.emit_begin;
    for (int32_t r = 0; r < s.row_count; ++r) {
      // The memory of another prefix, or of a wrong position, spoils everything after it.
      if (slot.count != s.position + r) slot.hash ^= kPoison;
      slot.hash = FakeFold(slot.hash, batch.tokens[static_cast<size_t>(s.row_begin + r)]);
      ++slot.count;
      while (emit < s.emit_begin + s.emit_count &&
             batch.emits[static_cast<size_t>(emit)].rows == r + 1) {
        const auto& slots = *batch.emits[static_cast<size_t>(emit++)].slots;
        std::memcpy(At(slots[l]), &slot, sizeof slot);
      }
    }
    std::memcpy(At(s.caches->slots[l]), &slot, sizeof slot);
  }

  int32_t* Cell(const SequenceCaches& caches, int32_t layer, int32_t position) const {
    const auto& table = caches.pages[static_cast<size_t>(layer)];
    const UnitAddress page = table.at(static_cast<size_t>(position / kPageTokens));
    return reinterpret_cast<int32_t*>(At(page)) + position % kPageTokens;
  }

  uint64_t HashOf(const StepSegment& s, int32_t layer, int32_t length) const {
    if (s.plan->kind(layer) == LayerKind::kLinear) {
      Slot slot{};
      std::memcpy(&slot, At(s.caches->slots[static_cast<size_t>(layer)]), sizeof slot);
      return slot.hash;
    }
    uint64_t hash = kFakeBasis;
    for (int32_t p = 0; p < length; ++p) hash = FakeFold(hash, *Cell(*s.caches, layer, p));
    return hash;
  }

  void Sample(const StepBatch& batch, const LogitRow& row, kernels::SampleResult* result) const {
    for (const StepSegment& s : batch.segments) {
      if (row.row < s.row_begin || row.row >= s.row_begin + s.row_count) continue;
      const int32_t length = s.position + row.row - s.row_begin + 1;
      result->logprob = -static_cast<float>(length);
      result->finite = !(non_finite_seed.has_value() && *non_finite_seed == row.sample.seed);
      result->token = row.score_token;
      if (row.score_token >= 0) continue;
      for (int32_t l = 0; l < layers_; ++l) {
        const int32_t token = FakeToken(HashOf(s, l, length), row.sample.seed, row.sample.choice);
        if (l > 0 && token != result->token) result->token = -2;  // Layers disagree.
        if (l == 0) result->token = token;
      }
    }
  }

  std::byte* const base_;
  const int32_t layers_;
};

}  // namespace morphserve
