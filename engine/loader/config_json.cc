#include "engine/loader/config_json.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

constexpr std::array<std::string_view, 24> kKeysRead = {"architectures",
                                                        "model_type",
                                                        "vocab_size",
                                                        "hidden_size",
                                                        "intermediate_size",
                                                        "num_hidden_layers",
                                                        "num_attention_heads",
                                                        "num_key_value_heads",
                                                        "head_dim",
                                                        "hidden_act",
                                                        "max_position_embeddings",
                                                        "original_max_position_embeddings",
                                                        "rms_norm_eps",
                                                        "tie_word_embeddings",
                                                        "rope_theta",
                                                        "rope_scaling",
                                                        "rope_parameters",
                                                        "partial_rotary_factor",
                                                        "attention_bias",
                                                        "sliding_window",
                                                        "use_sliding_window",
                                                        "max_window_layers",
                                                        "layer_types",
                                                        "quantization_config"};

// Training, bookkeeping and generation: none changes a forward pass.
constexpr std::array<std::string_view, 43> kKeysHarmless = {"attention_dropout",
                                                            "hidden_dropout",
                                                            "initializer_range",
                                                            "use_cache",
                                                            "torch_dtype",
                                                            "dtype",
                                                            "transformers_version",
                                                            "transformers.js_config",
                                                            "bos_token_id",
                                                            "eos_token_id",
                                                            "pad_token_id",
                                                            "unk_token_id",
                                                            "sep_token_id",
                                                            "pretraining_tp",
                                                            "is_llama_config",
                                                            "is_decoder",
                                                            "name_or_path",
                                                            "return_dict",
                                                            "chunk_size_feed_forward",
                                                            "id2label",
                                                            "label2id",
                                                            "num_labels",
                                                            "tokenizer_class",
                                                            "model_max_length",
                                                            "tokenizer_model_max_length",
                                                            "tokenizer_padding_side",
                                                            "unsloth_version",
                                                            "unsloth_fixed",
                                                            "temperature",
                                                            "top_k",
                                                            "top_p",
                                                            "typical_p",
                                                            "do_sample",
                                                            "repetition_penalty",
                                                            "length_penalty",
                                                            "diversity_penalty",
                                                            "no_repeat_ngram_size",
                                                            "encoder_no_repeat_ngram_size",
                                                            "max_length",
                                                            "min_length",
                                                            "num_beams",
                                                            "num_beam_groups",
                                                            "num_return_sequences"};

template <size_t N>
bool Contains(const std::array<std::string_view, N>& list, std::string_view item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

// Null, false, zero and empty values switch nothing on.
bool SaysNothing(const nlohmann::json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

absl::Status CheckKeys(const JsonObject& config) {
  for (const auto& [key, value] : config.json().items()) {
    // A leading underscore marks what the writing program keeps for itself.
    if (Contains(kKeysRead, key) || Contains(kKeysHarmless, key) || key.starts_with('_') ||
        SaysNothing(value)) {
      continue;
    }
    return config.Refuse(key, "not supported");
  }
  return absl::OkStatus();
}

// What the reference's configuration classes assume for absent members; 0: no assumption.
struct ClassDefaults {
  std::string_view class_name;
  std::string_view model_type;
  Architecture architecture;
  int32_t kv_heads;
  int32_t head_dim;
};
constexpr std::array<ClassDefaults, 4> kClasses = {
    {{"LlamaForCausalLM", "llama", Architecture::kLlama, 0, 0},
     {"MistralForCausalLM", "mistral", Architecture::kMistral, 8, 0},
     {"Qwen2ForCausalLM", "qwen2", Architecture::kQwen2, 32, 0},
     {"Qwen3ForCausalLM", "qwen3", Architecture::kQwen3, 32, 128}}};
constexpr double kNormEpsDefault = 1e-6;
constexpr int32_t kWindowDefault = 4096;
constexpr int32_t kMaxWindowLayersDefault = 28;
constexpr int32_t kLayersReadMax = 1 << 16;

absl::StatusOr<ClassDefaults> ReadClass(const JsonObject& config) {
  MS_ASSIGN_OR_RETURN(const std::vector<std::string> classes, config.Strings("architectures"));
  MS_ASSIGN_OR_RETURN(const std::string type, config.String("model_type", ""));
  for (const ClassDefaults& known : kClasses) {
    if (classes.size() != 1 || classes[0] != known.class_name) continue;
    if (!type.empty() && type != known.model_type) {
      return config.Refuse("model_type", absl::StrFormat("it should be %s, the type of %s",
                                                         known.model_type, known.class_name));
    }
    return known;
  }
  return config.Refuse("architectures",
                       "not supported; LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM "
                       "and Qwen3ForCausalLM are");
}

// A key that is there but null means "as many heads as queries", an absent one the class's default.
absl::StatusOr<int32_t> ReadKvHeads(const JsonObject& config, const ClassDefaults& defaults,
                                    int32_t heads) {
  const bool stated = config.json().contains("num_key_value_heads");
  const int32_t otherwise = stated || defaults.kv_heads == 0 ? heads : defaults.kv_heads;
  return config.Int("num_key_value_heads", otherwise);
}

absl::Status ReadShape(const JsonObject& config, const ClassDefaults& defaults, ModelConfig* out) {
  MS_ASSIGN_OR_RETURN(out->vocab, config.Int("vocab_size", std::nullopt));
  MS_ASSIGN_OR_RETURN(out->hidden, config.Int("hidden_size", std::nullopt));
  MS_ASSIGN_OR_RETURN(out->mlp_width, config.Int("intermediate_size", std::nullopt));
  MS_ASSIGN_OR_RETURN(out->layers, config.Int("num_hidden_layers", std::nullopt));
  MS_ASSIGN_OR_RETURN(out->heads, config.Int("num_attention_heads", std::nullopt));
  MS_ASSIGN_OR_RETURN(out->context, config.Int("max_position_embeddings", std::nullopt));
  MS_ASSIGN_OR_RETURN(out->kv_heads, ReadKvHeads(config, defaults, out->heads));
  if (out->heads < 1) return config.Refuse("num_attention_heads", "at least 1 is needed");
  const int32_t head_dim = defaults.head_dim != 0 ? defaults.head_dim : out->hidden / out->heads;
  if (!config.Has("head_dim") && defaults.head_dim == 0 && out->hidden % out->heads != 0) {
    return config.Refuse("num_attention_heads", "it does not divide hidden_size");
  }
  MS_ASSIGN_OR_RETURN(out->head_dim, config.Int("head_dim", head_dim));
  MS_ASSIGN_OR_RETURN(const double eps, config.Number("rms_norm_eps", kNormEpsDefault));
  out->norm_eps =
      static_cast<float>(std::clamp(eps, -1.0, 2.0));  // Refused by ValidateModelConfig.
  MS_ASSIGN_OR_RETURN(out->tied_head, config.Bool("tie_word_embeddings", false));
  MS_ASSIGN_OR_RETURN(const std::string activation, config.String("hidden_act", "silu"));
  if (activation != "silu") return config.Refuse("hidden_act", "not supported; silu is");
  if (out->layers < 1 || out->layers > kLayersReadMax) {
    return config.Refuse("num_hidden_layers", absl::StrFormat("%d is out of range", out->layers));
  }
  return absl::OkStatus();
}

absl::Status ReadBias(const JsonObject& config, ModelConfig* out) {
  MS_ASSIGN_OR_RETURN(const bool bias, config.Bool("attention_bias", false));
  const bool has_switch =
      out->architecture == Architecture::kLlama || out->architecture == Architecture::kQwen3;
  if (bias && !has_switch) {
    return config.Refuse("attention_bias", absl::StrFormat("%s networks have no such switch",
                                                           ArchitectureName(out->architecture)));
  }
  out->qkv_bias = bias || out->architecture == Architecture::kQwen2;
  out->output_bias = bias;
  out->qk_norm = out->architecture == Architecture::kQwen3;
  return absl::OkStatus();
}

// The window of the layers that have one; 0: none has.
absl::StatusOr<int32_t> ReadWindow(const JsonObject& config, Architecture architecture) {
  const bool stated = config.json().contains("sliding_window");
  MS_ASSIGN_OR_RETURN(const int32_t window,
                      config.Int("sliding_window", stated ? 0 : kWindowDefault));
  if (window < 0) return config.Refuse("sliding_window", "it may not be negative");
  if (stated && config.Has("sliding_window") && window == 0) {
    return config.Refuse("sliding_window", "0 positions; null switches the window off");
  }
  switch (architecture) {
    case Architecture::kMistral: return window;
    case Architecture::kLlama:
      if (config.Has("sliding_window")) {
        return config.Refuse("sliding_window", "llama networks have none");
      }
      return 0;
    case Architecture::kQwen2:
    case Architecture::kQwen3: break;
  }
  MS_ASSIGN_OR_RETURN(const bool used, config.Bool("use_sliding_window", false));
  return used ? window : 0;
}

absl::Status ReadWindows(const JsonObject& config, ModelConfig* out) {
  MS_ASSIGN_OR_RETURN(const int32_t window, ReadWindow(config, out->architecture));
  const bool qwen =
      out->architecture == Architecture::kQwen2 || out->architecture == Architecture::kQwen3;
  MS_ASSIGN_OR_RETURN(const int32_t first,
                      config.Int("max_window_layers", kMaxWindowLayersDefault));
  out->window.assign(static_cast<size_t>(out->layers), 0);
  for (int32_t layer = 0; layer < out->layers; ++layer) {
    if (!qwen || layer >= first) out->window[static_cast<size_t>(layer)] = window;
  }
  if (!config.Has("layer_types")) return absl::OkStatus();
  MS_ASSIGN_OR_RETURN(const std::vector<std::string> types, config.Strings("layer_types"));
  if (types.size() != out->window.size()) {
    return config.Refuse("layer_types",
                         absl::StrFormat("%u types for %d layers", types.size(), out->layers));
  }
  for (size_t layer = 0; layer < types.size(); ++layer) {
    const bool sliding = types[layer] == "sliding_attention";
    if (!sliding && types[layer] != "full_attention") {
      return config.Refuse("layer_types",
                           "not supported; full_attention and sliding_attention are");
    }
    if (sliding && window == 0) {
      return config.Refuse("layer_types", "sliding_attention without a sliding_window");
    }
    // Only Qwen's classes obey the list; the others have one window for all layers.
    if (!qwen && sliding != (window != 0)) {
      return config.Refuse("layer_types", "it contradicts sliding_window");
    }
    out->window[layer] = sliding ? window : 0;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelConfig> ConfigFromJson(const JsonObject& config) {
  MS_ASSIGN_OR_RETURN(const ClassDefaults defaults, ReadClass(config));
  MS_RETURN_IF_ERROR(CheckKeys(config));
  ModelConfig out;
  out.architecture = defaults.architecture;
  MS_RETURN_IF_ERROR(ReadShape(config, defaults, &out));
  MS_RETURN_IF_ERROR(ReadBias(config, &out));
  MS_RETURN_IF_ERROR(ReadWindows(config, &out));
  MS_ASSIGN_OR_RETURN(out.rope, RopeFromJson(config, out.head_dim, out.context));
  MS_RETURN_IF_ERROR(ValidateModelConfig(out));
  return out;
}

}  // namespace morphserve
