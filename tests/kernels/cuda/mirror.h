// Host memory mirrored on the device: a call is made with the mirror's addresses, and everything is
// copied back. Thread rule: the test's thread.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "tests/kernels/cuda/cuda_fixture.h"

namespace morphserve::kernels::cuda {

// Ranges of host memory in one piece of device memory.
class Mirror {
 public:
  void Add(const void* host, size_t bytes) {
    if (host == nullptr || bytes == 0) return;
    ranges_.push_back({static_cast<const std::byte*>(host), bytes, image_.size()});
    image_.resize((image_.size() + bytes + 511) / 256 * 256);
  }
  template <class T>
  void Add(const std::vector<T>& values) {
    Add(values.data(), values.size() * sizeof(T));
  }
  void Upload() {
    for (const Range& r : ranges_) std::memcpy(image_.data() + r.offset, r.host, r.bytes);
    device_ = std::make_shared<const DeviceArray<std::byte>>(image_);
  }
  // Writes back what the device has of every range.
  void Download() {
    image_ = device_->Read();
    for (const Range& r : ranges_) {
      const std::byte* const from = image_.data() + r.offset;
      if (std::memcmp(r.host, from, r.bytes) == 0) continue;
      std::memcpy(const_cast<std::byte*>(r.host), from, r.bytes);
    }
  }
  // The device's address of what `pointer` points to.
  template <class T>
  T* At(T* pointer) const {
    if (pointer == nullptr) return nullptr;
    const auto* const host = reinterpret_cast<const std::byte*>(pointer);
    for (const Range& r : ranges_) {
      if (host < r.host || host >= r.host + r.bytes) continue;
      return reinterpret_cast<T*>(device_->data() + r.offset + (host - r.host));
    }
    ADD_FAILURE() << "memory that is not mirrored";
    return nullptr;
  }

 private:
  struct Range {
    const std::byte* host;
    size_t bytes;
    size_t offset;
  };
  std::vector<Range> ranges_;
  std::vector<std::byte> image_;
  std::shared_ptr<const DeviceArray<std::byte>> device_;
};

}  // namespace morphserve::kernels::cuda
