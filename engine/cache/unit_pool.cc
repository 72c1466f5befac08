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
      fresh.units.assign(static_cast<size_t>(units_per_block_), Unit{});
      for (int32_t i = units_per_block_ - 1; i >= 0; --i) fresh.free.push_back(i);
      open_.emplace(units_per_block_, block);
      borrowed_free_ += units_per_block_;
    }
    unit = TakeFromOpen();
    At(unit).running = 1;
    At(unit).generation = ++generations_;
    ++in_use_;
    ++running_;
  }
  return true;
}

UnitAddress UnitPool::TakeFromOpen() {
  const auto [free_units, block_index] = *open_.begin();  // Fewest free: the fullest.
  open_.erase(open_.begin());
  Block& block = blocks_[static_cast<size_t>(block_index)];
  const int32_t index = block.free.back();
  block.free.pop_back();
  MS_CHECK(!block.units[static_cast<size_t>(index)].live());
  if (free_units > 1) open_.emplace(free_units - 1, block_index);
  --borrowed_free_;
  return AddressOf(block_index, index);
}

UnitAddress UnitPool::AddressOf(int32_t block, int32_t index) const {
  return static_cast<UnitAddress>(
      (int64_t{block} * arena_->super_block_bytes() + int64_t{index} * unit_bytes_) /
      kArenaUnitBytes);
}

std::pair<int32_t, int32_t> UnitPool::Locate(UnitAddress unit) const {
  const int64_t offset = int64_t{unit} * kArenaUnitBytes;
  const int64_t block = offset / arena_->super_block_bytes();
  const int64_t within = offset % arena_->super_block_bytes();
  MS_CHECK(unit >= 0 && block < static_cast<int64_t>(blocks_.size()));
  MS_CHECK(within % unit_bytes_ == 0 && within / unit_bytes_ < units_per_block_);
  MS_CHECK(!blocks_[static_cast<size_t>(block)].units.empty());
  return {static_cast<int32_t>(block), static_cast<int32_t>(within / unit_bytes_)};
}

UnitPool::Unit& UnitPool::At(UnitAddress unit) {
  const auto [block, index] = Locate(unit);
  return blocks_[static_cast<size_t>(block)].units[static_cast<size_t>(index)];
}

int32_t UnitPool::references(UnitAddress unit, Holder holder) const {
  const auto [block, index] = Locate(unit);
  const Unit& at = blocks_[static_cast<size_t>(block)].units[static_cast<size_t>(index)];
  return holder == Holder::kRunning ? at.running : at.cached;
}

uint32_t UnitPool::generation(UnitAddress unit) const {
  const int64_t block = int64_t{unit} * kArenaUnitBytes / arena_->super_block_bytes();
  // A super-block that went home holds no unit, whatever address is asked for.
  if (blocks_[static_cast<size_t>(block)].units.empty()) return 0;
  const auto [owner, index] = Locate(unit);
  const Unit& at = blocks_[static_cast<size_t>(owner)].units[static_cast<size_t>(index)];
  return at.live() ? at.generation : 0;
}

void UnitPool::Share(UnitAddress unit, Holder holder) {
  Unit& at = At(unit);
  MS_CHECK(at.live());
  if (holder == Holder::kRunning && at.running == 0) ++running_;
  ++at.of(holder);
}

void UnitPool::Release(UnitAddress unit, Holder holder) {
  const auto [block_index, index] = Locate(unit);
  Block& block = blocks_[static_cast<size_t>(block_index)];
  Unit& at = block.units[static_cast<size_t>(index)];
  MS_CHECK(at.of(holder) > 0);
  --at.of(holder);
  if (holder == Holder::kRunning && at.running == 0) --running_;
  if (at.live()) return;
  MS_CHECK(!at.pinned);
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

void UnitPool::Pin(UnitAddress unit) {
  Unit& at = At(unit);
  MS_CHECK(at.live() && !at.pinned);
  at.pinned = true;
  if (blocks_[static_cast<size_t>(Locate(unit).first)].pins++ == 0) ++pinned_blocks_;
}

void UnitPool::Unpin(UnitAddress unit) {
  Unit& at = At(unit);
  MS_CHECK(at.pinned);
  at.pinned = false;
  if (--blocks_[static_cast<size_t>(Locate(unit).first)].pins == 0) --pinned_blocks_;
}

bool UnitPool::EmptyBlock(std::vector<UnitMove>* moves) {
  int32_t best = -1;
  int32_t best_free = -1;
  for (int32_t b = 0; b < arena_->total(); ++b) {
    const Block& block = blocks_[static_cast<size_t>(b)];
    const auto free_units = static_cast<int32_t>(block.free.size());
    if (block.units.empty() || block.pins > 0 || free_units <= best_free) continue;
    best = b;
    best_free = free_units;
  }
  // Its live units go into free ones of the others: a whole super-block's worth must be free.
  if (best < 0 || borrowed_free_ < units_per_block_) return false;
  Block emptied = std::move(blocks_[static_cast<size_t>(best)]);
  blocks_[static_cast<size_t>(best)] = Block{};
  if (best_free > 0) open_.erase({best_free, best});
  borrowed_free_ -= best_free;
  for (int32_t index = 0; index < units_per_block_; ++index) {
    const Unit& unit = emptied.units[static_cast<size_t>(index)];
    if (!unit.live()) continue;
    const UnitAddress to = TakeFromOpen();
    At(to) = unit;
    moves->push_back({.from = AddressOf(best, index), .to = to});
  }
  arena_->Return(best);
  return true;
}

std::byte* UnitPool::data(UnitAddress unit) const {
  return arena_->base() + int64_t{unit} * kArenaUnitBytes;
}

absl::Status UnitPool::CheckIntegrity() const {
  int64_t used = 0;
  int64_t running = 0;
  int64_t free_units = 0;
  int32_t pinned_blocks = 0;
  for (size_t b = 0; b < blocks_.size(); ++b) {
    const Block& block = blocks_[b];
    if (block.units.empty()) continue;
    std::vector<bool> listed(block.units.size());
    for (const int32_t index : block.free) {
      const auto i = static_cast<size_t>(index);
      if (listed[i])
        return absl::InternalError(absl::StrFormat("unit %d of block %d is free twice", index, b));
      if (block.units[i].live() || block.units[i].pinned) {
        return absl::InternalError(
            absl::StrFormat("unit %d of block %d is free and in use", index, b));
      }
      listed[i] = true;
      ++free_units;
    }
    int32_t pins = 0;
    for (size_t i = 0; i < listed.size(); ++i) {
      if (!listed[i] && !block.units[i].live()) {
        return absl::InternalError(absl::StrFormat("unit %d of block %d is lost", i, b));
      }
      if (!listed[i]) ++used;
      if (block.units[i].running > 0) ++running;
      if (block.units[i].pinned) ++pins;
    }
    if (pins != block.pins) {
      return absl::InternalError(
          absl::StrFormat("block %d has %d pins, counted %d", b, block.pins, pins));
    }
    if (pins > 0) ++pinned_blocks;
  }
  if (used != in_use_ || free_units != borrowed_free_ || running != running_ ||
      pinned_blocks != pinned_blocks_) {
    return absl::InternalError(absl::StrFormat(
        "%d units in use, counted %d; %d free, counted %d; %d running, counted %d; %d blocks "
        "pinned, counted %d",
        in_use_, used, borrowed_free_, free_units, running_, running, pinned_blocks_,
        pinned_blocks));
  }
  return absl::OkStatus();
}

}  // namespace morphserve
