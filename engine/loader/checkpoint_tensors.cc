#include "engine/loader/checkpoint_tensors.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace morphserve {
namespace {

struct NamePair {
  std::string_view hugging_face;
  std::string_view canonical;
};

constexpr std::array<NamePair, 3> kModelNames = {
    {{"model.embed_tokens.weight", "token_embd.weight"},
     {"model.norm.weight", "output_norm.weight"},
     {"lm_head.weight", "output.weight"}}};

constexpr std::array<NamePair, 15> kLayerNames = {
    {{"input_layernorm.weight", "attn_norm.weight"},
     {"self_attn.q_proj.weight", "attn_q.weight"},
     {"self_attn.q_proj.bias", "attn_q.bias"},
     {"self_attn.k_proj.weight", "attn_k.weight"},
     {"self_attn.k_proj.bias", "attn_k.bias"},
     {"self_attn.v_proj.weight", "attn_v.weight"},
     {"self_attn.v_proj.bias", "attn_v.bias"},
     {"self_attn.o_proj.weight", "attn_output.weight"},
     {"self_attn.o_proj.bias", "attn_output.bias"},
     {"self_attn.q_norm.weight", "attn_q_norm.weight"},
     {"self_attn.k_norm.weight", "attn_k_norm.weight"},
     {"post_attention_layernorm.weight", "ffn_norm.weight"},
     {"mlp.gate_proj.weight", "ffn_gate.weight"},
     {"mlp.up_proj.weight", "ffn_up.weight"},
     {"mlp.down_proj.weight", "ffn_down.weight"}}};

constexpr std::string_view kLayerPrefix = "model.layers.";

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelConfig& config) {
  const ModelConfig& c = config;
  const int64_t q_width = int64_t{c.heads} * c.head_dim;
  const int64_t kv_width = int64_t{c.kv_heads} * c.head_dim;
  std::vector<ExpectedTensor> out;
  const auto vector = [&out](std::string name, int64_t n) {
    out.push_back({.name = std::move(name), .shape = {n}, .vector = true});
  };
  const auto matrix = [&out](std::string name, int64_t n, int64_t k) {
    out.push_back({.name = std::move(name), .shape = {n, k}});
  };
  matrix("token_embd.weight", c.vocab, c.hidden);
  for (int32_t layer = 0; layer < c.layers; ++layer) {
    const std::string p = absl::StrCat("blk.", layer, ".");
    vector(p + "attn_norm.weight", c.hidden);
    matrix(p + "attn_q.weight", q_width, c.hidden);
    matrix(p + "attn_k.weight", kv_width, c.hidden);
    matrix(p + "attn_v.weight", kv_width, c.hidden);
    if (c.qkv_bias) {
      vector(p + "attn_q.bias", q_width);
      vector(p + "attn_k.bias", kv_width);
      vector(p + "attn_v.bias", kv_width);
    }
    if (c.qk_norm) {
      vector(p + "attn_q_norm.weight", c.head_dim);
      vector(p + "attn_k_norm.weight", c.head_dim);
    }
    matrix(p + "attn_output.weight", c.hidden, q_width);
    if (c.output_bias) vector(p + "attn_output.bias", c.hidden);
    vector(p + "ffn_norm.weight", c.hidden);
    matrix(p + "ffn_gate.weight", c.mlp_width, c.hidden);
    matrix(p + "ffn_up.weight", c.mlp_width, c.hidden);
    matrix(p + "ffn_down.weight", c.hidden, c.mlp_width);
  }
  vector("output_norm.weight", c.hidden);
  if (!c.tied_head) matrix("output.weight", c.vocab, c.hidden);
  return out;
}

std::string CanonicalName(std::string_view hugging_face_name) {
  for (const NamePair& pair : kModelNames) {
    if (pair.hugging_face == hugging_face_name) return std::string(pair.canonical);
  }
  if (!hugging_face_name.starts_with(kLayerPrefix)) return "";
  const std::string_view rest = hugging_face_name.substr(kLayerPrefix.size());
  const size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
  if (digits == 0 || digits == rest.size() || rest[digits] != '.') return "";
  for (const NamePair& pair : kLayerNames) {
    if (pair.hugging_face == rest.substr(digits + 1)) {
      return absl::StrFormat("blk.%s.%s", rest.substr(0, digits), pair.canonical);
    }
  }
  return "";
}

bool IsHarmlessTensor(std::string_view name) {
  return name.ends_with("rotary_emb.inv_freq") || name.ends_with(".attn_rot_embd") ||
         name.ends_with(".attn_rot_embd.weight");
}

absl::Status CheckTensors(const ModelConfig& config, const std::vector<TensorInfo>& tensors) {
  std::map<std::string_view, const TensorInfo*> left;
  for (const TensorInfo& tensor : tensors) left[tensor.name] = &tensor;
  for (const ExpectedTensor& expected : ExpectedTensors(config)) {
    const auto found = left.find(expected.name);
    if (found == left.end()) {
      return absl::InvalidArgumentError(absl::StrFormat("tensor %s is missing", expected.name));
    }
    const TensorInfo& tensor = *found->second;
    if (tensor.shape != expected.shape) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s has shape %s; the configuration asks for %s", tensor.name,
                          ShapeText(tensor.shape), ShapeText(expected.shape)));
    }
    if (expected.vector && !IsPlainFloat(tensor.dtype)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s has type %s; F32, F16 or BF16 is needed", tensor.name,
                          DTypeName(tensor.dtype)));
    }
    left.erase(found);
  }
  if (!left.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor %s has no place in a %s network of %d layers", left.begin()->first,
                        ArchitectureName(config.architecture), config.layers));
  }
  return absl::OkStatus();
}

}  // namespace morphserve
