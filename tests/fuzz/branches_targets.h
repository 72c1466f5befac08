// What the fuzzer of branches files does with one input. Shared with the unit test that replays its
// corpus: a clean status, and for what is accepted the promises of engine/model/branches.h.
#pragma once

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/branches_file.h"
#include "tests/engine/branches_builder.h"

namespace morphserve::fuzz {

inline void RequireBranches(bool condition) {
  if (!condition) std::abort();
}

inline void CheckBranchesHeader(const BranchesHeader& header, const ModelConfig& base) {
  const auto layers = static_cast<size_t>(base.layers);
  const BranchesConfig& c = header.config;
  RequireBranches(header.base_id.size() == 64 && c.heads == base.heads);
  RequireBranches(c.window >= 0 && c.sinks >= 0 && c.sinks <= c.window && c.conv_taps <= 8);
  RequireBranches(c.has_window() == (c.window > 0));
  RequireBranches(std::isfinite(c.norm_eps) && std::isfinite(c.scale));
  for (const BranchesRanking& ranking : header.rankings) {
    RequireBranches(ranking.order.size() == layers || !ranking.sets.empty());
    for (const double gate : ranking.gates) RequireBranches(gate >= 0 && gate <= 1);
    for (const int32_t layer : ranking.order) RequireBranches(layer >= 0 && layer < base.layers);
  }
  for (const auto& row : header.interaction) {
    for (const double value : row) RequireBranches(std::isfinite(value));
  }
  for (const BranchesQuality& quality : header.quality) {
    RequireBranches(static_cast<size_t>(quality.k) == quality.layers.size());
    RequireBranches(std::isfinite(quality.kl) && std::isfinite(quality.ppl));
  }
  RequireBranches(BranchesBytes(header, base, WeightsDType::kF32) >= 0);
  const kernels::SlotShape slot = MakeSlotShape(c, base, KvDType::kF16);
  RequireBranches(kernels::MakeSlotLayout(slot).bytes > 0);
}

// The first byte chooses between a whole file and the text of its metadata.
inline void FuzzBranches(std::string_view bytes) {
  if (bytes.empty()) return;
  const bool whole = bytes[0] != 'm';
  bytes.remove_prefix(1);
  const ModelConfig base = BranchBase();
  if (!whole) {
    const auto header = ParseBranchesMetadata(bytes, base);
    if (header.ok()) CheckBranchesHeader(*header, base);
    return;
  }
  const std::unique_ptr<FileReader> file = OpenMemory(std::string(bytes));
  const auto parsed = ReadBranchesFile(*file, "fuzz", base);
  if (!parsed.ok()) {
    RequireBranches(!parsed.status().message().empty());
    return;
  }
  CheckBranchesHeader(parsed->header, base);
  int64_t elements = 0;
  for (const TensorInfo& tensor : parsed->tensors) {
    std::vector<std::byte> data(static_cast<size_t>(tensor.bytes));
    RequireBranches(file->Read(tensor.offset, data).ok());
    elements += tensor.elements();
  }
  RequireBranches(elements == parsed->header.parameters);
}

}  // namespace morphserve::fuzz
