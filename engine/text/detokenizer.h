// Detokenizer turns the tokens of one generation into text as they arrive: whole UTF-8 only, U+FFFD
// for what can never become valid (one per maximal subpart). StopMatcher cuts at stop strings and
// holds back exactly what may still become one. Both are small values owned by one sequence. Thread
// rule: one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer.h"

namespace morphserve {

class Detokenizer {
 public:
  // `tokenizer` outlives this. `at_text_start` false: a continuation, no leading space is stripped.
  Detokenizer(const Tokenizer* tokenizer, bool skip_special, bool at_text_start);

  // Appends to `out` all text that `id` completes; may append nothing. An id without a piece, or
  // outside the vocabulary, stands for no text.
  void Append(int32_t id, std::string* out);
  // Ends the text: what is unfinished becomes U+FFFD.
  void Flush(std::string* out);
  // The bytes held back; what the Detokenize call reports as its incomplete tail.
  std::string_view held() const { return held_; }

 private:
  void AppendBytes(std::string_view bytes, std::string* out);
  void AppendToByteRun(std::string_view byte, std::string* out);
  void EndByteRun(std::string* out);
  // All text leaves through here: it loses a leading space where the text starts.
  void Emit(std::string_view text, std::string* out);

  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool at_first_token_;
  bool strip_next_space_;
  std::string held_;  // Unfinished UTF-8, at most 3 bytes; or a run of byte-fallback tokens.
  bool in_byte_run_ = false;
};

class StopMatcher {
 public:
  // Stop strings are non-empty; none is fine.
  explicit StopMatcher(std::vector<std::string> stops);

  struct Match {
    size_t stop_index = 0;  // Which stop string.
  };
  // Takes new text, appends to `out` what can no longer be part of a stop string. On a match (the
  // earliest end wins, then the longest string) everything before it has been appended, the stop
  // string itself only when `include_stop`; nothing may be added afterwards.
  std::optional<Match> Append(std::string_view text, bool include_stop, std::string* out);
  // Appends what was held back.
  void Flush(std::string* out);

 private:
  struct Node {
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t fail = 0;   // The longest proper suffix that is a node.
    int32_t stop = -1;  // The longest stop string that ends here, its own text or a suffix of it.
    uint32_t depth = 0;
    unsigned char byte = 0;
  };
  int32_t Child(int32_t node, unsigned char byte) const;
  int32_t Step(int32_t node, unsigned char byte) const;

  std::vector<std::string> stops_;
  std::vector<Node> nodes_;  // An Aho-Corasick automaton; [0] is the root.
  int32_t node_ = 0;         // Its depth is the length of held_.
  std::string held_;
};

}  // namespace morphserve
