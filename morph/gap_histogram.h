// GapHistogram counts times between two tokens in buckets 2 % apart, from 0.02 ms to over a minute,
// so that any percentile can be read later. A value; 3 KiB.
#pragma once

#include <cstdint>
#include <vector>

namespace morphserve {

class GapHistogram {
 public:
  void Add(double ms);
  void Merge(const GapHistogram& other);

  int64_t count() const { return count_; }
  // The time that so many per cent of them keep to, interpolated within its bucket; 0: there is
  // none.
  double At(double percentile) const;

 private:
  static constexpr int32_t kBuckets = 768;
  static int32_t BucketOf(double ms);
  static double EdgeMs(int32_t bucket);  // The upper one.

  std::vector<uint32_t> buckets_ = std::vector<uint32_t>(kBuckets);
  int64_t count_ = 0;
};

}  // namespace morphserve
