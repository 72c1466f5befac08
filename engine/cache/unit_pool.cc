#include "engine/cache/unit_pool.h"

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "kernels/common/types.h"

namespace morphserve {

UnitPool::UnitPool(Arena* arena, int64_t unit_bytes)
    : arena_(arena),
      unit_bytes_(unit_bytes),
      units_per_block_(static_cast<int32_t>(arena->super_block_bytes() / unit_bytes)),
      blocks_(static_cast<size_t>(arena->total())) {
  MS_CHECK(unit_bytes > 0 && unit_bytes % kArenaUnitBytes == 0);
  MS_CHECK(units_per_block_ >= 1);
}

UnitPool::~UnitPool() { MS_CHECK(in_use_ == 0); }

int64_t UnitPool::available() const {
  return borrowed_free_ + int64_t{arena_->free_count()} * units_per_block_;
}

bool UnitPool::Allocate(std::span<UnitAddress> out) {
  if (static_cast<int64_t>(out.size()) > available()) return false;
  for (UnitAddress& unit : out) {
    if (open_.empty()) {
      const int32_t block = *arena_->Borrow();
      Block& fresh = blocks_[static_cast<size_t>(block)];
      fresh.references.assign(static_cast<size_t>(units_per_block_), 0);
      for (int32_t i = units_per_block_ - 1; i >= 0; --i) fresh.free.push_back(i);
      open_.emplace(units_per_block_, block);
      borrowed_free_ += units_per_block_;
    }
    const auto [free_units, block_index] = *open_.begin();  // Fewest free: the fullest.
    open_.erase(open_.begin());
    Block& block = blocks_[static_cast<size_t>(block_index)];
    const int32_t index = block.free.back();
    block.free.pop_back();
    MS_CHECK(block.references[static_cast<size_t>(index)] == 0);
    block.references[static_cast<size_t>(index)] = 1;
    if (free_units > 1) open_.emplace(free_units - 1, block_index);
    --borrowed_free_;
    ++in_use_;
    unit = static_cast<UnitAddress>(
        (int64_t{block_index} * arena_->super_block_bytes() + int64_t{index} * unit_bytes_) /
        kArenaUnitBytes);
  }
  return true;
}

std::pair<int32_t, int32_t> UnitPool::Locate(UnitAddress unit) const {
  const int64_t offset = int64_t{unit} * kArenaUnitBytes;
  const int64_t block = offset / arena_->super_block_bytes();
  const int64_t within = offset % arena_->super_block_bytes();
  MS_CHECK(unit >= 0 && block < static_cast<int64_t>(blocks_.size()));
  MS_CHECK(within % unit_bytes_ == 0);
  MS_CHECK(!blocks_[static_cast<size_t>(block)].references.empty());
  return {static_cast<int32_t>(block), static_cast<int32_t>(within / unit_bytes_)};
}

void UnitPool::Share(UnitAddress unit) {
  const auto [block, index] = Locate(unit);
  int32_t& references = blocks_[static_cast<size_t>(block)].references[static_cast<size_t>(index)];
  MS_CHECK(references > 0);
  ++references;
}

void UnitPool::Release(UnitAddress unit) {
  const auto [block_index, index] = Locate(unit);
  Block& block = blocks_[static_cast<size_t>(block_index)];
  int32_t& references = block.references[static_cast<size_t>(index)];
  MS_CHECK(references > 0);
  if (--references > 0) return;
  --in_use_;
  ++borrowed_free_;
  const auto free_units = static_cast<int32_t>(block.free.size());
  if (free_units > 0) open_.erase({free_units, block_index});
  block.free.push_back(index);
  if (free_units + 1 == units_per_block_) {
    borrowed_free_ -= units_per_block_;
    block = Block{};
    arena_->Return(block_index);
  } else {
    open_.emplace(free_units + 1, block_index);
  }
}

std::byte* UnitPool::data(UnitAddress unit) const {
  return arena_->base() + int64_t{unit} * kArenaUnitBytes;
}

absl::Status UnitPool::CheckIntegrity() const {
  int64_t used = 0;
  int64_t free_units = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const Block& block = blocks_[b];
    if (block.references.empty()) continue;
    std::vector<bool> listed(block.references.size());
    for (const int32_t index : block.free) {
      const auto i = static_cast<size_t>(index);
      if (listed[i])
        return absl::InternalError(absl::StrFormat("unit %d of block %d is free twice", index, b));
      if (block.references[i] != 0) {
        return absl::InternalError(
            absl::StrFormat("unit %d of block %d is free and in use", index, b));
      }
      listed[i] = true;
      ++free_units;
    }
    for (size_t i = 0; i < listed.size(); ++i) {
      if (!listed[i] && block.references[i] <= 0) {
        return absl::InternalError(absl::StrFormat("unit %d of block %d is lost", i, b));
      }
      if (!listed[i]) ++used;
    }
  }
  if (used != in_use_ || free_units != borrowed_free_) {
    return absl::InternalError(absl::StrFormat("%d units in use, counted %d; %d free, counted %d",
                                               in_use_, used, borrowed_free_, free_units));
  }
  return absl::OkStatus();
}

}  // namespace morphserve
