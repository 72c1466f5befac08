// A tokenizer of single bytes: id = byte value, id 256 ends a generation, id 257 is the two bytes
// of U+00E9. Enough to test what happens around text without a vocabulary.
#pragma once

#include <array>
#include <string>

#include "engine/text/tokenizer.h"

namespace morphserve {

class FakeTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kEnd = 256;
  static constexpr int32_t kAccent = 257;

  FakeTokenizer() {
    for (int i = 0; i < 256; ++i)
      pieces_[static_cast<size_t>(i)] = std::string(1, static_cast<char>(i));
    pieces_[256] = "<end>";
    pieces_[257] = "\xC3\xA9";
    special_.eos = kEnd;
    special_.end_of_generation = {kEnd};
  }
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions&) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  int32_t vocab_size() const override { return 258; }
  bool has_piece(int32_t) const override { return true; }
  std::string_view piece_bytes(int32_t id) const override {
    return pieces_[static_cast<size_t>(id)];
  }
  bool is_special(int32_t id) const override { return id == kEnd; }
  bool is_byte_fallback(int32_t) const override { return false; }
  bool strips_leading_space() const override { return false; }
  std::optional<int32_t> FindToken(std::string_view) const override { return std::nullopt; }
  const SpecialTokens& special() const override { return special_; }
  size_t longest_piece_bytes() const override { return 5; }
  std::string Describe() const override { return "bytes"; }

 private:
  std::array<std::string, 258> pieces_;
  SpecialTokens special_;
};

}  // namespace morphserve
