// A random checkpoint in memory, small enough that a test runs hundreds of requests through the
// real kernels.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/loader/checkpoint.h"

namespace morphserve {

struct TinyOptions {
  DType dtype = DType::kF32;  // Of matrices: kF32, kBF16 or kQ8_0.
  int32_t layers = 2;
  int32_t hidden = 64;
  int32_t heads = 6;
  int32_t kv_heads = 2;
  int32_t head_dim = 16;
  int32_t mlp_width = 96;
  int32_t vocab = 200;
  int32_t context = 1024;
  int32_t window = 0;
  bool qkv_bias = false;
  bool qk_norm = false;
  bool tied_head = true;
  uint32_t seed = 1;
};

class MemoryTensors final : public TensorSource {
 public:
  void Add(const std::string& name, DType dtype, std::vector<int64_t> shape, float scale,
           float mean, std::mt19937* random) {
    TensorInfo info;
    info.name = name;
    info.dtype = dtype;
    info.shape = std::move(shape);
    info.offset = static_cast<int64_t>(bytes_.size());
    const int64_t count = info.elements();
    info.bytes = count / BlockElements(dtype) * BlockBytes(dtype);
    for (int64_t i = 0; i < count; i += BlockElements(dtype))
      AppendBlock(dtype, scale, mean, random);
    tensors_.push_back(std::move(info));
  }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(std::string_view name) const override {
    for (const TensorInfo& tensor : tensors_) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  absl::Status Read(const TensorInfo& tensor, int64_t offset,
                    std::span<std::byte> out) const override {
    std::memcpy(out.data(), bytes_.data() + tensor.offset + offset, out.size());
    return absl::OkStatus();
  }
  absl::Status CheckUnchanged() const override { return changed; }

  absl::Status changed;

 private:
  // Uniform in [-scale, scale] around the mean: portable, unlike the library's normal distribution.
  static float Draw(float scale, float mean, std::mt19937* random) {
    return mean + scale * (static_cast<float>((*random)() >> 8) * 0x1p-23F - 1);
  }
  template <typename T>
  void Append(T value) {
    const auto* raw = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), raw, raw + sizeof value);
  }
  void AppendBlock(DType dtype, float scale, float mean, std::mt19937* random) {
    if (dtype == DType::kF32) {
      Append(Draw(scale, mean, random));
    } else if (dtype == DType::kBF16) {
      const float value = Draw(scale, mean, random);
      uint32_t bits = 0;
      std::memcpy(&bits, &value, 4);
      Append(static_cast<uint16_t>(bits >> 16));
    } else {  // Q8_0: a power of two near scale / 127 as f16, then 32 random bytes.
      const int exponent = static_cast<int>(std::floor(std::log2(scale / 127)));
      Append(static_cast<uint16_t>((exponent + 15) << 10));
      for (int i = 0; i < 32; ++i)
        Append(static_cast<int8_t>(static_cast<int>((*random)() % 255) - 127));
    }
  }

  std::vector<TensorInfo> tensors_;
  std::vector<std::byte> bytes_;
};

inline Checkpoint MakeTinyCheckpoint(const TinyOptions& o) {
  Checkpoint checkpoint;
  checkpoint.name = "tiny";
  ModelConfig& c = checkpoint.config;
  c.architecture = o.qk_norm ? Architecture::kQwen3 : Architecture::kLlama;
  c.layers = o.layers;
  c.hidden = o.hidden;
  c.heads = o.heads;
  c.kv_heads = o.kv_heads;
  c.head_dim = o.head_dim;
  c.mlp_width = o.mlp_width;
  c.vocab = o.vocab;
  c.context = o.context;
  c.norm_eps = 1e-5F;
  c.qkv_bias = o.qkv_bias;
  c.qk_norm = o.qk_norm;
  c.tied_head = o.tied_head;
  c.window.assign(static_cast<size_t>(o.layers), o.window);
  c.rope.rotary_dim = o.head_dim;

  auto tensors = std::make_unique<MemoryTensors>();
  std::mt19937 random(o.seed);
  const auto matrix = [&](const std::string& name, int64_t n, int64_t k) {
    tensors->Add(name, o.dtype, {n, k}, 2 / std::sqrt(static_cast<float>(k)), 0, &random);
  };
  const auto vector = [&](const std::string& name, int64_t n, float mean) {
    tensors->Add(name, DType::kF32, {n}, 0.3F, mean, &random);
  };
  const int64_t q = int64_t{o.heads} * o.head_dim;
  const int64_t kv = int64_t{o.kv_heads} * o.head_dim;
  matrix("token_embd.weight", o.vocab, o.hidden);
  if (!o.tied_head) matrix("output.weight", o.vocab, o.hidden);
  vector("output_norm.weight", o.hidden, 1);
  for (int32_t l = 0; l < o.layers; ++l) {
    const std::string p = absl::StrCat("blk.", l, ".");
    vector(p + "attn_norm.weight", o.hidden, 1);
    vector(p + "ffn_norm.weight", o.hidden, 1);
    matrix(p + "attn_q.weight", q, o.hidden);
    matrix(p + "attn_k.weight", kv, o.hidden);
    matrix(p + "attn_v.weight", kv, o.hidden);
    matrix(p + "attn_output.weight", o.hidden, q);
    matrix(p + "ffn_gate.weight", o.mlp_width, o.hidden);
    matrix(p + "ffn_up.weight", o.mlp_width, o.hidden);
    matrix(p + "ffn_down.weight", o.hidden, o.mlp_width);
    if (o.qkv_bias) {
      vector(p + "attn_q.bias", q, 0);
      vector(p + "attn_k.bias", kv, 0);
      vector(p + "attn_v.bias", kv, 0);
    }
    if (o.qk_norm) {
      vector(p + "attn_q_norm.weight", o.head_dim, 1);
      vector(p + "attn_k_norm.weight", o.head_dim, 1);
    }
  }
  checkpoint.tensors = std::move(tensors);
  return checkpoint;
}

}  // namespace morphserve
