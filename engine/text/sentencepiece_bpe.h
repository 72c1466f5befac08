// Turns a SentencePiece BPE vocabulary (pieces with scores) into the ranked merges of bpe.h: two
// neighbours merge when their joined text is a piece, best score first, leftmost on ties.
// Thread rule: pure function.
// Source: Kudo and Richardson 2018 (arXiv 1808.06226).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/bpe.h"

namespace morphserve {

struct SentencePieceMerges {
  std::vector<BpeMerge> merges;
  // Characters that are part of pieces and no pieces themselves: they may still merge.
  std::vector<std::string> characters_without_token;
};

// `in_model[id]` says which tokens text can become. INVALID_ARGUMENT for a score that is not a
// number.
absl::StatusOr<SentencePieceMerges> BuildSentencePieceMerges(const std::vector<std::string>& tokens,
                                                             const std::vector<bool>& in_model,
                                                             const std::vector<double>& scores);

}  // namespace morphserve
