// Element types of weights and caches, shared by every operation's contract.
#pragma once

#include <cstddef>
#include <cstdint>

namespace morphserve {

// Types a checkpoint file may hold. The names are those of GGUF and safetensors.
// kF8_E4M3 has no infinities, its largest value is 448, and its codes 0x7f and 0xff are NaN; what a
// file's codes are multiplied with is a tensor of its own.
enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kF8_E4M3
};

// Elements of one block (1 for plain floats, 32 for Q8_0, Q4_0 and Q4_1, 256 for the K types).
constexpr int32_t BlockElements(DType type) {
  switch (type) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kF8_E4M3: return 1;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1: return 32;
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K: return 256;
  }
  return 0;
}

// Bytes of one block in a file.
constexpr int32_t BlockBytes(DType type) {
  switch (type) {
    case DType::kF32: return 4;
    case DType::kF16:
    case DType::kBF16: return 2;
    case DType::kQ8_0: return 34;
    case DType::kQ4_0: return 18;
    case DType::kQ4_1: return 20;
    case DType::kQ4_K: return 144;
    case DType::kQ5_K: return 176;
    case DType::kQ6_K: return 210;
    case DType::kF8_E4M3: return 1;
  }
  return 0;
}

constexpr const char* DTypeName(DType type) {
  switch (type) {
    case DType::kF32: return "F32";
    case DType::kF16: return "F16";
    case DType::kBF16: return "BF16";
    case DType::kQ8_0: return "Q8_0";
    case DType::kQ4_0: return "Q4_0";
    case DType::kQ4_1: return "Q4_1";
    case DType::kQ4_K: return "Q4_K";
    case DType::kQ5_K: return "Q5_K";
    case DType::kQ6_K: return "Q6_K";
    case DType::kF8_E4M3: return "F8_E4M3";
  }
  return "?";
}

// Floats that stand for themselves, without a scale.
constexpr bool IsPlainFloat(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

// Element type of K and V in the cache.
// kE4m3, of pages on CUDA alone, has no scale: values beyond 448 become 448.
enum class KvDType : uint8_t { kF32, kF16, kBF16, kE4m3 };
constexpr int32_t KvDTypeBytes(KvDType type) {
  if (type == KvDType::kE4m3) return 1;
  return type == KvDType::kF32 ? 4 : 2;
}

// KV positions in a page; the numeric grid of prefill; positions in one attention block.
inline constexpr int32_t kPageTokens = 64;
inline constexpr int32_t kAttentionBlockTokens = 256;

// Page tables and slot tables name arena addresses in units of this many bytes.
inline constexpr int64_t kArenaUnitBytes = 256;

}  // namespace morphserve
