// Small branches files in memory, right in every part, for tests to damage one part of.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/model/model_config.h"

namespace morphserve {

// 2 layers, hidden 24, 4 heads over 2 of keys and values, head dimension 6.
inline ModelConfig BranchBase(bool interleaved = false) {
  ModelConfig c;
  c.layers = 2;
  c.hidden = 24;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 6;
  c.mlp_width = 32;
  c.vocab = 50;
  c.context = 256;
  c.norm_eps = 1e-5F;
  c.window = {0, 0};
  c.rope.rotary_dim = 6;
  c.rope.interleaved = interleaved;
  return c;
}

class BranchesBuilder {
 public:
  struct Tensor {
    std::string dtype = "BF16";
    std::vector<int64_t> shape;
    std::string bytes = "";
  };

  explicit BranchesBuilder(const std::string& kind, bool own = false) {
    const bool state = kind != "window";
    const bool window = kind == "window" || kind == "gated_delta_window";
    const bool delta = state && kind != "lightning";
    metadata = {{"format", 1},
                {"base_id", std::string(64, 'a')},
                {"base_name", "tiny base"},
                {"kind", kind},
                {"heads", 4},
                {"head_dim", 6}};
    if (window) metadata.update({{"window", 5}, {"sinks", 2}});
    if (!state) return;
    metadata.update({{"parameterisation", own ? "own" : "shared"},
                     {"gate_rank", 2},
                     {"conv", 3},
                     {"eps", delta ? 1e-6 : 1e-5},
                     {"norm_eps", 1e-5},
                     {"scale", 0.40824829}});
    if (!own) metadata["rank"] = 3;
    for (int layer = 0; layer < 2; ++layer) {
      const std::string p = "layers." + std::to_string(layer) + ".linear.";
      if (own) {
        Add(p + "wq", {24, 24});
        Add(p + "wk", {12, 24});
        Add(p + "wv", {12, 24});
        Add(p + "wo", {24, 24});
      } else {
        for (const char* x : {"aq", "ak", "av"}) Add(p + x, {3, 24});
        for (const char* x : {"bq", "bk", "bv"}) Add(p + x, {24, 3});
        Add(p + "ao", {3, 24});
        Add(p + "bo", {24, 3});
      }
      Add(p + "conv", {3, 72});
      Add(p + "gd", {2, 24});
      Add(p + "gu", {24, 2});
      Add(p + "gb", {24});
      Add(p + "nw", {24});
      if (delta) {
        for (const char* x : {"wa", "wb"}) Add(p + x, {4, 24});
        for (const char* x : {"a_log", "dt_bias", "b_beta"}) Add(p + x, {4});
      } else {
        Add(p + "slopes", {4});
      }
      if (window) {
        Add(p + "ws", {4, 24});
        Add(p + "bs", {4});
      }
    }
  }

  // Values count up over the file: exact in bf16, and no two tensors are alike.
  void Add(const std::string& name, std::vector<int64_t> shape) {
    Tensor tensor{.shape = std::move(shape)};
    int64_t count = 1;
    for (const int64_t extent : tensor.shape) count *= extent;
    for (int64_t i = 0; i < count; ++i) AppendBf16(&tensor.bytes, Value(name, i));
    tensors[name] = std::move(tensor);
  }

  // Of element `i` of a tensor: 1 to 1.9921875 in steps that bf16 holds.
  static float Value(const std::string& name, int64_t i) {
    uint64_t hash = 1469598103934665603ULL;
    for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 1099511628211ULL;
    return 1 + static_cast<float>((hash + static_cast<uint64_t>(i) * 37) % 128) / 128;
  }
  static void AppendBf16(std::string* bytes, float value) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, 4);
    bytes->push_back(static_cast<char>(bits >> 16));
    bytes->push_back(static_cast<char>(bits >> 24));
  }

  std::string Build() const { return BuildWith({{"morphserve", metadata.dump()}}); }
  std::string BuildWith(const nlohmann::json& notes) const {
    nlohmann::json header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      header[name] = {{"dtype", tensor.dtype},
                      {"shape", tensor.shape},
                      {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
      data += tensor.bytes;
    }
    if (!notes.is_null()) header["__metadata__"] = notes;
    const std::string text = header.dump();
    const uint64_t length = text.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
  }

  nlohmann::json metadata;
  std::map<std::string, Tensor> tensors;
};

}  // namespace morphserve
