// A small llama folder with fp8 weights in one of the formats that people have, and its twin: the
// same weights, dequantised, in F32. Thread rule: the test's thread.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/quant_block.h"
#include "tests/loader/temp_folder.h"

namespace morphserve {

enum class Fp8Kind { kTensor, kBlock, kCompressedTensor, kCompressedChannel, kCompressedBlock };
inline constexpr Fp8Kind kFp8Kinds[] = {Fp8Kind::kTensor, Fp8Kind::kBlock,
                                        Fp8Kind::kCompressedTensor, Fp8Kind::kCompressedChannel,
                                        Fp8Kind::kCompressedBlock};

// quantization_config as the programs that make such checkpoints write it.
inline nlohmann::json Fp8Quantisation(Fp8Kind kind) {
  using nlohmann::json;
  if (kind == Fp8Kind::kTensor) {
    return {
        {"quant_method", "fp8"}, {"activation_scheme", "static"}, {"ignored_layers", {"lm_head"}}};
  }
  if (kind == Fp8Kind::kBlock) {
    return {{"quant_method", "fp8"},
            {"fmt", "e4m3"},
            {"activation_scheme", "dynamic"},
            {"modules_to_not_convert", {"lm_head"}},
            {"weight_block_size", {128, 128}}};
  }
  json weights = {{"num_bits", 8},
                  {"type", "float"},
                  {"symmetric", true},
                  {"dynamic", false},
                  {"actorder", nullptr},
                  {"group_size", nullptr},
                  {"observer", "minmax"},
                  {"observer_kwargs", json::object()},
                  {"block_structure", nullptr}};
  weights["strategy"] = kind == Fp8Kind::kCompressedTensor    ? "tensor"
                        : kind == Fp8Kind::kCompressedChannel ? "channel"
                                                              : "block";
  if (kind == Fp8Kind::kCompressedBlock) weights["block_structure"] = {128, 128};
  const json activations = {{"num_bits", 8}, {"type", "float"}, {"dynamic", true}};
  const json group = {{"targets", {"Linear"}},
                      {"weights", weights},
                      {"input_activations", activations},
                      {"output_activations", nullptr}};
  return {{"quant_method", "compressed-tensors"},
          {"format", "float-quantized"},
          {"config_groups", {{"group_0", group}}},
          {"ignore", {"lm_head"}},
          {"kv_cache_scheme", nullptr},
          {"quantization_status", "compressed"},
          {"sparsity_config", json::object()},
          {"global_compression_ratio", 1.2}};
}

class Fp8Folder {
 public:
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };
  static constexpr int32_t kHidden = 192, kWidth = 288, kVocab = 72, kHeadDim = 64;

  explicit Fp8Folder(Fp8Kind kind) : kind_(kind) {
    config = {{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"vocab_size", kVocab},
              {"hidden_size", kHidden},
              {"intermediate_size", kWidth},
              {"num_hidden_layers", 2},
              {"num_attention_heads", kHidden / kHeadDim},
              {"num_key_value_heads", 1},
              {"max_position_embeddings", 512}};
    twin_config_ = config;
    config["quantization_config"] = Fp8Quantisation(kind);
    Plain("model.embed_tokens.weight", {kVocab, kHidden}, 1.0F, 0);
    Plain("lm_head.weight", {kVocab, kHidden}, 0.1F, 0);
    Plain("model.norm.weight", {kHidden}, 0.2F, 1);
    for (int layer = 0; layer < 2; ++layer) {
      const std::string p = "model.layers." + std::to_string(layer) + ".";
      Plain(p + "input_layernorm.weight", {kHidden}, 0.2F, 1);
      Plain(p + "post_attention_layernorm.weight", {kHidden}, 0.2F, 1);
      Matrix(p + "self_attn.q_proj", kHidden, kHidden);
      Matrix(p + "self_attn.k_proj", kHeadDim, kHidden);
      Matrix(p + "self_attn.v_proj", kHeadDim, kHidden);
      Matrix(p + "self_attn.o_proj", kHidden, kHidden);
      Matrix(p + "mlp.gate_proj", kWidth, kHidden);
      Matrix(p + "mlp.up_proj", kWidth, kHidden);
      Matrix(p + "mlp.down_proj", kHidden, kWidth);
    }
    Save();
  }

  // Writes what `config` and `tensors` hold by now.
  void Save() const {
    Write(folder_, config, tensors);
    Write(twin_, twin_config_, twins_);
  }
  const std::string& path() const { return folder_.path(); }
  const std::string& twin() const { return twin_.path(); }
  std::string scale_name() const {
    return kind_ == Fp8Kind::kBlock ? "weight_scale_inv" : "weight_scale";
  }
  // The dequantised values of a tensor of the file.
  std::vector<float> Values(const std::string& name) const {
    const std::string& bytes = twins_.at(name).bytes;
    std::vector<float> out(bytes.size() / 4);
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }

  nlohmann::json config;
  std::map<std::string, Tensor> tensors;

 private:
  float Draw() { return static_cast<float>(random_() >> 8) * 0x1p-23F - 1; }
  template <typename T>
  static void Append(std::string* to, T value) {
    to->append(reinterpret_cast<const char*>(&value), sizeof value);
  }

  void Plain(const std::string& name, std::vector<int64_t> shape, float scale, float mean) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    Tensor own = {"BF16", shape, ""}, twin = {"F32", shape, ""};
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t bits = kernels::FloatToBFloat16(mean + scale * Draw());
      Append(&own.bytes, bits);
      Append(&twin.bytes, kernels::BFloat16ToFloat(bits));
    }
    tensors[name] = own;
    twins_[name] = twin;
  }

  void Matrix(const std::string& module, int64_t n, int64_t k) {
    const bool block = kind_ == Fp8Kind::kBlock || kind_ == Fp8Kind::kCompressedBlock;
    const bool channel = kind_ == Fp8Kind::kCompressedChannel;
    const int64_t rows = block ? 128 : channel ? 1 : n, inputs = block ? 128 : k;
    Tensor scale = {block ? "BF16" : "F32", {(n + rows - 1) / rows, (k + inputs - 1) / inputs}, ""};
    if (!block && !channel)
      scale.shape = kind_ == Fp8Kind::kTensor ? std::vector<int64_t>{} : std::vector<int64_t>{1};
    std::vector<float> factors;
    for (int64_t i = 0; i < (n + rows - 1) / rows * ((k + inputs - 1) / inputs); ++i) {
      // Codes are random bytes, 125 in the mean.
      const float factor = (1.2F + Draw()) / (125 * std::sqrt(static_cast<float>(k)));
      const uint16_t rounded = kernels::FloatToBFloat16(factor);
      factors.push_back(block ? kernels::BFloat16ToFloat(rounded) : factor);
      if (block) {
        Append(&scale.bytes, rounded);
      } else {
        Append(&scale.bytes, factor);
      }
    }
    Tensor own = {"F8_E4M3", {n, k}, ""}, twin = {"F32", {n, k}, ""};
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t i = 0; i < k; ++i) {
        auto code = static_cast<uint8_t>(random_() >> 8);
        if (kernels::IsE4m3Nan(code)) code ^= 1;
        Append(&own.bytes, code);
        const int64_t at = row / rows * ((k + inputs - 1) / inputs) + i / inputs;
        Append(&twin.bytes, factors[static_cast<size_t>(at)] * kernels::E4m3ToFloat(code));
      }
    }
    tensors[module + ".weight"] = own;
    tensors[module + "." + scale_name()] = scale;
    if (kind_ == Fp8Kind::kTensor) {
      tensors[module + ".input_scale"] = {"F32", {}, std::string(4, '\1')};
    }
    twins_[module + ".weight"] = twin;
  }

  static void Write(const TempFolder& folder, const nlohmann::json& config,
                    const std::map<std::string, Tensor>& tensors) {
    nlohmann::json header = nlohmann::json::object();
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const size_t begin = data.size();
      data += tensor.bytes;
      header[name] = {
          {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
    }
    const std::string text = header.dump();
    std::string file;
    Append(&file, static_cast<uint64_t>(text.size()));
    folder.Write("model.safetensors", file + text + data);
    folder.Write("config.json", config.dump());
  }

  const Fp8Kind kind_;
  nlohmann::json twin_config_;
  std::map<std::string, Tensor> twins_;
  TempFolder folder_, twin_;
  std::mt19937 random_{7};
};

}  // namespace morphserve
