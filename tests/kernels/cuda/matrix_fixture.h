// Uploaded matrices with the values that a product on the device multiplies with.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/quant_block.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/kernels/gemm_fixture.h"
#include "tests/reference/gemm_reference.h"

namespace morphserve::kernels::cuda {

class DeviceMatrix {
 public:
  DeviceMatrix(DType type, int32_t n, int32_t k, Numbers* numbers, Stream stream)
      : DeviceMatrix(TestMatrix(type, n, k, numbers), stream) {}
  DeviceMatrix(const TestMatrix& host, Stream stream) {
    const PackedMatrix& packed = host.packed();
    auto memory = DeviceMemory::Allocate(DeviceMatrixBytes(packed));
    EXPECT_TRUE(memory.ok()) << memory.status();
    memory_ = std::move(*memory);
    // Old content must not show through.
    EXPECT_TRUE(FillBytes(memory_.data(), 0xFF, memory_.bytes(), stream).ok());
    const auto uploaded = UploadMatrix(packed, memory_.data(), stream);
    EXPECT_TRUE(uploaded.ok()) << uploaded.status();
    matrix_ = *uploaded;
    for (int32_t row = 0; row < packed.n; ++row) {
      rows_.push_back(host.Row(row));
      if (matrix_.format != WeightFormat::kBF16) continue;
      for (float& v : rows_.back()) v = BFloat16ToFloat(FloatToBFloat16(v));
    }
  }
  const PackedMatrix& packed() const { return matrix_; }
  // Keeps it once more as bf16 (device.h).
  void AddCopy(Stream stream) {
    auto memory = DeviceMemory::Allocate(Bf16CopyBytes(matrix_));
    ASSERT_TRUE(memory.ok()) << memory.status();
    copy_ = std::move(*memory);
    ASSERT_TRUE(FillBytes(copy_.data(), 0xFF, copy_.bytes(), stream).ok());
    ASSERT_TRUE(AddBf16Copy(&matrix_, copy_.data(), stream).ok());
  }
  const std::vector<float>& Row(size_t row) const { return rows_[row]; }

 private:
  DeviceMemory memory_, copy_;
  PackedMatrix matrix_;
  std::vector<std::vector<float>> rows_;
};

}  // namespace morphserve::kernels::cuda
