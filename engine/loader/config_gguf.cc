#include "engine/loader/config_gguf.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

using Scaling = RopeConfig::Scaling;

// What this file reads, without the architecture's prefix.
constexpr std::array<std::string_view, 24> kKeysRead = {"block_count",
                                                        "context_length",
                                                        "embedding_length",
                                                        "feed_forward_length",
                                                        "vocab_size",
                                                        "attention.head_count",
                                                        "attention.head_count_kv",
                                                        "attention.key_length",
                                                        "attention.value_length",
                                                        "attention.layer_norm_rms_epsilon",
                                                        "attention.sliding_window",
                                                        "attention.causal",
                                                        "rope.freq_base",
                                                        "rope.dimension_count",
                                                        "rope.scale_linear",
                                                        "rope.scaling.type",
                                                        "rope.scaling.factor",
                                                        "rope.scaling.attn_factor",
                                                        "rope.scaling.original_context_length",
                                                        "rope.scaling.yarn_ext_factor",
                                                        "rope.scaling.yarn_attn_factor",
                                                        "rope.scaling.yarn_log_multiplier",
                                                        "rope.scaling.yarn_beta_fast",
                                                        "rope.scaling.yarn_beta_slow"};

// Says where the weights came from, nothing about the arithmetic.
constexpr std::array<std::string_view, 2> kKeysHarmless = {"tensor_data_layout",
                                                           "rope.scaling.finetuned"};

template <size_t N>
bool Contains(const std::array<std::string_view, N>& list, std::string_view item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

// False, zero and the empty string switch nothing on.
bool SaysNothing(const GgufValue& value) {
  if (const auto* integer = std::get_if<int64_t>(&value.value)) return *integer == 0;
  if (const auto* integer = std::get_if<uint64_t>(&value.value)) return *integer == 0;
  if (const auto* real = std::get_if<double>(&value.value)) return *real == 0;
  if (const auto* flag = std::get_if<bool>(&value.value)) return !*flag;
  if (const auto* text = std::get_if<std::string>(&value.value)) return text->empty();
  return false;
}

absl::Status Unsupported(const std::string& key, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrFormat("metadata key %s: %s", key, why));
}

class Reader {
 public:
  Reader(const GgufMetadata& metadata, const std::vector<TensorInfo>& tensors, std::string name)
      : metadata_(metadata), tensors_(tensors), prefix_(name + ".") {}

  absl::Status Fill(ModelConfig* config) const;

 private:
  std::string Key(std::string_view key) const { return prefix_ + std::string(key); }
  bool Has(std::string_view key) const { return metadata_.contains(Key(key)); }

  absl::StatusOr<int32_t> Count(std::string_view key) const {
    MS_ASSIGN_OR_RETURN(const int64_t value, metadata_.Integer(Key(key)));
    if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
      return Unsupported(Key(key), absl::StrFormat("%d is out of range", value));
    }
    return static_cast<int32_t>(value);
  }

  absl::StatusOr<int32_t> CountOr(std::string_view key, int32_t otherwise) const {
    return Has(key) ? Count(key) : otherwise;
  }

  absl::StatusOr<double> FloatOr(std::string_view key, double otherwise) const {
    return Has(key) ? metadata_.Float(Key(key)) : otherwise;
  }

  const TensorInfo* Find(std::string_view name) const {
    for (const TensorInfo& tensor : tensors_) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }

  absl::Status CheckKeys() const;
  absl::Status FillShape(ModelConfig* config) const;
  absl::Status FillAttention(ModelConfig* config) const;
  absl::Status FillRope(ModelConfig* config) const;
  absl::Status CheckYarnFactors(double ext_wanted) const;
  absl::Status FillYarn(RopeConfig* rope) const;

  const GgufMetadata& metadata_;
  const std::vector<TensorInfo>& tensors_;
  const std::string prefix_;
};

absl::Status Reader::CheckKeys() const {
  for (auto it = metadata_.values().lower_bound(prefix_);
       it != metadata_.values().end() && it->first.starts_with(prefix_); ++it) {
    const std::string_view key = std::string_view(it->first).substr(prefix_.size());
    if (Contains(kKeysRead, key) || Contains(kKeysHarmless, key) || SaysNothing(it->second)) {
      continue;
    }
    return Unsupported(it->first, "not supported");
  }
  return absl::OkStatus();
}

absl::Status Reader::FillShape(ModelConfig* config) const {
  MS_ASSIGN_OR_RETURN(config->layers, Count("block_count"));
  MS_ASSIGN_OR_RETURN(config->hidden, Count("embedding_length"));
  MS_ASSIGN_OR_RETURN(config->mlp_width, Count("feed_forward_length"));
  MS_ASSIGN_OR_RETURN(config->context, Count("context_length"));
  MS_ASSIGN_OR_RETURN(config->heads, Count("attention.head_count"));
  MS_ASSIGN_OR_RETURN(config->kv_heads, CountOr("attention.head_count_kv", config->heads));
  if (config->heads < 1) return Unsupported(Key("attention.head_count"), "0 heads");
  if (!Has("attention.key_length") && config->hidden % config->heads != 0) {
    return Unsupported(Key("attention.head_count"),
                       absl::StrFormat("%d heads do not divide the hidden size %d", config->heads,
                                       config->hidden));
  }
  MS_ASSIGN_OR_RETURN(config->head_dim,
                      CountOr("attention.key_length", config->hidden / config->heads));
  MS_ASSIGN_OR_RETURN(const int32_t value_dim, CountOr("attention.value_length", config->head_dim));
  if (value_dim != config->head_dim) {
    return Unsupported(
        Key("attention.value_length"),
        absl::StrFormat("%d differs from the key length %d", value_dim, config->head_dim));
  }
  MS_ASSIGN_OR_RETURN(const double eps, metadata_.Float(Key("attention.layer_norm_rms_epsilon")));
  config->norm_eps = static_cast<float>(eps);

  const TensorInfo* embedding = Find("token_embd.weight");
  if (embedding == nullptr) {
    return absl::InvalidArgumentError("tensor token_embd.weight is missing");
  }
  if (embedding->shape.size() != 2 || embedding->shape[0] > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError("tensor token_embd.weight is not a matrix of this size");
  }
  config->vocab = static_cast<int32_t>(embedding->shape[0]);
  MS_ASSIGN_OR_RETURN(const int32_t stated, CountOr("vocab_size", config->vocab));
  if (stated > config->vocab) {
    return Unsupported(Key("vocab_size"), absl::StrFormat("%d tokens; the embedding has %d rows",
                                                          stated, config->vocab));
  }
  return absl::OkStatus();
}

absl::Status Reader::FillAttention(ModelConfig* config) const {
  config->tied_head = Find("output.weight") == nullptr;
  // Llama files may carry biases, and only their tensors tell.
  config->qkv_bias =
      config->architecture == Architecture::kQwen2 || Find("blk.0.attn_q.bias") != nullptr;
  config->output_bias = Find("blk.0.attn_output.bias") != nullptr;
  config->qk_norm = config->architecture == Architecture::kQwen3;

  if (Has("attention.causal")) {
    MS_ASSIGN_OR_RETURN(const bool causal, metadata_.Bool(Key("attention.causal")));
    if (!causal) return Unsupported(Key("attention.causal"), "only causal attention is supported");
  }
  MS_ASSIGN_OR_RETURN(const int32_t window, CountOr("attention.sliding_window", 0));
  const bool every_layer = config->architecture == Architecture::kLlama ||
                           config->architecture == Architecture::kMistral;
  if (window != 0 && !every_layer) {
    return Unsupported(Key("attention.sliding_window"),
                       "the file does not say which layers have the window");
  }
  // The count is bounded by ValidateModelConfig only later, and memory is taken here.
  if (config->layers > 1 << 16) {
    return Unsupported(Key("block_count"), absl::StrFormat("%d is out of range", config->layers));
  }
  config->window.assign(static_cast<size_t>(config->layers), window);
  return absl::OkStatus();
}

absl::Status Reader::FillYarn(RopeConfig* rope) const {
  MS_ASSIGN_OR_RETURN(rope->beta_fast, FloatOr("rope.scaling.yarn_beta_fast", 32));
  MS_ASSIGN_OR_RETURN(rope->beta_slow, FloatOr("rope.scaling.yarn_beta_slow", 1));
  MS_ASSIGN_OR_RETURN(const double scale, FloatOr("rope.scaling.attn_factor", 1));
  if (!std::isfinite(scale) || scale <= 0) {
    return Unsupported(Key("rope.scaling.attn_factor"),
                       absl::StrFormat("%g is out of range", scale));
  }
  // ggml multiplies this factor onto YaRN's own instead of replacing it.
  if (scale != 1) {
    rope->attention_factor = scale * (rope->factor <= 1 ? 1.0 : 0.1 * std::log(rope->factor) + 1.0);
  }
  return absl::OkStatus();
}

// Settings of ggml that no model needs to change.
absl::Status Reader::CheckYarnFactors(double ext_wanted) const {
  MS_ASSIGN_OR_RETURN(const double multiplier, FloatOr("rope.scaling.yarn_log_multiplier", 0));
  if (multiplier != 0) {
    return Unsupported(Key("rope.scaling.yarn_log_multiplier"), "not supported");
  }
  // -1 stands for what the type asks for, which is the only setting here.
  MS_ASSIGN_OR_RETURN(const double ext, FloatOr("rope.scaling.yarn_ext_factor", -1));
  if (ext != -1 && ext != ext_wanted) {
    return Unsupported(Key("rope.scaling.yarn_ext_factor"),
                       absl::StrFormat("%g; only %g is supported", ext, ext_wanted));
  }
  MS_ASSIGN_OR_RETURN(const double magnitude, FloatOr("rope.scaling.yarn_attn_factor", 1));
  if (magnitude != 1 && magnitude != -1) {
    return Unsupported(Key("rope.scaling.yarn_attn_factor"),
                       absl::StrFormat("%g; only 1 is supported", magnitude));
  }
  return absl::OkStatus();
}

absl::Status Reader::FillRope(ModelConfig* config) const {
  RopeConfig* rope = &config->rope;
  MS_ASSIGN_OR_RETURN(rope->theta, FloatOr("rope.freq_base", 10000));
  MS_ASSIGN_OR_RETURN(rope->rotary_dim, CountOr("rope.dimension_count", config->head_dim));
  rope->interleaved = config->architecture == Architecture::kLlama ||
                      config->architecture == Architecture::kMistral;
  MS_ASSIGN_OR_RETURN(rope->original_context,
                      FloatOr("rope.scaling.original_context_length", config->context));
  // Files written before scaling had a type carry the linear factor alone.
  MS_ASSIGN_OR_RETURN(const double old_factor, FloatOr("rope.scale_linear", 1));
  MS_ASSIGN_OR_RETURN(rope->factor, FloatOr("rope.scaling.factor", old_factor));
  if (rope->factor == 0) rope->factor = 1;  // What ggml takes 0 for.
  std::string type = rope->factor == 1 ? "none" : "linear";
  if (Has("rope.scaling.type")) {
    MS_ASSIGN_OR_RETURN(type, metadata_.String(Key("rope.scaling.type")));
  }
  MS_RETURN_IF_ERROR(CheckYarnFactors(type == "yarn" ? 1 : 0));
  if (type == "yarn") {
    rope->scaling = Scaling::kYarn;
    return FillYarn(rope);
  }
  MS_ASSIGN_OR_RETURN(const double scale, FloatOr("rope.scaling.attn_factor", 1));
  if (scale != 1) {
    return Unsupported(Key("rope.scaling.attn_factor"), "only supported with YaRN");
  }
  if (type == "linear") {
    rope->scaling = rope->factor == 1 ? Scaling::kNone : Scaling::kLinear;
  } else if (type == "none") {
    rope->scaling = Scaling::kNone;
  } else {
    return Unsupported(Key("rope.scaling.type"),
                       absl::StrFormat("%s is not supported; none, linear and yarn are", type));
  }
  return absl::OkStatus();
}

absl::Status Reader::Fill(ModelConfig* config) const {
  MS_RETURN_IF_ERROR(CheckKeys());
  MS_RETURN_IF_ERROR(FillShape(config));
  MS_RETURN_IF_ERROR(FillAttention(config));
  return FillRope(config);
}

}  // namespace

absl::StatusOr<ModelConfig> ConfigFromGguf(const GgufMetadata& metadata,
                                           const std::vector<TensorInfo>& tensors) {
  MS_ASSIGN_OR_RETURN(const std::string name, metadata.String("general.architecture"));
  ModelConfig config;
  bool known = false;
  for (const Architecture architecture :
       {Architecture::kLlama, Architecture::kMistral, Architecture::kQwen2, Architecture::kQwen3}) {
    if (name != ArchitectureName(architecture)) continue;
    config.architecture = architecture;
    known = true;
  }
  if (!known) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "architecture %s is not supported; llama, mistral, qwen2 and qwen3 are", name));
  }
  MS_RETURN_IF_ERROR(Reader(metadata, tensors, name).Fill(&config));
  return config;
}

}  // namespace morphserve
