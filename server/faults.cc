#include "server/faults.h"

#include <utility>

#include "absl/strings/str_format.h"

namespace morphserve {

void FaultList::Add(std::string_view field, std::string problem) {
  ++count_;
  if (faults_.size() < kKeptMax) faults_.push_back({std::string(field), std::move(problem)});
}

void FaultList::AddUnavailable(std::string_view field) {
  if (unavailable_.empty()) unavailable_ = field;
}

bool FaultList::CheckNumber(std::string_view field, double value, double low, double high) {
  if (value >= low && value <= high) return true;
  Add(field, absl::StrFormat("is %g; must be in [%g, %g]", value, low, high));
  return false;
}

bool FaultList::CheckNumberAbove(std::string_view field, double value, double low, double high) {
  if (value > low && value <= high) return true;
  Add(field, absl::StrFormat("is %g; must be in (%g, %g]", value, low, high));
  return false;
}

bool FaultList::CheckInteger(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return true;
  Add(field, absl::StrFormat("is %d; must be in [%d, %d]", value, low, high));
  return false;
}

bool FaultList::CheckCount(std::string_view field, uint64_t count, int64_t limit,
                           std::string_view unit) {
  if (count <= static_cast<uint64_t>(limit)) return true;
  Add(field, absl::StrFormat("has %d %s; limit is %d", count, unit, limit));
  return false;
}

absl::Status FaultList::ToStatus() const {
  if (count_ > 0) return FieldsInvalid(faults_, count_);
  if (!unavailable_.empty()) return FeatureUnavailable(unavailable_);
  return absl::OkStatus();
}

}  // namespace morphserve
