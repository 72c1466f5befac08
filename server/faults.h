// FaultList collects everything that is wrong with one request, so that a client learns it at once.
// Thread rule: one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/errors.h"

namespace morphserve {

class FaultList {
 public:
  // `problem` continues the field's path: "is 1.5; must be in (0, 1]".
  void Add(std::string_view field, std::string problem);
  // A field that is set although this release does not have it.
  void AddUnavailable(std::string_view field);

  // Each adds a fault and returns false unless the value is inside [low, high] (NaN never is) or at
  // most `limit`.
  bool CheckNumber(std::string_view field, double value, double low, double high);
  // The same for (low, high].
  bool CheckNumberAbove(std::string_view field, double value, double low, double high);
  bool CheckInteger(std::string_view field, int64_t value, int64_t low, int64_t high);
  bool CheckCount(std::string_view field, uint64_t count, int64_t limit, std::string_view unit);

  bool empty() const { return count_ == 0 && unavailable_.empty(); }
  // FIELD_INVALID when there are faults, else FEATURE_UNAVAILABLE for the first such field, else
  // OK.
  absl::Status ToStatus() const;

 private:
  static constexpr size_t kKeptMax = 64;  // A list of bad ids must not become a list of strings.

  std::vector<FieldFault> faults_;
  size_t count_ = 0;
  std::string unavailable_;
};

}  // namespace morphserve
