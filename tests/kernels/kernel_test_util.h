// Helpers of the kernel tests: repeatable numbers, guarded buffers, and every instruction set that
// this machine can run. Thread rule: the test's thread.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/stream.h"
#include "kernels/cpu/hwy_targets.h"
#include "kernels/cpu/thread_pool.h"
// Highway after the list of targets that we build.
#include <hwy/highway.h>

namespace morphserve::kernels {

// splitmix64; equal on every platform, unlike the distributions of the standard library.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed) {}

  uint64_t Bits() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int32_t Below(int32_t limit) {
    return static_cast<int32_t>(Bits() % static_cast<uint64_t>(limit));
  }
  // Uniform in [-1, 1).
  float Uniform() { return static_cast<float>(Bits() >> 40) * 0x1p-23f - 1.0f; }
  // About normal: the sum of four uniforms, scaled to variance 1.
  float Normal() { return (Uniform() + Uniform() + Uniform() + Uniform()) * 0.8660254f; }

  std::vector<float> Normals(size_t count, float scale = 1.0f) {
    std::vector<float> values(count);
    for (float& v : values) v = Normal() * scale;
    return values;
  }

 private:
  uint64_t state_;
};

// Floats at any offset from 64-byte alignment, at the very end of their allocation, so that a read
// past them is seen by ASan.
class FloatsAt {
 public:
  FloatsAt(size_t count, size_t misaligned)
      : misaligned_(misaligned), values_(count + misaligned) {}
  float* data() { return values_.data() + misaligned_; }
  size_t size() const { return values_.size() - misaligned_; }
  float& operator[](size_t i) { return values_[i + misaligned_]; }

 private:
  size_t misaligned_;
  std::vector<float> values_;
};

inline bool SameBits(const float* a, const float* b, size_t count) {
  return count == 0 || std::memcmp(a, b, count * sizeof(float)) == 0;
}

// 64-byte aligned scratch.
class Workspace {
 public:
  explicit Workspace(int64_t bytes)
      : bytes_(bytes), memory_(new std::byte[static_cast<size_t>(bytes) + 64]) {}
  std::byte* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (64 - address % 64) % 64;
  }
  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_;
  std::unique_ptr<std::byte[]> memory_;
};

// Calls f(name, has_fma) once with every instruction set of this machine in force.
template <class F>
void ForEachTarget(F&& f) {
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    f(std::string(hwy::TargetName(target)), target == HWY_AVX2 || target == HWY_AVX3);
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace morphserve::kernels
