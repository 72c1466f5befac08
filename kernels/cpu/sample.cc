#include "kernels/sample.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "kernels/cpu/logit_scan.h"
#include "kernels/cpu/lottery.h"
#include "kernels/cpu/top_logits.h"
#include "kernels/philox.h"

namespace morphserve::kernels {

float PhiloxUniform(uint64_t seed, uint32_t position, uint32_t choice) {
  const auto words = Philox4x32({position, choice, 0, 0},
                                {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<float>(words[0] >> 8) * 0x1p-24f;
}

namespace cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

SampleResult NotFinite() {
  SampleResult result;
  result.finite = false;
  return result;
}

// The model's own distribution of a row: what log-probabilities are of.
class Distribution {
 public:
  // `logits` are untouched; ids from `pieces` on take part in the sum but are nobody's token.
  Distribution(std::span<const float> logits, size_t pieces, float largest)
      : pieces_(logits.first(pieces)),
        largest_(largest),
        log_sum_(std::log(SumExpBelow(logits, largest))) {}

  float Logprob(float logit) const {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(largest_) -
                              log_sum_);
  }

  void Score(int32_t token, SampleResult* result) const {
    const float logit = pieces_[static_cast<size_t>(token)];
    size_t before = CountAbove(pieces_, logit);
    const auto smaller_ids = pieces_.first(static_cast<size_t>(token));
    before += CountAtLeast(smaller_ids, logit) - CountAbove(smaller_ids, logit);
    result->logprob = Logprob(logit);
    result->rank = static_cast<int32_t>(before) + 1;
  }

  void Top(int32_t count, SampleScratch* scratch, SampleResult* result) const {
    if (count <= 0) return;
    const float largest_piece = ScanLogits(pieces_).largest;
    TopLogits(pieces_, largest_piece, static_cast<size_t>(count), &scratch->candidates);
    for (const auto& [logit, id] : scratch->candidates) {
      result->top.push_back({.id = id, .logprob = Logprob(logit)});
    }
  }

 private:
  const std::span<const float> pieces_;
  const float largest_;
  const double log_sum_;
};

// Step 1 and 2 of the contract. `logits` holds the ids that have a token; others are ignored.
void BiasAndMask(const SampleArgs& args, std::span<float> logits, SampleScratch* scratch) {
  const auto known = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits.size(); };
  const auto at = [&](int32_t id) -> float& { return logits[static_cast<size_t>(id)]; };
  for (const auto& [id, bias] : args.logit_bias) {
    if (known(id)) at(id) += bias;
  }
  for (int32_t id : args.banned) {
    if (known(id)) at(id) = kMinusInfinity;
  }
  if (args.allowed.empty()) return;
  scratch->candidates.clear();
  for (int32_t id : args.allowed) {
    if (known(id)) scratch->candidates.emplace_back(at(id), id);
  }
  std::fill(logits.begin(), logits.end(), kMinusInfinity);
  for (const auto& [logit, id] : scratch->candidates) at(id) = logit;
}

void Penalise(const SampleArgs& args, std::span<float> logits) {
  const float repetition = args.repetition_penalty;
  for (const TokenCount& seen : args.seen) {
    if (seen.id < 0 || static_cast<size_t>(seen.id) >= logits.size()) continue;
    float& logit = logits[static_cast<size_t>(seen.id)];
    if (repetition != 1) logit = logit > 0 ? logit / repetition : logit * repetition;
    if (seen.output_count > 0) {
      logit -=
          args.frequency_penalty * static_cast<float>(seen.output_count) + args.presence_penalty;
    }
  }
}

int32_t Choose(const SampleArgs& args, std::span<float> logits, float largest,
               SampleScratch* scratch) {
  // A temperature so small that the quotient overflows leaves only the largest.
  if (!(args.temperature > 0) || !std::isfinite(largest / args.temperature)) {
    return static_cast<int32_t>(FirstEqual(logits, largest));
  }
  if (args.temperature != 1) DivideLogits(logits, args.temperature);
  const float uniform = PhiloxUniform(args.seed, args.position, args.choice);
  return DrawToken(logits, largest / args.temperature, args, static_cast<double>(uniform), scratch);
}

// Range of a row whose last vocab - pieces values belong to no token; invalid if any value is.
LogitRange ScanRow(std::span<const float> row, size_t pieces) {
  LogitRange range = ScanLogits(row.first(pieces));
  range.valid = range.valid && ScanLogits(row.subspan(pieces)).valid;
  return range;
}

size_t PieceCount(int32_t vocab, int32_t piece_count) {
  return static_cast<size_t>(std::clamp(piece_count, 0, vocab));
}

}  // namespace

SampleResult Sample(const SampleArgs& args, SampleScratch* scratch) {
  if (args.vocab <= 0) return NotFinite();
  const std::span<float> row(args.logits, static_cast<size_t>(args.vocab));
  const std::span<float> logits = row.first(PieceCount(args.vocab, args.piece_count));
  LogitRange range = ScanRow(row, logits.size());
  if (!range.valid || range.largest == kMinusInfinity) return NotFinite();

  SampleResult result;
  const bool scored = args.logprobs >= 0;
  if (scored) scratch->untouched.assign(row.begin(), row.end());
  const bool penalised =
      args.repetition_penalty != 1 || args.frequency_penalty != 0 || args.presence_penalty != 0;
  BiasAndMask(args, logits, scratch);
  if (penalised) Penalise(args, logits);
  if (penalised || !args.logit_bias.empty() || !args.banned.empty() || !args.allowed.empty()) {
    range = ScanLogits(logits);
    if (!range.valid || range.largest == kMinusInfinity) return NotFinite();
  }
  result.token = Choose(args, logits, range.largest, scratch);
  if (scored) {
    const std::span<const float> untouched(scratch->untouched);
    const Distribution distribution(untouched, logits.size(), ScanLogits(untouched).largest);
    distribution.Score(result.token, &result);
    distribution.Top(args.logprobs, scratch, &result);
  }
  return result;
}

SampleResult ScoreToken(const float* logits, int32_t vocab, int32_t piece_count, int32_t token,
                        int32_t top_n, SampleScratch* scratch) {
  const size_t pieces = PieceCount(vocab, piece_count);
  if (vocab <= 0 || token < 0 || static_cast<size_t>(token) >= pieces) return NotFinite();
  const std::span<const float> row(logits, static_cast<size_t>(vocab));
  const LogitRange range = ScanLogits(row);
  if (!range.valid || range.largest == kMinusInfinity) return NotFinite();
  SampleResult result;
  result.token = token;
  const Distribution distribution(row, pieces, range.largest);
  distribution.Score(token, &result);
  distribution.Top(top_n, scratch, &result);
  return result;
}

}  // namespace cpu
}  // namespace morphserve::kernels
