#include "morph/gap_histogram.h"

#include <algorithm>
#include <cmath>

namespace morphserve {
namespace {

constexpr double kFirstMs = 0.02;
constexpr double kRatio = 1.02;

}  // namespace

int32_t GapHistogram::BucketOf(double ms) {
  if (!(ms > kFirstMs)) return 0;
  const double bucket = std::log(ms / kFirstMs) / std::log(kRatio) + 1;
  return static_cast<int32_t>(std::min(bucket, static_cast<double>(kBuckets - 1)));
}

double GapHistogram::EdgeMs(int32_t bucket) { return kFirstMs * std::pow(kRatio, bucket); }

void GapHistogram::Add(double ms) {
  ++buckets_[static_cast<size_t>(BucketOf(ms))];
  ++count_;
}

void GapHistogram::Merge(const GapHistogram& other) {
  for (size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
}

double GapHistogram::At(double percentile) const {
  if (count_ == 0) return 0;
  const double rank = percentile / 100 * static_cast<double>(count_);
  int64_t below = 0;
  for (int32_t i = 0;; ++i) {
    const int64_t here = buckets_[static_cast<size_t>(i)];
    const bool last = below + here == count_;
    if (here == 0 || (!last && static_cast<double>(below + here) < rank)) {
      below += here;
      continue;
    }
    const double part = (rank - static_cast<double>(below)) / static_cast<double>(here);
    const double low = i == 0 ? 0 : EdgeMs(i - 1);
    return low + std::clamp(part, 0.0, 1.0) * (EdgeMs(i) - low);
  }
}

}  // namespace morphserve
