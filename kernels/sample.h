// What         Turns one row of logits into one token: penalties and masks, temperature, top-k,
//              top-p, min-p, one Philox uniform, inverse CDF; and log-probabilities on request.
// Math         In this order:
//              1. bias: l[i] += logit_bias[i]; banned ids -> -inf; with an allowed list every id
//                 outside it -> -inf; ids >= piece_count (rows of the head without a token) ->
//                 -inf.
//              2. penalties over counts of the sequence's tokens: repetition r on ids seen in
//              prompt
//                 or output (l > 0: l / r, else l * r); frequency f and presence p on output ids:
//                 l -= f * count + p.
//              3. greedy when temperature == 0: the largest l, ties to the smaller id.
//              4. l /= temperature; sort survivors by (l descending, id ascending); top_k keeps the
//                 first k; p = softmax over the kept; top_p keeps the shortest prefix whose sum
//                 reaches it; min_p drops p < min_p * p[0]; renormalise.
//              5. u = Philox4x32-10(key = seed, counter = (position, choice, 0, 0)) as 24-bit
//              uniform
//                 in [0, 1); the first token whose cumulative probability exceeds u.
//              Log-probabilities are of the model's own distribution: log-softmax of the untouched
//              logits, accumulated in f64.
// Dtypes       logits f32.    Aliasing  logits are overwritten.
// Errors       none as a status: `finite` is false when a logit of the row is NaN or +inf, or no
// token
//              survives; the token is then -1.
// Determinism  a pure function of its arguments. Thread rule: reentrant; no pool.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace morphserve::kernels {

struct TokenCount {
  int32_t id = 0;
  int32_t output_count = 0;  // Occurrences among generated tokens; 0 when only in the prompt.
};

struct SampleArgs {
  float* logits = nullptr;
  int32_t vocab = 0;
  int32_t piece_count = 0;
  float temperature = 1;
  int32_t top_k = 0;  // 0: off.
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float frequency_penalty = 0;
  float presence_penalty = 0;
  std::span<const TokenCount> seen;  // Distinct ids, any order.
  std::span<const std::pair<int32_t, float>> logit_bias;
  std::span<const int32_t> banned;
  std::span<const int32_t> allowed;  // Empty: all.
  uint64_t seed = 0;
  uint32_t position = 0;  // Index of the token being sampled in the sequence.
  uint32_t choice = 0;
  int32_t logprobs = -1;  // -1 none; 0 the chosen one; n the n most likely as well.
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct SampleResult {
  int32_t token = -1;
  bool finite = true;
  float logprob = 0;              // Of the token, when asked for.
  int32_t rank = 0;               // 1 = most likely, when asked for.
  std::vector<TokenLogprob> top;  // logprob descending, id ascending.
};

// Reusable memory of one sampling thread; starts empty and grows to the vocabulary.
struct SampleScratch {
  std::vector<std::pair<float, int32_t>> candidates;
  std::vector<float> weights;
  std::vector<float> untouched;  // Logits as the model gave them, when log-probabilities are asked.
};

// First word of Philox4x32-10 as a 24-bit uniform in [0, 1). Source: Salmon et al. 2011.
float PhiloxUniform(uint64_t seed, uint32_t position, uint32_t choice);

namespace cpu {
SampleResult Sample(const SampleArgs& args, SampleScratch* scratch);

// Log-probability, rank and the n most likely tokens for a given token (prompt log-probabilities).
SampleResult ScoreToken(const float* logits, int32_t vocab, int32_t piece_count, int32_t token,
                        int32_t top_n, SampleScratch* scratch);
}  // namespace cpu

}  // namespace morphserve::kernels
