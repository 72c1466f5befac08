// A small arena of KV pages in the layout of kernels/qk_rope_append.h or of another backend, filled
// through that operation, with garbage (NaN) wherever nothing was written.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/qk_rope_append.h"
#include "tests/kernels/kernel_test_util.h"

namespace morphserve::kernels {

// The value of the 16-bit pattern as binary16, by the definition of the format.
inline double ValueOfF16(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  double value =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
  if (exponent == 31) value = fraction == 0 ? INFINITY : NAN;
  return (bits & 0x8000) != 0 ? -value : value;
}

// The value of an e4m3 code, by the definition of the format.
inline double ValueOfE4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  if ((code & 127) == 127) return NAN;
  const double value =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(fraction + 8, exponent - 10);
  return (code & 128) != 0 ? -value : value;
}

// Index of element i of a position within the keys or the values of one head in a page.
using PlaceInHeadFunction = int64_t (*)(KvDType type, bool is_key, int32_t head_dim, int32_t offset,
                                        int32_t i);

inline int64_t CpuPlaceInHead(KvDType, bool is_key, int32_t head_dim, int32_t offset, int32_t i) {
  return is_key ? int64_t{i} * kPageTokens + offset : int64_t{offset} * head_dim + i;
}

class KvPages {
 public:
  KvPages(KvDType type, int32_t kv_heads, int32_t head_dim, int32_t pages,
          PlaceInHeadFunction place = CpuPlaceInHead)
      : place_(place),
        type_(type),
        kv_heads_(kv_heads),
        head_dim_(head_dim),
        units_(static_cast<int32_t>((PageBytes(type, kv_heads, head_dim) + kArenaUnitBytes - 1) /
                                    kArenaUnitBytes)),
        memory_(int64_t{units_} * pages * kArenaUnitBytes) {
    std::memset(base(), 0xff, static_cast<size_t>(memory_.bytes()));  // NaN in every type.
  }

  std::byte* base() { return memory_.data(); }
  int64_t bytes() const { return memory_.bytes(); }
  // Address of page i, in units; pages lie in reverse, so that a walk past one end is wrong.
  int32_t Address(int32_t i) const {
    const auto pages = static_cast<int32_t>(memory_.bytes() / kArenaUnitBytes / units_);
    return (pages - 1 - i) * units_;
  }
  std::vector<int32_t> Table(int32_t first, int32_t count) const {
    std::vector<int32_t> table;
    for (int32_t i = 0; i < count; ++i) table.push_back(Address(first + i));
    return table;
  }

  // Values as the cache holds them.
  double K(int32_t address, int32_t head, int32_t offset, int32_t i) {
    return At(address,
              int64_t{head} * kPageTokens * head_dim_ + place_(type_, true, head_dim_, offset, i));
  }
  double V(int32_t address, int32_t head, int32_t offset, int32_t i) {
    return At(address, int64_t{kv_heads_ + head} * kPageTokens * head_dim_ +
                           place_(type_, false, head_dim_, offset, i));
  }

 private:
  double At(int32_t address, int64_t element) {
    const std::byte* const page = base() + int64_t{address} * kArenaUnitBytes;
    if (type_ == KvDType::kF32) {
      float value;
      std::memcpy(&value, page + element * 4, 4);
      return static_cast<double>(value);
    }
    if (type_ == KvDType::kE4m3) return ValueOfE4m3(std::to_integer<uint8_t>(page[element]));
    uint16_t bits;
    std::memcpy(&bits, page + element * 2, 2);
    if (type_ == KvDType::kF16) return ValueOfF16(bits);
    return static_cast<double>(std::bit_cast<float>(uint32_t{bits} << 16));
  }

  PlaceInHeadFunction place_;
  KvDType type_;
  int32_t kv_heads_;
  int32_t head_dim_;
  int32_t units_;
  Workspace memory_;
};

}  // namespace morphserve::kernels
