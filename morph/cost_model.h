// CostModel predicts how long a step takes on this machine under any plan and load, from steps that
// were measured here (cost_measure.h). With B sequences in a decode step, k of L layers full and C
// tokens of context each,
//   t = base(B) + k (layer(B) + token(B) C)
// base is a step with every layer linear; layer and token are what one full layer costs more than a
// linear one, token being the read of its keys and values. The three are fitted by least squares of
// relative errors for every B that was measured, and run linearly between them: on a CPU a product
// turns from bound by memory to bound by arithmetic as B grows, which no one line follows. A
// prefill chunk of R rows at a mean position P takes the same form in R, with P for C. Everything
// is a pure function of the measurements. Thread rule: immutable.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "morph/load_point.h"

namespace morphserve {

// One measured step: `rows` sequences of one row each, or one sequence of `rows` rows (prefill).
struct CostPoint {
  bool prefill = false;
  int32_t full_layers = 0;
  int32_t rows = 1;
  double context = 0;  // Mean tokens before a row.
  double ms = 0;
};

class CostModel {
 public:
  // The coefficients at one number of rows, in ms.
  struct Terms {
    int32_t rows = 0;
    double base = 0;   // Every layer linear.
    double layer = 0;  // A full layer instead of a linear one, at no context.
    double token = 0;  // Each token of a sequence's context, a full layer and step.
  };

  // FAILED_PRECONDITION when there are not two budgets and two contexts for some number of rows, or
  // a time is not positive.
  static absl::StatusOr<CostModel> Fit(int32_t layers, std::vector<CostPoint> points);

  // A decode step; with one sequence or more.
  double DecodeMs(int32_t full_layers, double running, double context) const;
  // A prompt alone on an idle server, in chunks of the most rows that were measured: its time to
  // the first token.
  double PrefillMs(int32_t full_layers, int32_t prompt_tokens) const;

  // Relative error of the fit, one standard deviation.
  double decode_error() const { return decode_error_; }
  double prefill_error() const { return prefill_error_; }
  // By how much, relatively, a time at a percentile is above the mean when `error` is one standard
  // deviation: nothing at 50, more above.
  static double Spread(double error, double percentile);
  // The same of a time that is predicted, which may itself be off by a standard deviation.
  static double Margin(double error, double percentile) {
    return error + Spread(error, percentile);
  }

  // Context from which on a linear layer is faster than a full one; nullopt when it never is, 0
  // when it always is.
  std::optional<double> BreakEvenContext(double running) const;

  // Worst and median relative error against steps that were not used for the fit.
  struct Errors {
    double median = 0;
    double worst = 0;
  };
  Errors ErrorsOn(std::span<const CostPoint> points) const;

  int32_t layers() const { return layers_; }
  const std::vector<Terms>& decode() const { return decode_; }    // Rising rows.
  const std::vector<Terms>& prefill() const { return prefill_; }  // Rising rows; may be empty.
  const std::vector<CostPoint>& points() const { return points_; }

 private:
  CostModel() = default;
  double Predict(const CostPoint& point) const;

  int32_t layers_ = 0;
  std::vector<Terms> decode_;
  std::vector<Terms> prefill_;
  double decode_error_ = 0;
  double prefill_error_ = 0;
  std::vector<CostPoint> points_;
};

}  // namespace morphserve
