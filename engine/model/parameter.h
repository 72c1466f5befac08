// Parameter is one small tensor of f32 values (a norm, a bias, the gates of a branch): kept on the
// host, and placed where the backend reads it. Thread rule: immutable once the model is made.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace morphserve {

class Parameter {
 public:
  Parameter() = default;
  Parameter(std::vector<float> values) : host_(std::move(values)) {}  // NOLINT: as good as values.

  std::vector<float>& host() { return host_; }
  const std::vector<float>& host() const { return host_; }
  operator const std::vector<float>&() const { return host_; }  // NOLINT: the values.
  bool empty() const { return host_.empty(); }
  size_t size() const { return host_.size(); }

  // In the backend's memory; null when there are no values.
  const float* data() const {
    if (host_.empty()) return nullptr;
    return placed_ != nullptr ? placed_ : host_.data();
  }
  // From now on the backend reads `values`, which outlive this.
  void Place(const float* values) { placed_ = values; }

 private:
  std::vector<float> host_;
  const float* placed_ = nullptr;
};

}  // namespace morphserve
