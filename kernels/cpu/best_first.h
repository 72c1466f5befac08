// BestFirst hands out the values of a row of logits in order (value descending, index ascending)
// and sorts only as many as are asked for: a token is nearly always found among the first few dozen
// of fifty thousand. Values of -inf are never handed out. Thread rule: one thread. The row and the
// memory are borrowed and must outlive it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace morphserve::kernels::cpu {

class BestFirst {
 public:
  using Candidate = std::pair<float, int32_t>;

  // `largest` is the row's maximum; the row holds no NaN and no +inf.
  BestFirst(std::span<const float> row, float largest, std::vector<Candidate>* memory);

  // Makes the first `count` available, or all if there are fewer.
  void Reserve(size_t count);

  // Whether number i (from 0) exists; makes it available if so.
  bool Has(size_t i);

  const Candidate& operator[](size_t i) const { return (*sorted_)[i]; }
  size_t available() const { return sorted_->size(); }
  // How many values the row has that are not -inf.
  size_t total() const { return total_; }

 private:
  const std::span<const float> row_;
  const float largest_;
  size_t total_ = 0;
  std::vector<Candidate>* const sorted_;
};

}  // namespace morphserve::kernels::cpu
