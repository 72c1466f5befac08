#include "engine/text/tokenizer_pieces.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/text/tokenizer_byte_alphabet.h"

namespace morphserve {
namespace {

constexpr size_t kArenaBytesMax = 256 << 20;

// The byte that "<0xHH>" names. The reference's number parser also takes a plus sign.
std::optional<char> ParseByteToken(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text.back() != '>') return std::nullopt;
  std::string_view digits = text.substr(3, 2);
  if (digits.starts_with('+')) digits.remove_prefix(1);
  uint8_t byte = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), byte, 16);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return static_cast<char>(byte);
}

absl::StatusOr<std::string> ReplaceAll(const DecoderSpec::Replace& rule, std::string_view text,
                                       RegexScratch* scratch) {
  std::string out;
  size_t done = 0;
  RegexMatches matches(*rule.pattern, text, scratch);
  while (matches.Next()) {
    out.append(text.substr(done, matches.begin() - done));
    out.append(rule.content);
    done = matches.end();
    if (out.size() > kArenaBytesMax) {
      return absl::InvalidArgumentError("a decoder replacement makes a token too long");
    }
  }
  MS_RETURN_IF_ERROR(matches.status());
  out.append(text.substr(done));
  return out;
}

// `text` with every `character` replaced.
std::string ReplaceCharacter(std::string_view text, std::string_view character,
                             std::string_view by) {
  std::string out;
  while (!text.empty()) {
    const size_t at = std::min(text.find(character), text.size());
    out.append(text.substr(0, at));
    text.remove_prefix(at);
    if (text.empty()) break;
    out.append(by);
    text.remove_prefix(character.size());
  }
  return out;
}

}  // namespace

PieceTable::Span PieceTable::Store(std::string_view bytes) {
  const Span span{arena_.size(), bytes.size()};
  arena_.append(bytes);
  longest_ = std::max(longest_, bytes.size());
  return span;
}

absl::StatusOr<PieceTable> PieceTable::Create(const std::vector<std::string>& tokens,
                                              const std::vector<bool>& present,
                                              const DecoderSpec& decoder) {
  PieceTable table;
  RegexScratch scratch;
  table.pieces_.resize(tokens.size());
  table.is_byte_.resize(tokens.size());
  if (decoder.metaspace_first_drops) table.first_pieces_.resize(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!present[id]) continue;
    std::string text = tokens[id];
    for (const DecoderSpec::Replace& rule : decoder.replacements) {
      MS_ASSIGN_OR_RETURN(text, ReplaceAll(rule, text, &scratch));
    }
    std::string first = text;
    if (!decoder.metaspace.empty()) {
      first = ReplaceCharacter(text, decoder.metaspace, decoder.metaspace_first_drops ? "" : " ");
      text = ReplaceCharacter(text, decoder.metaspace, " ");
    } else if (decoder.byte_level) {
      // The reference keeps a token as it is unless all of it is in the alphabet.
      if (std::optional<std::string> bytes = FromByteAlphabet(text); bytes.has_value()) {
        text = *std::move(bytes);
      }
    }
    if (decoder.byte_fallback) {
      if (const std::optional<char> byte = ParseByteToken(text); byte.has_value()) {
        text.assign(1, *byte);
        table.is_byte_[id] = true;
      }
    }
    table.pieces_[id] = table.Store(text);
    if (decoder.metaspace_first_drops) table.first_pieces_[id] = table.Store(first);
    if (table.arena_.size() > kArenaBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrFormat("the tokens decode to more than %d bytes of text", kArenaBytesMax));
    }
  }
  return table;
}

}  // namespace morphserve
