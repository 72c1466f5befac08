// ModelConfig describes a network on one screen, whichever file it came from. A plain value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace morphserve {

enum class Architecture : uint8_t { kLlama, kMistral, kQwen2, kQwen3 };
const char* ArchitectureName(Architecture architecture);

struct RopeConfig {
  enum class Scaling : uint8_t { kNone, kLinear, kLlama3, kYarn };
  double theta = 10000;
  int32_t rotary_dim = 0;    // Elements of a head that rotate; = head_dim unless partial.
  bool interleaved = false;  // GGUF llama weights are permuted for pairs (2i, 2i+1).
  Scaling scaling = Scaling::kNone;
  double factor = 1;
  double original_context = 0;
  double low_freq_factor = 1;   // Llama 3.
  double high_freq_factor = 4;  // Llama 3.
  double beta_fast = 32;        // YaRN.
  double beta_slow = 1;         // YaRN.
  double attention_factor = 0;  // YaRN; 0: 0.1 ln(factor) + 1.
  bool truncate = true;         // YaRN: round the ramp's ends to whole dimensions.
  // GGUF's rope_freqs.weight: divides the frequencies; [rotary_dim / 2] or empty.
  std::vector<float> frequency_factors;
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  int32_t layers = 0;
  int32_t hidden = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t mlp_width = 0;
  int32_t vocab = 0;  // Rows of the embedding.
  int32_t context = 0;
  float norm_eps = 0;
  bool qkv_bias = false;
  bool output_bias = false;  // Bias of the attention output projection.
  bool qk_norm = false;
  bool tied_head = false;
  std::vector<int32_t> window;  // Per layer; 0: unlimited attention.
  RopeConfig rope;
};

// INVALID_ARGUMENT, naming the member and its limit, when the numbers contradict each other or are
// outside what the kernels take. Loaders call it last; afterwards no product of two members
// overflows 64 bits.
absl::Status ValidateModelConfig(const ModelConfig& config);

// Inverse frequencies [rotary_dim / 2] after scaling, computed in double as transformers does, and
// the factor that multiplies cos and sin (YaRN; else 1).
struct RopeTable {
  std::vector<float> inverse_frequency;
  float magnitude = 1;
};
RopeTable MakeRopeTable(const RopeConfig& rope);

}  // namespace morphserve
