// Tokenizer maps text to token ids and ids to bytes, exactly as the model's own files define it. It
// knows nothing of sequences or chat templates. Thread rule: immutable after load, any thread; the
// piece cache is per thread. Built by tokenizer_json.h or tokenizer_gguf.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace morphserve {

// The longest text that Encode takes; a server refuses far earlier.
inline constexpr size_t kTextBytesMax = size_t{64} << 20;

// A half-open range of bytes in a text.
struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
};

struct EncodeOptions {
  // Adds what the post-processor adds (BOS, EOS, ...). Off for rendered chats.
  bool add_special_tokens = false;
  // Added tokens match in the text. When `trusted` is given they match only inside ranges all of
  // whose bytes are trusted (written by the template, not by a user).
  bool parse_added_tokens = true;
  // Sorted, disjoint. Null: everything is trusted.
  const std::vector<ByteRange>* trusted = nullptr;
};

// Ids with a meaning of their own. Every one optional; all lie inside the vocabulary.
struct SpecialTokens {
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
  std::optional<int32_t> unknown;
  std::optional<int32_t> padding;
  // End of generation: eos, eot, eom, and the list of generation_config.json. Sorted, distinct.
  std::vector<int32_t> end_of_generation;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // INVALID_ARGUMENT for invalid UTF-8 (with the byte offset), or when a pattern hits its limit.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      const EncodeOptions& options) const = 0;

  // Ids in [0, vocab_size) may lack a piece; has_piece says so. Everything below CHECKs its range.
  virtual int32_t vocab_size() const = 0;
  virtual bool has_piece(int32_t id) const = 0;
  // The bytes that decoding concatenates. Of a byte-fallback token: its single byte.
  virtual std::string_view piece_bytes(int32_t id) const = 0;
  // The same when it is the first token of a whole text; only Metaspace decoders differ there.
  virtual std::string_view first_piece_bytes(int32_t id) const { return piece_bytes(id); }
  // Special in the sense of skip_special_tokens.
  virtual bool is_special(int32_t id) const = 0;
  // True for a byte token of a byte-fallback vocabulary (a run of them is held to its end).
  virtual bool is_byte_fallback(int32_t id) const = 0;
  // Decoding strips one leading space of the whole text (SentencePiece-type tokenizers).
  virtual bool strips_leading_space() const = 0;
  // The id whose content (added or plain token) is exactly `content`, if any.
  virtual std::optional<int32_t> FindToken(std::string_view content) const = 0;

  virtual const SpecialTokens& special() const = 0;
  virtual size_t longest_piece_bytes() const = 0;
  // Bytes of all texts encoded so far that no token stands for, so that they got no id.
  virtual int64_t dropped_bytes_total() const { return 0; }
  // "byte-level BPE (smollm), 49152 tokens": for logs and GetModelInfo.
  virtual std::string Describe() const = 0;
};

// Whole decode: what streaming through Detokenizer and flushing yields.
std::string Decode(const Tokenizer& tokenizer, std::span<const int32_t> ids, bool skip_special);

}  // namespace morphserve
