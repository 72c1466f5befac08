// What a preempted sequence left in host memory: the bytes of its pages and slots, in the order of
// its tables. Made by CacheManager::Spill, filled back by Restore; its bytes count against the host
// budget until it dies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace morphserve {

class SpilledCaches {
 public:
  // `budget_used` is shared with the CacheManager.
  SpilledCaches(std::vector<size_t> pages, std::vector<bool> slots, std::vector<std::byte> bytes,
                std::shared_ptr<int64_t> budget_used)
      : pages_(std::move(pages)),
        slots_(std::move(slots)),
        bytes_(std::move(bytes)),
        budget_used_(std::move(budget_used)) {
    *budget_used_ += static_cast<int64_t>(bytes_.size());
  }
  ~SpilledCaches() { *budget_used_ -= static_cast<int64_t>(bytes_.size()); }
  SpilledCaches(const SpilledCaches&) = delete;
  SpilledCaches& operator=(const SpilledCaches&) = delete;

 private:
  friend class CacheBooks;
  const std::vector<size_t> pages_;     // [layers]; how many.
  const std::vector<bool> slots_;       // [layers]; whether there is one.
  const std::vector<std::byte> bytes_;  // All pages, then all slots, by layer.
  const std::shared_ptr<int64_t> budget_used_;
};

}  // namespace morphserve
