#include "server/request_id.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_format.h"

namespace morphserve {
namespace {

bool IsIdCharacter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == ':' || c == '-';
}

bool IsLowerHex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

// One generator a thread, seeded by the system: ids and seeds need to be distinct, not secret.
std::mt19937_64& Generator() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device(),
                       device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return generator;
}

}  // namespace

bool IsValidRequestId(std::string_view id) {
  return !id.empty() && id.size() <= kRequestIdBytesMax &&
         std::all_of(id.begin(), id.end(), IsIdCharacter);
}

std::string MakeRequestId() {
  return absl::StrFormat("r-%016x%016x", Generator()(), Generator()());
}

uint64_t MakeSeed() { return Generator()(); }

bool IsValidTraceparent(std::string_view value) {
  constexpr size_t kBytes = 55;
  if (value.size() != kBytes) return false;
  for (size_t i = 0; i < kBytes; ++i) {
    const bool dash = i == 2 || i == 35 || i == 52;
    if (dash ? value[i] != '-' : !IsLowerHex(value[i])) return false;
  }
  return true;
}

}  // namespace morphserve
