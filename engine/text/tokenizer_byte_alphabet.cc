#include "engine/text/tokenizer_byte_alphabet.h"

#include <array>

#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

// Printable Latin-1 stands for itself; the other 68 bytes take U+0100 and up, in order.
constexpr bool StandsForItself(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         (byte >= 0xAE && byte <= 0xFF);
}

constexpr uint32_t kAlphabetEnd = 0x100 + 68;

struct Tables {
  std::array<uint16_t, 256> character{};
  std::array<int16_t, kAlphabetEnd> byte{};  // -1: not in the alphabet.
};

constexpr Tables MakeTables() {
  Tables tables;
  for (int16_t& byte : tables.byte) byte = -1;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const uint32_t character = StandsForItself(byte) ? byte : next++;
    tables.character[byte] = static_cast<uint16_t>(character);
    tables.byte[character] = static_cast<int16_t>(byte);
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

}  // namespace

uint32_t ByteToAlphabet(uint8_t byte) { return kTables.character[byte]; }

std::string ToByteAlphabet(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (const char byte : bytes) AppendUtf8(ByteToAlphabet(static_cast<uint8_t>(byte)), &text);
  return text;
}

std::optional<std::string> FromByteAlphabet(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  while (!text.empty()) {
    size_t length = 0;
    const uint32_t character = DecodeUtf8(text, &length);
    if (character >= kAlphabetEnd || kTables.byte[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kTables.byte[character]));
    text.remove_prefix(length);
  }
  return bytes;
}

}  // namespace morphserve
