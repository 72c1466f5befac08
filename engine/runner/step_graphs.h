// StepGraphs keeps recorded decode steps. A step is known by its padded number of rows, the bound
// on what its sequences see, and which kinds of rows each layer has: a batch of one plan replays a
// graph without the other branch, a batch of several plans one with both. A new plan is recorded at
// its first step; the least used graph goes when there are too many. Thread rule: engine thread.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <vector>

#include "engine/model/hybrid_model.h"
#include "engine/runner/step_batch.h"
#include "kernels/cuda/graph.h"

namespace morphserve {

struct StepShape {
  int32_t rows = 0;
  int32_t kv_len_max = 0;
  std::vector<uint8_t> kinds;  // [layers]: 1 full rows, 2 linear rows, 3 both.
  auto operator<=>(const StepShape&) const = default;
};

// Whether the batch is one that can be recorded: single rows, each of which asks for its logits, no
// snapshots, no more rows than have room.
bool IsDecode(const StepBatch& batch, const ModelLimits& limits);
// If so, the shape; else false.
bool ShapeOfDecode(const StepBatch& batch, const ModelLimits& limits, int32_t layers,
                   StepShape* shape);

class StepGraphs {
 public:
  struct Entry {
    kernels::cuda::Graph graph;
    const float* logits = nullptr;  // Where the step leaves them.
    uint64_t used = 0;
  };
  // The graph of a shape, empty when it has to be recorded. `generation` is that of the lists.
  Entry* Find(const StepShape& shape, int64_t generation);

 private:
  std::map<StepShape, Entry> entries_;
  int64_t generation_ = 0;
  uint64_t uses_ = 0;
};

}  // namespace morphserve
