#include "engine/model/model_config.h"

#include <cmath>
#include <string_view>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

// Far above any known network, and low enough that no product of two of them overflows 64 bits.
constexpr int32_t kLayersMax = 4096;
constexpr int32_t kHiddenMax = 65536;  // RmsNorm's limit.
constexpr int32_t kHeadsMax = 4096;
constexpr int32_t kHeadDimMax = 256;  // The attention kernels' limit.
constexpr int32_t kMlpWidthMax = 1 << 20;
constexpr int32_t kVocabMax = 1 << 20;
constexpr int32_t kContextMax = 1 << 24;

absl::Status CheckRange(std::string_view what, int32_t value, int32_t limit) {
  if (value >= 1 && value <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("model has %s %d; 1 to %d are supported", what, value, limit));
}

absl::Status CheckPositive(std::string_view what, double value) {
  if (std::isfinite(value) && value > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %g; a positive number is needed", what, value));
}

absl::Status ValidateRope(const RopeConfig& rope, int32_t head_dim) {
  if (rope.rotary_dim < 2 || rope.rotary_dim > head_dim || rope.rotary_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rotary dimensions of a head of %d; an even number from 2 is needed",
                        rope.rotary_dim, head_dim));
  }
  MS_RETURN_IF_ERROR(CheckPositive("rope theta", rope.theta));
  MS_RETURN_IF_ERROR(CheckPositive("rope scaling factor", rope.factor));
  if (rope.scaling == RopeConfig::Scaling::kLlama3) {
    MS_RETURN_IF_ERROR(CheckPositive("rope original context", rope.original_context));
    MS_RETURN_IF_ERROR(CheckPositive("rope low_freq_factor", rope.low_freq_factor));
    MS_RETURN_IF_ERROR(CheckPositive("rope high_freq_factor", rope.high_freq_factor));
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      return absl::InvalidArgumentError(
          absl::StrFormat("rope high_freq_factor %g is not above low_freq_factor %g",
                          rope.high_freq_factor, rope.low_freq_factor));
    }
  }
  if (rope.scaling == RopeConfig::Scaling::kYarn) {
    MS_RETURN_IF_ERROR(CheckPositive("rope original context", rope.original_context));
    MS_RETURN_IF_ERROR(CheckPositive("rope beta_fast", rope.beta_fast));
    MS_RETURN_IF_ERROR(CheckPositive("rope beta_slow", rope.beta_slow));
    if (rope.theta <= 1) {
      return absl::InvalidArgumentError(
          absl::StrFormat("rope theta is %g; YaRN needs more than 1", rope.theta));
    }
    if (rope.attention_factor != 0) {
      MS_RETURN_IF_ERROR(CheckPositive("rope attention_factor", rope.attention_factor));
    }
  }
  if (!rope.frequency_factors.empty() &&
      rope.frequency_factors.size() != static_cast<size_t>(rope.rotary_dim / 2)) {
    return absl::InvalidArgumentError(absl::StrFormat("%u rope frequency factors; %d are needed",
                                                      rope.frequency_factors.size(),
                                                      rope.rotary_dim / 2));
  }
  for (const float factor : rope.frequency_factors) {
    MS_RETURN_IF_ERROR(CheckPositive("a rope frequency factor", static_cast<double>(factor)));
  }
  return absl::OkStatus();
}

}  // namespace

const char* ArchitectureName(Architecture architecture) {
  switch (architecture) {
    case Architecture::kLlama: return "llama";
    case Architecture::kMistral: return "mistral";
    case Architecture::kQwen2: return "qwen2";
    case Architecture::kQwen3: return "qwen3";
  }
  return "?";
}

absl::Status ValidateModelConfig(const ModelConfig& config) {
  MS_RETURN_IF_ERROR(CheckRange("layers", config.layers, kLayersMax));
  MS_RETURN_IF_ERROR(CheckRange("hidden size", config.hidden, kHiddenMax));
  MS_RETURN_IF_ERROR(CheckRange("heads", config.heads, kHeadsMax));
  MS_RETURN_IF_ERROR(CheckRange("key-value heads", config.kv_heads, kHeadsMax));
  MS_RETURN_IF_ERROR(CheckRange("head dimension", config.head_dim, kHeadDimMax));
  MS_RETURN_IF_ERROR(CheckRange("MLP width", config.mlp_width, kMlpWidthMax));
  MS_RETURN_IF_ERROR(CheckRange("vocabulary", config.vocab, kVocabMax));
  MS_RETURN_IF_ERROR(CheckRange("context length", config.context, kContextMax));
  if (config.heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("model has %d heads, not a multiple of its %d key-value heads",
                        config.heads, config.kv_heads));
  }
  if (!std::isfinite(config.norm_eps) || config.norm_eps < 0 || config.norm_eps > 1) {
    return absl::InvalidArgumentError(
        absl::StrFormat("norm epsilon is %g; 0 to 1 is possible", config.norm_eps));
  }
  if (config.window.size() != static_cast<size_t>(config.layers)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%u attention windows for %d layers", config.window.size(), config.layers));
  }
  for (const int32_t window : config.window) {
    if (window < 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("attention window is %d; it may not be negative", window));
    }
  }
  return ValidateRope(config.rope, config.head_dim);
}

}  // namespace morphserve
