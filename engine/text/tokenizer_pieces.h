// PieceTable holds the bytes that every token id decodes to, worked out once at load from the token
// texts and the decoder's rules. Thread rule: immutable after Create. Source: behaviour of Hugging
// Face tokenizers' decoders (ByteLevel, Replace, ByteFallback, Metaspace).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer_spec.h"

namespace morphserve {

class PieceTable {
 public:
  static absl::StatusOr<PieceTable> Create(const std::vector<std::string>& tokens,
                                           const std::vector<bool>& present,
                                           const DecoderSpec& decoder);

  std::string_view bytes(int32_t id) const { return At(pieces_[static_cast<size_t>(id)]); }
  // As the first token of a text.
  std::string_view first_bytes(int32_t id) const {
    return first_pieces_.empty() ? bytes(id) : At(first_pieces_[static_cast<size_t>(id)]);
  }
  bool is_byte(int32_t id) const { return is_byte_[static_cast<size_t>(id)]; }
  size_t longest() const { return longest_; }

 private:
  struct Span {
    size_t begin = 0;
    size_t size = 0;
  };
  std::string_view At(Span span) const {
    return std::string_view(arena_).substr(span.begin, span.size);
  }
  Span Store(std::string_view bytes);

  std::string arena_;
  std::vector<Span> pieces_;
  std::vector<Span> first_pieces_;  // Empty: the same as pieces_.
  std::vector<bool> is_byte_;
  size_t longest_ = 0;
};

}  // namespace morphserve
