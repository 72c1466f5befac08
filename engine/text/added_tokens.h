// AddedTokens finds the tokens that stand outside a model's own vocabulary rules (control tokens
// and the like) in a text and cuts it there: leftmost match first, the longest of those that start
// there. Thread rule: immutable after Create. Texts are untrusted; the work is linear in them.
// Source: Aho and Corasick 1975, "Efficient string matching".
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"

namespace morphserve {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // Matches only where no word character touches it.
  bool lstrip = false;       // Takes the white space before it.
  bool rstrip = false;       // Takes the white space after it.
  bool normalized = false;   // Matched in normalised text.
  bool special = false;      // Left out by skip_special_tokens.
};

// A stretch of text: an added token, or (id -1) what lies between.
struct TextSegment {
  size_t begin = 0;
  size_t end = 0;
  int32_t id = -1;
};

class AddedTokens {
 public:
  // Contents together at most this long.
  static constexpr size_t kContentBytesMax = 4 << 20;

  // INVALID_ARGUMENT when the contents are too long. Of equal contents the first one counts; an
  // empty one never matches.
  static absl::StatusOr<std::unique_ptr<const AddedTokens>> Create(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  // Appends the segments of `text`, in order. With `trusted` (sorted, disjoint, not touching one
  // another), tokens match only inside one of its ranges.
  void Split(std::string_view text, const std::vector<ByteRange>* trusted,
             std::vector<TextSegment>* segments) const;

 private:
  struct Node {
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t fail = 0;           // The longest proper suffix that is a node.
    int32_t suffix_match = -1;  // Nearest node on the fail chain at which a token ends.
    int32_t token = -1;         // Index of the token that ends here.
    uint32_t depth = 0;
    unsigned char byte = 0;
  };
  struct Match {
    size_t begin = 0;
    size_t end = 0;
    int32_t token = -1;
  };

  struct SplitState {
    size_t done = 0;  // Text before it is in segments.
    // The last run of white space looked at, so that no run is read twice.
    size_t space_begin = 1;
    size_t space_end = 0;
    size_t EndOfWhiteSpace(std::string_view text, size_t from);
  };

  void Insert(size_t token);
  void LinkFailures();
  int32_t Child(int32_t node, unsigned char byte) const;
  int32_t Step(int32_t node, unsigned char byte) const;
  // The next match in [from, to) of `text`; token -1 when there is none.
  Match Find(std::string_view text, size_t from, size_t to) const;
  void SplitRange(std::string_view text, ByteRange range, SplitState* state,
                  std::vector<TextSegment>* segments) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;                   // [0] is the root.
  std::array<int32_t, 256> root_children_{};  // 0: none.
};

}  // namespace morphserve
