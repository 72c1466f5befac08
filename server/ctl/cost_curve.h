// CostCurve foretells step times from the terms that a server answers to GetCosts, by the rule that
// the proto states beside them. Immutable.
#pragma once

#include <optional>
#include <vector>

#include "morphserve/v1/morph.pb.h"

namespace morphserve::ctl {

class CostCurve {
 public:
  explicit CostCurve(const v1::GetCostsResponse& costs);

  // A decode step of `running` sequences with `context` tokens each; nullopt without decode terms.
  std::optional<double> DecodeMs(double full_layers, double running, double context) const;
  // A prompt alone on an idle server; nullopt without prefill terms.
  std::optional<double> PrefillMs(double full_layers, double prompt_tokens) const;
  // Context from which on a linear layer is faster; nullopt: never or not known.
  std::optional<double> BreakEvenTokens(double running) const;

 private:
  struct Terms {
    double rows = 0, base = 0, layer = 0, token = 0;
  };
  static Terms At(const std::vector<Terms>& terms, double rows);

  std::vector<Terms> decode_, prefill_;  // Rising rows.
};

}  // namespace morphserve::ctl
