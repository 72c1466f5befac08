// Matrices of every file type with random or extreme content, packed and ready, for the tests of
// the mat-mul. Thread rule: the test's thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/gemm_target.h"
#include "kernels/gemm.h"
#include "tests/kernels/kernel_test_util.h"

namespace morphserve::kernels {

inline constexpr DType kAllTypes[] = {DType::kF32,  DType::kF16,    DType::kBF16, DType::kQ8_0,
                                      DType::kQ4_0, DType::kQ4_1,   DType::kQ4_K, DType::kQ5_K,
                                      DType::kQ6_K, DType::kF8_E4M3};

inline bool IsQuantised(DType type) { return BlockElements(type) > 1; }

// A finite f16 of magnitude 2^-9 .. 2^-2, either sign.
inline uint16_t RandomHalf(Numbers* numbers) {
  const auto exponent = static_cast<uint32_t>(6 + numbers->Below(8));
  const auto rest = static_cast<uint32_t>(numbers->Bits());
  return static_cast<uint16_t>((rest & 0x83ffu) | exponent << 10);
}

// Rows of a file: random bytes, with sound scales where the type keeps them.
inline std::vector<std::byte> RandomRows(DType type, int32_t n, int32_t k, Numbers* numbers) {
  const int64_t blocks = int64_t{n} * k / BlockElements(type);
  std::vector<std::byte> bytes(static_cast<size_t>(blocks * BlockBytes(type)));
  for (std::byte& b : bytes) b = static_cast<std::byte>(numbers->Bits() >> 32);
  for (int64_t i = 0; i < blocks; ++i) {
    std::byte* block = bytes.data() + i * BlockBytes(type);
    const auto put = [&](int offset) {
      const uint16_t half = RandomHalf(numbers);
      std::memcpy(block + offset, &half, 2);
    };
    if (type == DType::kF32) {
      const float value = numbers->Normal();
      std::memcpy(block, &value, 4);
    } else if (type == DType::kBF16) {
      const float value = numbers->Normal();
      std::memcpy(block, reinterpret_cast<const std::byte*>(&value) + 2, 2);
    } else if (type == DType::kF8_E4M3) {
      if ((*block & std::byte{0x7f}) == std::byte{0x7f}) *block ^= std::byte{1};  // NaN.
    } else {
      put(type == DType::kQ6_K ? 208 : 0);
      if (type == DType::kQ4_1 || type == DType::kQ4_K || type == DType::kQ5_K) put(2);
    }
  }
  return bytes;
}

// Scales of e4m3 rows, one per 128 inputs; none of other types.
inline std::vector<float> RandomScales(DType type, int32_t n, int32_t k, Numbers* numbers) {
  if (type != DType::kF8_E4M3) return {};
  std::vector<float> scales(static_cast<size_t>(n) * static_cast<size_t>((k + 127) / 128));
  for (float& scale : scales) scale = 0x1p-8f + 0x1p-7f * std::abs(numbers->Normal());
  return scales;
}

// A packed matrix with its memory and its values.
class TestMatrix {
 public:
  TestMatrix(DType type, WeightFormat format, int32_t n, int32_t k,
             const std::vector<std::byte>& rows, const std::vector<float>& scales = {})
      : memory_(PackedBytes(format, n, k)) {
    packed_.format = format;
    packed_.n = n;
    packed_.k = k;
    packed_.data = memory_.data();
    // Old content must not show through.
    std::memset(memory_.data(), 0xa5, static_cast<size_t>(memory_.bytes()));
    const absl::Status status = PackRows(type, rows.data(), 0, n, packed_, memory_.data(),
                                         scales.empty() ? nullptr : scales.data());
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
  TestMatrix(DType type, int32_t n, int32_t k, Numbers* numbers)
      : TestMatrix(type, NativeFormat(type), n, k, RandomRows(type, n, k, numbers),
                   RandomScales(type, n, k, numbers)) {}

  const PackedMatrix& packed() const { return packed_; }
  std::byte* memory() { return memory_.data(); }
  std::vector<float> Row(int32_t row) const {
    std::vector<float> out(static_cast<size_t>(packed_.k));
    UnpackRow(packed_, row, out.data());
    return out;
  }

 private:
  Workspace memory_;
  PackedMatrix packed_;
};

// y = x w^T with dense strides on `threads` workers.
inline std::vector<float> Product(const PackedMatrix& w, const std::vector<float>& x, int32_t rows,
                                  int32_t threads = 1) {
  std::vector<float> y(static_cast<size_t>(rows) * static_cast<size_t>(w.n), -7.0f);
  const MatmulPart part{.weights = &w, .y = y.data(), .y_stride = w.n};
  Workspace workspace(MatmulWorkspaceBytes(rows, w.k));
  MatmulArgs args;
  args.x = x.data();
  args.x_stride = w.k;
  args.rows = rows;
  args.parts = {&part, 1};
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.bytes();
  const std::unique_ptr<cpu::ThreadPool> pool = cpu::ThreadPool::Create(threads, false);
  const absl::Status status = cpu::Matmul(args, Stream{.pool = pool.get()});
  EXPECT_TRUE(status.ok()) << status.ToString();
  return y;
}

// Runs f(target name) under every instruction set of the mat-mul that this machine has.
template <class F>
void ForEachGemmTarget(F&& f) {
  using cpu::GemmTarget;
  for (const GemmTarget target : {GemmTarget::kScalar, GemmTarget::kAvx2, GemmTarget::kAvx512,
                                  GemmTarget::kAvx512Vnni, GemmTarget::kAmx}) {
    if (cpu::SetGemmTargetForTest(target)) f(std::string(cpu::GemmTargetName(target)));
  }
  cpu::SetGemmTargetForTest(cpu::BestGemmTarget());
}

// Where two results first differ, or "" if their bits are equal.
inline std::string FirstDifference(const std::vector<float>& a, const std::vector<float>& b,
                                   int32_t n) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!SameBits(&a[i], &b[i], 1)) {
      const size_t outputs = static_cast<size_t>(n);
      return "row " + std::to_string(i / outputs) + ", output " + std::to_string(i % outputs) +
             ": " + std::to_string(a[i]) + " against " + std::to_string(b[i]);
    }
  }
  return "";
}

}  // namespace morphserve::kernels
