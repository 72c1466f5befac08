#include <algorithm>
#include <cmath>
#include <numbers>

#include "engine/model/model_config.h"

namespace morphserve {
namespace {

// Llama 3: wavelengths beyond the original context are stretched by the factor, short ones stay,
// and the band between is blended by how often the wave fits into the original context.
double ScaleLlama3(const RopeConfig& rope, double frequency) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  if (wavelength > rope.original_context / rope.low_freq_factor) return frequency / rope.factor;
  if (wavelength < rope.original_context / rope.high_freq_factor) return frequency;
  const double keep = (rope.original_context / wavelength - rope.low_freq_factor) /
                      (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - keep) * frequency / rope.factor + keep * frequency;
}

// The pair index, as a real number, whose wave turns `rotations` times over the original context.
double YarnPairOfRotations(const RopeConfig& rope, double rotations) {
  return rope.rotary_dim * std::log(rope.original_context / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

struct YarnRamp {
  double low = 0;
  double high = 0;
};

YarnRamp MakeYarnRamp(const RopeConfig& rope) {
  YarnRamp ramp{.low = YarnPairOfRotations(rope, rope.beta_fast),
                .high = YarnPairOfRotations(rope, rope.beta_slow)};
  if (rope.truncate) {
    ramp.low = std::floor(ramp.low);
    ramp.high = std::ceil(ramp.high);
  }
  ramp.low = std::max(ramp.low, 0.0);
  ramp.high = std::min(ramp.high, static_cast<double>(rope.rotary_dim - 1));
  if (ramp.low == ramp.high) ramp.high += 0.001;  // As the reference does, against 0 / 0.
  return ramp;
}

// YaRN: pairs before the ramp keep their frequency, pairs after it are stretched by the factor.
double ScaleYarn(const RopeConfig& rope, const YarnRamp& ramp, int32_t pair, double frequency) {
  const double stretched = std::clamp((pair - ramp.low) / (ramp.high - ramp.low), 0.0, 1.0);
  return frequency / rope.factor * stretched + frequency * (1 - stretched);
}

double YarnMagnitude(const RopeConfig& rope) {
  if (rope.attention_factor != 0) return rope.attention_factor;
  return rope.factor <= 1 ? 1.0 : 0.1 * std::log(rope.factor) + 1.0;
}

}  // namespace

RopeTable MakeRopeTable(const RopeConfig& rope) {
  using Scaling = RopeConfig::Scaling;
  RopeTable table;
  const int32_t pairs = rope.rotary_dim / 2;
  table.inverse_frequency.resize(static_cast<size_t>(pairs));
  const YarnRamp ramp = rope.scaling == Scaling::kYarn ? MakeYarnRamp(rope) : YarnRamp{};
  for (int32_t pair = 0; pair < pairs; ++pair) {
    const auto i = static_cast<size_t>(pair);
    double frequency = std::pow(rope.theta, -2.0 * pair / rope.rotary_dim);
    if (!rope.frequency_factors.empty()) {
      frequency /= static_cast<double>(rope.frequency_factors[i]);
    }
    switch (rope.scaling) {
      case Scaling::kNone: break;
      case Scaling::kLinear: frequency /= rope.factor; break;
      case Scaling::kLlama3: frequency = ScaleLlama3(rope, frequency); break;
      case Scaling::kYarn: frequency = ScaleYarn(rope, ramp, pair, frequency); break;
    }
    table.inverse_frequency[i] = static_cast<float>(frequency);
  }
  if (rope.scaling == Scaling::kYarn) table.magnitude = static_cast<float>(YarnMagnitude(rope));
  return table;
}

}  // namespace morphserve
