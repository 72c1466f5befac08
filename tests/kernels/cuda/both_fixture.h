// Runs one operation on the CPU and on the device over equal memory, and compares all of it: what
// the CPU wrote must be there up to rounding, and what it left alone must have kept its bits. On
// the device it runs twice, and the bits must repeat. Thread rule: the test's thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "tests/kernels/cuda/mirror.h"
#include "tests/kernels/kernel_test_util.h"

namespace morphserve::kernels::cuda {

// Where a run happens: translates host addresses, owns workspaces.
class Place {
 public:
  Place(const Mirror* mirror, Stream stream) : mirror_(mirror), stream_(stream) {}
  bool on_device() const { return mirror_ != nullptr; }
  Stream stream() const { return stream_; }
  template <class T>
  T* At(T* host) const {
    return on_device() ? mirror_->At(host) : host;
  }
  // Poisoned; lives as long as the place.
  std::byte* Scratch(int64_t bytes) {
    if (on_device()) {
      device_.push_back(std::make_unique<DeviceArray<std::byte>>(static_cast<size_t>(bytes)));
      return device_.back()->data();
    }
    host_.push_back(std::make_unique<Workspace>(bytes));
    std::memset(host_.back()->data(), 0xFF, static_cast<size_t>(bytes));
    return host_.back()->data();
  }

 private:
  const Mirror* mirror_;
  Stream stream_;
  std::vector<std::unique_ptr<Workspace>> host_;
  std::vector<std::unique_ptr<DeviceArray<std::byte>>> device_;
};

class BothTest : public CudaTest {
 protected:
  using Buffers = std::vector<std::vector<float>*>;

  // `call(Place&)` runs the operation with addresses from Place::At of what is in `buffers`.
  // Afterwards they hold the device's result. Differences are bounded by `tolerance` times the
  // largest result of a buffer, and their root mean square by a quarter of `tolerance` times the
  // results' root mean square.
  template <class Call>
  void Both(const std::string& what, const Buffers& buffers, double tolerance, Call call) {
    const auto before = Values(buffers);
    Place cpu(nullptr, {.pool = pool_.get()});
    const absl::Status status = call(cpu);
    ASSERT_TRUE(status.ok()) << what << ": " << status;
    const auto expected = Values(buffers);
    std::vector<std::vector<float>> first;
    for (int run = 0; run < 2; ++run) {
      for (size_t b = 0; b < buffers.size(); ++b) *buffers[b] = before[b];
      Mirror mirror;
      for (const auto* buffer : buffers) mirror.Add(*buffer);
      mirror.Upload();
      Place device(&mirror, stream());
      const absl::Status on_device = call(device);
      ASSERT_TRUE(on_device.ok()) << what << ": " << on_device;
      Finish();
      mirror.Download();
      if (run == 0) first = Values(buffers);
    }
    for (size_t b = 0; b < buffers.size(); ++b) {
      const std::vector<float>& got = *buffers[b];
      ASSERT_TRUE(SameBits(first[b].data(), got.data(), got.size())) << what << " buffer " << b;
      ExpectClose(what + " buffer " + std::to_string(b), before[b], expected[b], got, tolerance);
      if (HasFatalFailure()) return;
    }
  }

  Numbers numbers_{31};
  std::unique_ptr<cpu::ThreadPool> pool_ = cpu::ThreadPool::Create(2, false);

 private:
  static std::vector<std::vector<float>> Values(const Buffers& buffers) {
    std::vector<std::vector<float>> values;
    for (const auto* buffer : buffers) values.push_back(*buffer);
    return values;
  }
  static void ExpectClose(const std::string& what, const std::vector<float>& before,
                          const std::vector<float>& expected, const std::vector<float>& got,
                          double tolerance) {
    constexpr double kTiny = 1e-30;  // Below the normal numbers a last place is not small.
    double largest = 0, error = 0, size = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      if (SameBits(&before[i], &expected[i], 1)) {
        ASSERT_TRUE(SameBits(&before[i], &got[i], 1)) << what << " wrote element " << i;
        continue;
      }
      ASSERT_TRUE(std::isfinite(got[i])) << what << " element " << i;
      const double apart = static_cast<double>(got[i]) - static_cast<double>(expected[i]);
      error += apart * apart;
      size += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
      largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    }
    for (size_t i = 0; i < got.size(); ++i) {
      if (SameBits(&before[i], &expected[i], 1)) continue;
      ASSERT_NEAR(got[i], expected[i], tolerance * largest + kTiny) << what << " element " << i;
    }
    ASSERT_LE(std::sqrt(error), tolerance / 4 * std::sqrt(size) + kTiny) << what;
  }
};

}  // namespace morphserve::kernels::cuda
