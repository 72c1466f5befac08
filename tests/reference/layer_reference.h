// fp64 oracles of what a layer does to one whole sequence, written from the formulas of the
// contracts: attention with window and sinks, the recurrent mixer step by step, norms, products.
// Rows are consecutive, heads contiguous within a row. Gradients are checked against central
// differences of these.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/reference/elementwise_reference.h"

namespace morphserve::reference {

using Values = std::vector<double>;

inline double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// y [rows, n] = x [rows, k] w^T, w [n, k].
inline Values Product(const Values& x, const Values& w, size_t rows, size_t n, size_t k) {
  Values y(rows * n);
  for (size_t t = 0; t < rows; ++t) {
    for (size_t o = 0; o < n; ++o) {
      double sum = 0;
      for (size_t i = 0; i < k; ++i) sum += x[t * k + i] * w[o * k + i];
      y[t * n + o] = sum;
    }
  }
  return y;
}

inline Values NormRows(const Values& x, const Values& w, size_t rows, double eps) {
  const size_t width = w.size();
  Values y;
  for (size_t t = 0; t < rows; ++t) {
    const auto at = x.begin() + static_cast<std::ptrdiff_t>(t * width);
    const Values row = RmsNorm({at, at + static_cast<std::ptrdiff_t>(width)}, w, eps);
    y.insert(y.end(), row.begin(), row.end());
  }
  return y;
}

struct RopeRows {
  size_t pairs = 0;
  Values cos, sin;  // [rows, pairs]
  bool interleaved = false;
};

// Norm (when w is given) and rotation of every head of every row.
inline Values RopeHeads(const Values& x, size_t rows, size_t heads, size_t d, const Values& norm,
                        double eps, const RopeRows& rope) {
  Values y;
  for (size_t t = 0; t < rows; ++t) {
    const auto at = static_cast<std::ptrdiff_t>(t * rope.pairs);
    const auto next = at + static_cast<std::ptrdiff_t>(rope.pairs);
    const Values cos(rope.cos.begin() + at, rope.cos.begin() + next);
    const Values sin(rope.sin.begin() + at, rope.sin.begin() + next);
    for (size_t h = 0; h < heads; ++h) {
      const auto first = x.begin() + static_cast<std::ptrdiff_t>((t * heads + h) * d);
      Values head(first, first + static_cast<std::ptrdiff_t>(d));
      if (!norm.empty()) head = RmsNorm(head, norm, eps);
      Rope(&head, cos, sin, rope.interleaved);
      y.insert(y.end(), head.begin(), head.end());
    }
  }
  return y;
}

struct AttentionShape {
  size_t rows = 0, heads = 0, kv_heads = 0, d = 0, window = 0, sinks = 0;
  double scale = 1;
};

// Causal softmax attention; `gates` [rows, heads] are logits of 2 sigmoid, or empty.
inline Values Attend(const AttentionShape& s, const Values& q, const Values& k, const Values& v,
                     const Values& gates) {
  Values out(s.rows * s.heads * s.d);
  for (size_t t = 0; t < s.rows; ++t) {
    for (size_t h = 0; h < s.heads; ++h) {
      const size_t g = h / (s.heads / s.kv_heads);
      Values score(t + 1, -HUGE_VAL);
      double highest = -HUGE_VAL;
      for (size_t j = 0; j <= t; ++j) {
        if (s.window != 0 && j + s.window <= t && j >= s.sinks) continue;
        double sum = 0;
        for (size_t i = 0; i < s.d; ++i) {
          sum += q[(t * s.heads + h) * s.d + i] * k[(j * s.kv_heads + g) * s.d + i];
        }
        score[j] = s.scale * sum;
        highest = std::max(highest, score[j]);
      }
      double total = 0;
      for (double& value : score) total += value = std::exp(value - highest);
      const double gate = gates.empty() ? 1 : 2 * Sigmoid(gates[t * s.heads + h]);
      for (size_t j = 0; j <= t; ++j) {
        for (size_t i = 0; i < s.d; ++i) {
          out[(t * s.heads + h) * s.d + i] +=
              gate * score[j] / total * v[(j * s.kv_heads + g) * s.d + i];
        }
      }
    }
  }
  return out;
}

enum class HeadNorm { kNone, kL2, kRms };

struct FeaturesShape {
  size_t rows = 0, heads = 0, d = 0, taps = 0;
  bool silu = true;
  HeadNorm norm = HeadNorm::kL2;
  double eps = 0;
};

// q|k|v [rows, 3 heads d] after convolution, activation, rotation and norm.
inline Values Features(const FeaturesShape& s, const Values& x, const Values& conv,
                       const RopeRows* rope) {
  const size_t width = 3 * s.heads * s.d;
  Values y = x;
  for (size_t t = 0; s.taps > 0 && t < s.rows; ++t) {
    for (size_t c = 0; c < width; ++c) {
      double sum = 0;
      for (size_t j = 0; j < s.taps && j <= t; ++j) {
        sum += conv[j * width + c] * x[(t - j) * width + c];
      }
      y[t * width + c] = sum;
    }
  }
  for (size_t t = 0; t < s.rows; ++t) {
    for (size_t h = 0; h < 2 * s.heads; ++h) {
      const size_t at = t * width + h * s.d;
      const auto first = y.begin() + static_cast<std::ptrdiff_t>(at);
      Values head(first, first + static_cast<std::ptrdiff_t>(s.d));
      for (double& value : head) value = s.silu ? value * Sigmoid(value) : value;
      if (rope != nullptr) {
        RopeRows one = *rope;
        const auto from = static_cast<std::ptrdiff_t>(t * rope->pairs);
        const auto to = from + static_cast<std::ptrdiff_t>(rope->pairs);
        one.cos.assign(rope->cos.begin() + from, rope->cos.begin() + to);
        one.sin.assign(rope->sin.begin() + from, rope->sin.begin() + to);
        head = RopeHeads(head, 1, 1, s.d, {}, 0, one);
      }
      double squares = 0;
      for (const double value : head) squares += value * value;
      double root = 1;
      if (s.norm == HeadNorm::kL2) root = std::sqrt(squares + 1e-6);
      if (s.norm == HeadNorm::kRms) root = std::sqrt(squares / static_cast<double>(s.d) + s.eps);
      for (size_t i = 0; i < s.d; ++i) y[at + i] = head[i] / root;
    }
  }
  return y;
}

struct CoreShape {
  size_t rows = 0, heads = 0, d = 0;
  bool delta = true;  // Gated delta; else lightning.
  double scale = 1;
  Values a_log, dt_bias, b_beta, slopes;  // [heads]
};

// o [rows, heads d] of the recurrence over the features; a, b [rows, heads].
inline Values Recurrence(const CoreShape& s, const Values& qkv, const Values& a, const Values& b) {
  const size_t width = 3 * s.heads * s.d;
  Values out(s.rows * s.heads * s.d);
  for (size_t h = 0; h < s.heads; ++h) {
    std::vector<Values> state(s.d, Values(s.d));
    for (size_t t = 0; t < s.rows; ++t) {
      const double* const q = qkv.data() + t * width + h * s.d;
      const double* const k = q + s.heads * s.d;
      const double* const v = k + s.heads * s.d;
      double log_decay = s.delta ? 0 : -s.slopes[h];
      double beta = 1;
      if (s.delta) {
        const double x = a[t * s.heads + h] + s.dt_bias[h];
        log_decay = -std::exp(s.a_log[h]) * std::log1p(std::exp(x));
        beta = Sigmoid(b[t * s.heads + h] + s.b_beta[h]);
      }
      for (Values& row : state) {
        for (double& value : row) value *= std::exp(log_decay);
      }
      for (size_t j = 0; j < s.d; ++j) {
        double read = 0;
        for (size_t i = 0; s.delta && i < s.d; ++i) read += state[i][j] * k[i];
        const double u = beta * (v[j] - read);
        for (size_t i = 0; i < s.d; ++i) state[i][j] += k[i] * u;
        double o = 0;
        for (size_t i = 0; i < s.d; ++i) o += state[i][j] * q[i];
        out[(t * s.heads + h) * s.d + j] = s.scale * o;
      }
    }
  }
  return out;
}

// Norm over one head (per_head) or all, times w, times silu(z) or sigmoid(z).
inline Values NormAndGate(const Values& o, const Values& z, const Values& w, size_t rows, size_t d,
                          bool per_head, double eps, bool silu) {
  const size_t width = w.size();
  const size_t span = per_head ? d : width;
  Values y(o.size());
  for (size_t first = 0; first < rows * width; first += span) {
    double squares = 0;
    for (size_t i = first; i < first + span; ++i) squares += o[i] * o[i];
    const double root = std::sqrt(squares / static_cast<double>(span) + eps);
    for (size_t i = first; i < first + span; ++i) {
      y[i] = o[i] / root * w[i % width] * Sigmoid(z[i]) * (silu ? z[i] : 1);
    }
  }
  return y;
}

}  // namespace morphserve::reference
