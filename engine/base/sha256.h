// SHA-256 over OpenSSL's implementation. Thread rule: one thread at a time per object.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace morphserve {

using Sha256Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(std::span<const std::byte> bytes);
  void Update(std::string_view text) { Update(std::as_bytes(std::span(text.data(), text.size()))); }
  Sha256Digest Finish();  // Once.

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string HexDigest(const Sha256Digest& digest);

}  // namespace morphserve
