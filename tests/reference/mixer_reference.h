// fp64 oracles of the two mixers of a linear layer, one sequence, token by token, written from the
// formulas of kernels/recurrent_mixer.h and kernels/window_mixer.h. Nothing is shared with the
// kernels but the names of the options.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/recurrent_mixer.h"
#include "kernels/window_mixer.h"
#include "tests/reference/attention_reference.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::reference {

using Vector = std::vector<double>;

inline double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline double Softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }

// The value of the cache type nearest to `value`, ties to even.
inline double RoundToCache(KvDType type, double value) {
  if (value == 0) return value;
  const int precision = type == KvDType::kF32 ? 24 : type == KvDType::kF16 ? 11 : 8;
  const int lowest = type == KvDType::kF16 ? -24 : type == KvDType::kF32 ? -149 : -133;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(value) - precision + 1, lowest));
  return std::nearbyint(value / unit) * unit;
}

// Parameters of a recurrent mixer in fp64, and what it remembers.
struct Recurrent {
  kernels::RecurrentKind kind;
  kernels::QkNorm qk_norm;
  kernels::OutputGate output_gate;
  size_t heads, dim;
  KvDType dtype;
  bool silu, interleaved, per_head_norm;
  double scale, eps;
  std::vector<Vector> conv = {};  // [taps][3 heads dim]
  Vector a_log, dt_bias, b_beta, slopes, norm_weight;

  std::vector<Vector> inputs = {};  // Rounded, of all positions.
  Vector state = {};                // [heads][dim][dim]

  // `cos` and `sin` may be empty.
  Vector Step(const Vector& qkv, const Vector& a, const Vector& b, const Vector& z,
              const Vector& cos, const Vector& sin);

 private:
  Vector Convolved(const Vector& qkv);
  Vector Prepared(const Vector& x, size_t first, const Vector& cos, const Vector& sin) const;
  Vector OneHead(size_t h, double a, double b, const Vector& q, const Vector& k, const Vector& v);
};

inline Vector Recurrent::Convolved(const Vector& qkv) {
  if (conv.empty()) return qkv;
  Vector rounded(qkv);
  for (double& x : rounded) x = RoundToCache(dtype, x);
  inputs.push_back(rounded);
  Vector x(qkv.size(), 0.0);
  for (size_t j = 0; j < conv.size() && j < inputs.size(); ++j) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += conv[j][i] * inputs[inputs.size() - 1 - j][i];
  }
  return x;
}

inline Vector Recurrent::Prepared(const Vector& x, size_t first, const Vector& cos,
                                  const Vector& sin) const {
  Vector head(dim);
  double squares = 0;
  for (size_t i = 0; i < dim; ++i)
    head[i] = silu ? x[first + i] * Sigmoid(x[first + i]) : x[first + i];
  Rope(&head, cos, sin, interleaved);
  for (double value : head) squares += value * value;
  double factor = 1;
  if (qk_norm == kernels::QkNorm::kL2) factor = 1 / std::sqrt(squares + 1e-6);
  if (qk_norm == kernels::QkNorm::kRms) {
    factor = 1 / std::sqrt(squares / static_cast<double>(dim) + eps);
  }
  for (double& value : head) value *= factor;
  return head;
}

inline Vector Recurrent::OneHead(size_t h, double a, double b, const Vector& q, const Vector& k,
                                 const Vector& v) {
  const bool is_delta = kind == kernels::RecurrentKind::kGatedDelta;
  const double g = is_delta ? -std::exp(a_log[h]) * Softplus(a + dt_bias[h]) : -slopes[h];
  const double beta = is_delta ? Sigmoid(b + b_beta[h]) : 0;
  double* const s = state.data() + h * dim * dim;  // s[i * dim + c]
  for (size_t i = 0; i < dim * dim; ++i) s[i] *= std::exp(g);
  Vector o(dim, 0.0);
  for (size_t c = 0; c < dim; ++c) {
    double u = v[c];
    if (is_delta) {
      for (size_t i = 0; i < dim; ++i) u -= s[i * dim + c] * k[i];
      u *= beta;
    }
    for (size_t i = 0; i < dim; ++i) {
      s[i * dim + c] += k[i] * u;
      o[c] += scale * s[i * dim + c] * q[i];
    }
  }
  return o;
}

inline Vector Recurrent::Step(const Vector& qkv, const Vector& a, const Vector& b, const Vector& z,
                              const Vector& cos, const Vector& sin) {
  const size_t width = heads * dim;
  state.resize(width * dim, 0.0);
  const Vector x = Convolved(qkv);
  Vector out;
  for (size_t h = 0; h < heads; ++h) {
    const auto v = x.begin() + static_cast<std::ptrdiff_t>(2 * width + h * dim);
    const Vector o =
        OneHead(h, a.empty() ? 0 : a[h], b.empty() ? 0 : b[h], Prepared(x, h * dim, cos, sin),
                Prepared(x, width + h * dim, cos, sin), {v, v + static_cast<std::ptrdiff_t>(dim)});
    out.insert(out.end(), o.begin(), o.end());
  }
  const size_t span = per_head_norm ? dim : width;
  for (size_t first = 0; first < width; first += span) {
    double squares = 0;
    for (size_t i = 0; i < span; ++i) squares += out[first + i] * out[first + i];
    const double root = std::sqrt(squares / static_cast<double>(span) + eps);
    for (size_t i = first; i < first + span; ++i) {
      const double gate = Sigmoid(z[i]) * (output_gate == kernels::OutputGate::kSilu ? z[i] : 1);
      out[i] = out[i] / root * norm_weight[i] * gate;
    }
  }
  return out;
}

// A window mixer in fp64, and all keys and values that it has seen, [position][kv head][dim].
struct Window {
  size_t heads, kv_heads, dim, window, sinks;
  KvDType dtype;
  bool interleaved;
  double scale, norm_eps;
  Vector q_norm = {}, k_norm = {}, gate_bias = {};  // Empty: none.

  std::vector<std::vector<Vector>> keys = {}, values = {};

  Vector Step(const Vector& q, const Vector& k, const Vector& v, const Vector& gate,
              const Vector& cos, const Vector& sin) {
    keys.emplace_back();
    values.emplace_back();
    for (size_t h = 0; h < kv_heads; ++h) {
      Vector key = Head(k, h, k_norm, cos, sin);
      Vector value = Head(v, h, {}, {}, {});
      for (double& x : key) x = RoundToCache(dtype, x);
      for (double& x : value) x = RoundToCache(dtype, x);
      keys.back().push_back(key);
      values.back().push_back(value);
    }
    Vector out;
    for (size_t h = 0; h < heads; ++h) {
      std::vector<Vector> seen_keys, seen_values;
      for (size_t j = 0; j < keys.size(); ++j) {
        if (j + window < keys.size() && j >= sinks) continue;
        seen_keys.push_back(keys[j][h / (heads / kv_heads)]);
        seen_values.push_back(values[j][h / (heads / kv_heads)]);
      }
      const Vector o = AttentionRow(Head(q, h, q_norm, cos, sin), seen_keys, seen_values, 0,
                                    seen_keys.size(), scale);
      for (double x : o) {
        out.push_back(gate_bias.empty() ? x : x * 2 * Sigmoid(gate[h] + gate_bias[h]));
      }
    }
    return out;
  }

 private:
  Vector Head(const Vector& row, size_t h, const Vector& norm, const Vector& cos,
              const Vector& sin) const {
    const auto from = row.begin() + static_cast<std::ptrdiff_t>(h * dim);
    Vector head(from, from + static_cast<std::ptrdiff_t>(dim));
    if (!norm.empty()) head = RmsNorm(head, norm, norm_eps);
    Rope(&head, cos, sin, interleaved);
    return head;
  }
};

}  // namespace morphserve::reference
