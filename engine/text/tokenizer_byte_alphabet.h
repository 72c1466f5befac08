// The byte alphabet of byte-level BPE: one printable character for each of the 256 bytes, in which
// the vocabulary and the merges of such models are written. Thread rule: pure functions. Source:
// Radford et al. 2019, "Language models are unsupervised multitask learners" (bytes_to_unicode).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace morphserve {

// The character that stands for `byte`.
uint32_t ByteToAlphabet(uint8_t byte);

// `bytes` written in the alphabet.
std::string ToByteAlphabet(std::string_view bytes);

// The bytes that `text`, well-formed UTF-8, stands for; none when a character is not in the
// alphabet.
std::optional<std::string> FromByteAlphabet(std::string_view text);

}  // namespace morphserve
