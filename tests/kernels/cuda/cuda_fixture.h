// For tests of CUDA operations: a device that is opened once, arrays on it, and outputs that are
// poisoned before the run. On a machine without a device every test says that it was skipped.
#pragma once

#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "kernels/cuda/device.h"

namespace morphserve::kernels::cuda {

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = OpenDevice(0);
    if (absl::IsNotFound(device.status()) || absl::IsUnimplemented(device.status())) {
      GTEST_SKIP() << device.status().message();
    }
    ASSERT_TRUE(device.ok()) << device.status();
    auto stream = CreateStream(/*low_priority=*/false);
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *stream;
  }
  void TearDown() override {
    if (stream_.cuda_stream != nullptr) DestroyStream(stream_);
  }
  const Backend& ops() const { return *CudaBackend(); }
  Stream stream() const { return stream_; }
  // Runs to the end; device faults fail the test.
  void Finish() { ASSERT_TRUE(Synchronize(stream_).ok()) << Synchronize(stream_); }

 private:
  Stream stream_;
};

// An array in device memory.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::span<const T> values) : DeviceArray(values.size()) { Write(values); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(std::span<const T>(values)) {}
  // Poisoned: bytes of ones, a NaN for floats and -1 for integers.
  explicit DeviceArray(size_t count) : count_(count) {
    auto memory = DeviceMemory::Allocate(static_cast<int64_t>(count * sizeof(T)) + 16);
    EXPECT_TRUE(memory.ok()) << memory.status();
    if (!memory.ok()) return;
    memory_ = std::move(*memory);
    EXPECT_TRUE(FillBytes(memory_.data(), 0xFF, memory_.bytes(), {}).ok());
    EXPECT_TRUE(Synchronize({}).ok());
  }
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  size_t size() const { return count_; }
  void Write(std::span<const T> values) {
    EXPECT_TRUE(
        CopyToDevice(data(), values.data(), static_cast<int64_t>(values.size_bytes()), {}).ok());
    EXPECT_TRUE(Synchronize({}).ok());
  }
  std::vector<T> Read() const {
    std::vector<T> values(count_);
    EXPECT_TRUE(
        CopyToHost(values.data(), data(), static_cast<int64_t>(count_ * sizeof(T)), {}).ok());
    EXPECT_TRUE(Synchronize({}).ok());
    return values;
  }

 private:
  size_t count_ = 0;
  DeviceMemory memory_;
};

}  // namespace morphserve::kernels::cuda
