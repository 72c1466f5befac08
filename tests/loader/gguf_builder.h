// Writes GGUF headers byte by byte for tests, right ones and wrong ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace morphserve {

enum class GgufType : uint32_t {
  kU8 = 0,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};

template <typename T>
std::string Raw(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

inline std::string RawString(std::string_view text) {
  return Raw(static_cast<uint64_t>(text.size())) + std::string(text);
}

struct TensorEntry {
  std::string name;
  std::vector<uint64_t> dimensions;  // Fastest first, as in the file.
  uint32_t type = 0;
  uint64_t offset = 0;  // In the data section.
};

class GgufBuilder {
 public:
  uint32_t version = 3;
  std::string magic = "GGUF";
  int64_t alignment = 32;
  std::string data;  // The data section.

  // Appends a key with the raw bytes of its value.
  GgufBuilder& Key(std::string_view key, GgufType type, const std::string& value) {
    keys_ += RawString(key) + Raw(static_cast<uint32_t>(type)) + value;
    ++key_count_;
    return *this;
  }
  GgufBuilder& U32(std::string_view key, uint32_t value) {
    return Key(key, GgufType::kU32, Raw(value));
  }
  GgufBuilder& F32(std::string_view key, float value) {
    return Key(key, GgufType::kF32, Raw(value));
  }
  GgufBuilder& String(std::string_view key, std::string_view value) {
    return Key(key, GgufType::kString, RawString(value));
  }
  GgufBuilder& Array(std::string_view key, GgufType type, uint64_t count,
                     const std::string& elements) {
    return Key(key, GgufType::kArray, Raw(static_cast<uint32_t>(type)) + Raw(count) + elements);
  }

  GgufBuilder& Tensor(TensorEntry entry) {
    tensors_.push_back(std::move(entry));
    return *this;
  }
  // A tensor behind those before it, with `bytes` of data.
  GgufBuilder& Append(const std::string& name, std::vector<uint64_t> dimensions, uint32_t type,
                      size_t bytes) {
    const auto pad = static_cast<size_t>(alignment);
    data.resize((data.size() + pad - 1) / pad * pad);
    Tensor({name, std::move(dimensions), type, data.size()});
    data.resize(data.size() + bytes, '\x3c');
    return *this;
  }

  std::vector<TensorEntry>& tensors() { return tensors_; }

  std::string Header() const {
    std::string out = magic + Raw(version) + Raw(static_cast<uint64_t>(tensors_.size())) +
                      Raw(key_count_) + keys_;
    for (const TensorEntry& tensor : tensors_) {
      out += RawString(tensor.name) + Raw(static_cast<uint32_t>(tensor.dimensions.size()));
      for (const uint64_t extent : tensor.dimensions) out += Raw(extent);
      out += Raw(tensor.type) + Raw(tensor.offset);
    }
    return out;
  }

  std::string Build() const {
    std::string out = Header();
    const auto pad = static_cast<size_t>(alignment);
    out.resize((out.size() + pad - 1) / pad * pad);
    return out + data;
  }

 private:
  std::string keys_;
  uint64_t key_count_ = 0;
  std::vector<TensorEntry> tensors_;
};

// A llama of one layer, hidden 8, two heads of 4, a tied head: every tensor F32.
struct SmallLlama {
  std::string architecture = "llama";
  bool head = false;
  bool qkv_bias = false;
  bool qk_norm = false;
};

inline GgufBuilder SmallNetwork(const SmallLlama& options = {}) {
  GgufBuilder builder;
  const std::string a = options.architecture + ".";
  builder.String("general.architecture", options.architecture)
      .U32(a + "block_count", 1)
      .U32(a + "context_length", 64)
      .U32(a + "embedding_length", 8)
      .U32(a + "feed_forward_length", 12)
      .U32(a + "attention.head_count", 2)
      .U32(a + "attention.head_count_kv", 1)
      .F32(a + "attention.layer_norm_rms_epsilon", 1e-5F);
  const auto add = [&builder](const std::string& name, std::vector<uint64_t> dimensions) {
    uint64_t elements = 1;
    for (const uint64_t extent : dimensions) elements *= extent;
    builder.Append(name, std::move(dimensions), 0, elements * 4);
  };
  add("token_embd.weight", {8, 10});
  if (options.head) add("output.weight", {8, 10});
  add("output_norm.weight", {8});
  add("blk.0.attn_norm.weight", {8});
  add("blk.0.ffn_norm.weight", {8});
  add("blk.0.attn_q.weight", {8, 8});
  add("blk.0.attn_k.weight", {8, 4});
  add("blk.0.attn_v.weight", {8, 4});
  add("blk.0.attn_output.weight", {8, 8});
  if (options.qkv_bias) {
    add("blk.0.attn_q.bias", {8});
    add("blk.0.attn_k.bias", {4});
    add("blk.0.attn_v.bias", {4});
  }
  if (options.qk_norm) {
    add("blk.0.attn_q_norm.weight", {4});
    add("blk.0.attn_k_norm.weight", {4});
  }
  add("blk.0.ffn_gate.weight", {8, 12});
  add("blk.0.ffn_up.weight", {8, 12});
  add("blk.0.ffn_down.weight", {12, 8});
  return builder;
}

}  // namespace morphserve
