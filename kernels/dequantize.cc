// Dequantize: file blocks to f32, as the formats define them.
#include <algorithm>

#include "kernels/gemm.h"
#include "kernels/quant_block.h"

namespace morphserve::kernels {
namespace {

void DequantizeQ8(const std::byte* block, float* out) {
  const float d = HalfToFloat(LoadU16(block));
  for (int i = 0; i < 32; ++i) {
    out[i] = d * static_cast<float>(std::to_integer<int8_t>(block[2 + i]));
  }
}

// Low nibbles are inputs 0..15, high nibbles 16..31. offset: what is subtracted from the nibble.
void DequantizeNibbles(const std::byte* nibbles, float d, float m, int offset, float* out) {
  for (int i = 0; i < 16; ++i) {
    const int byte = std::to_integer<int>(nibbles[i]);
    out[i] = d * static_cast<float>((byte & 15) - offset) + m;
    out[16 + i] = d * static_cast<float>((byte >> 4) - offset) + m;
  }
}

void DequantizeSuper(const SuperBlock& block, float* out) {
  const float d = HalfToFloat(block.d);
  const float dmin = HalfToFloat(block.dmin);
  for (int g = 0; g < 8; ++g) {
    const float scale = d * static_cast<float>(block.scale[g]);
    const float min = dmin * static_cast<float>(block.min[g]);
    for (int i = 0; i < 32; ++i) {
      out[32 * g + i] = scale * static_cast<float>(block.q[32 * g + i]) - min;
    }
  }
}

void DequantizeSixBit(const SuperBlock& block, float* out) {
  const float d = HalfToFloat(block.d);
  for (int g = 0; g < 16; ++g) {
    const float scale = d * static_cast<float>(static_cast<int8_t>(block.scale[g]));
    for (int i = 0; i < 16; ++i) {
      out[16 * g + i] = scale * static_cast<float>(block.q[16 * g + i] - 32);
    }
  }
}

void DequantizeBlock(DType type, const std::byte* block, float* out) {
  SuperBlock super;
  switch (type) {
    case DType::kF32: std::memcpy(out, block, sizeof(float)); return;
    case DType::kF16: *out = HalfToFloat(LoadU16(block)); return;
    case DType::kBF16: *out = BFloat16ToFloat(LoadU16(block)); return;
    case DType::kF8_E4M3: *out = E4m3ToFloat(std::to_integer<uint8_t>(*block)); return;
    case DType::kQ8_0: DequantizeQ8(block, out); return;
    case DType::kQ4_0:
      DequantizeNibbles(block + 2, HalfToFloat(LoadU16(block)), 0.0f, 8, out);
      return;
    case DType::kQ4_1:
      DequantizeNibbles(block + 4, HalfToFloat(LoadU16(block)), HalfToFloat(LoadU16(block + 2)), 0,
                        out);
      return;
    case DType::kQ4_K:
      ReadQ4K(block, &super);
      DequantizeSuper(super, out);
      return;
    case DType::kQ5_K:
      ReadQ5K(block, &super);
      DequantizeSuper(super, out);
      return;
    case DType::kQ6_K:
      ReadQ6K(block, &super);
      DequantizeSixBit(super, out);
      return;
  }
}

}  // namespace

void Dequantize(DType type, const std::byte* source, int64_t count, float* out) {
  const int64_t elements = BlockElements(type);
  const int64_t bytes = BlockBytes(type);
  for (int64_t i = 0; i < count / elements; ++i) {
    DequantizeBlock(type, source + i * bytes, out + i * elements);
  }
}

}  // namespace morphserve::kernels
