// Bpe is byte-pair encoding of one piece of text: symbols that are merged, best rank first and
// leftmost on ties, until no pair has a merge. It serves both kinds of vocabulary: ranked merges
// (Hugging Face, GPT-2) and SentencePiece's, whose ranks come from scores (see
// sentencepiece_bpe.h). It knows nothing of added tokens or of how text is cut into pieces. Thread
// rule: immutable after Create; BpeScratch belongs to one thread at a time. O(n log n). Source:
// Sennrich et al. 2016 (arXiv 1508.07909).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

namespace morphserve {

// Two neighbours become `result`. Lower ranks go first; equal ranks only among SentencePiece
// merges.
struct BpeMerge {
  int32_t left = 0;
  int32_t right = 0;
  int32_t rank = 0;
  int32_t result = 0;
};

struct BpeSpec {
  // By id. What the model looks characters and whole pieces up in; ids whose `in_model` is false
  // (control tokens of a GGUF file, gaps) are never found. In the byte alphabet when byte_level.
  std::vector<std::string> tokens;
  std::vector<bool> in_model;
  // Ids, or, from tokens.size() up, characters that have no token of their own (SentencePiece
  // only).
  std::vector<BpeMerge> merges;
  std::vector<std::string> characters_without_token;

  bool byte_level = false;     // A piece's symbols are its bytes, not its characters.
  bool ignore_merges = false;  // A piece that is a token is taken whole.
  bool fuse_unknown = false;   // Neighbouring unknown characters become one unknown token.
  bool fallback_last = false;  // Unknown characters may merge first (SentencePiece).
  std::optional<int32_t> unknown;
  // Ids of the byte tokens, for characters that have no token; empty: no byte fallback. -1: that
  // byte has none.
  std::vector<int32_t> byte_ids;
  std::string continuing_prefix;
  std::string word_suffix;
  // Ids that untrusted text must not reach (control tokens).
  std::vector<int32_t> protected_ids;
};

// Working space of one thread.
class BpeScratch {
 private:
  friend class Bpe;
  struct Symbol {
    int32_t id;
    int32_t previous;  // -1: none.
    int32_t next;      // -1: none; also of a symbol that was merged away (its id is kMerged).
    uint32_t begin;    // Of its text in the piece.
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t result;
  };
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
  std::string text_;
};

class Bpe {
 public:
  // Takes a spec whose ids are all inside tokens (the loaders check that; broken ones CHECK).
  static std::unique_ptr<const Bpe> Create(BpeSpec spec);

  // Appends the ids of `piece` (not empty, well-formed UTF-8). `protect`: the result holds no
  // protected id that merging or whole-piece lookup would make. Returns how many of its bytes got
  // no id.
  size_t Encode(std::string_view piece, bool protect, BpeScratch* scratch,
                std::vector<int32_t>* ids) const;

  // The whole piece as one token (ignore_merges), if that applies.
  std::optional<int32_t> FindWhole(std::string_view piece, bool protect, BpeScratch* scratch) const;
  // True when `protect` can change what Encode gives; otherwise results may be shared.
  bool protection_matters() const { return protection_matters_; }
  // The token whose text in the model is exactly `text`.
  std::optional<int32_t> Find(std::string_view text) const;

 private:
  explicit Bpe(BpeSpec spec);
  struct Slot {
    uint64_t pair;  // kEmptyPair: free.
    int32_t rank;
    int32_t result;
  };
  void BuildVocabulary();
  void BuildMerges();
  void BuildByteSymbols();

  // Null when the pair has no merge.
  const Slot* FindMerge(int32_t left, int32_t right) const;
  void AddSymbol(int32_t id, size_t begin, BpeScratch* scratch) const;
  void SplitBytes(std::string_view piece, BpeScratch* scratch, size_t* dropped) const;
  void SplitCharacters(std::string_view piece, BpeScratch* scratch, size_t* dropped) const;
  bool AddByteTokens(std::string_view text, size_t begin, BpeScratch* scratch) const;
  void PushCandidate(int32_t position, bool protect, BpeScratch* scratch) const;
  void MergeAll(bool protect, BpeScratch* scratch) const;
  size_t EmitWithFallback(std::string_view piece, const BpeScratch& scratch,
                          std::vector<int32_t>* ids) const;

  BpeSpec spec_;
  absl::flat_hash_map<std::string_view, int32_t> ids_;         // Into spec_.tokens.
  absl::flat_hash_map<std::string_view, int32_t> characters_;  // Into characters_without_token.
  std::vector<Slot> merges_;                                   // Open addressing, a power of two.
  int merges_shift_ = 63;
  std::vector<bool> protected_;  // By id.
  bool protection_matters_ = false;
  size_t longest_token_bytes_ = 0;
  // byte_level without affixes, and no byte needs a fallback: a byte's symbol by table.
  bool plain_bytes_ = false;
  std::array<int32_t, 256> byte_symbols_{};  // -1: none, the byte is dropped.
};

}  // namespace morphserve
