// How far a plan's next-token distributions are from those of the all-full plan. A reference row
// keeps the most likely tokens of one position with their log-probabilities and the mass of the
// rest as one more token, so that it stays small for any vocabulary: the divergence from it is the
// exact one up to that many tokens of vocabulary, and a lower bound, close, above. Pure functions.
#pragma once

#include <cstdint>
#include <vector>

namespace morphserve {

inline constexpr int32_t kReferenceTokens = 4096;

struct ReferenceRow {
  std::vector<int32_t> ids;
  std::vector<float> log_probabilities;  // Parallel to ids.
  double rest = 0;                       // Probability of all other tokens.
  int32_t best = 0;                      // The most likely token.
  double loss = 0;                       // -log p of the token that really follows.
};

// False when a logit is not finite.
bool MakeReferenceRow(const float* logits, int32_t vocab, int32_t next_token, ReferenceRow* row);

struct RowComparison {
  bool finite = true;
  double kl = 0;  // Of the reference from the row's distribution, in nats; at least 0.
  double loss = 0;
  bool same_best = false;
};
RowComparison CompareRow(const ReferenceRow& reference, const float* logits, int32_t vocab,
                         int32_t next_token);

}  // namespace morphserve
