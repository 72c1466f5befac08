// The mixer of a layer's linear rows, from the normed input to its share of the residual stream:
// low-rank changes of the base's projections or projections of its own, gates, the recurrent mixer
// and the window beside it. Source: engine/model/README.md, the table of branch kinds. Thread rule:
// engine thread only.
#pragma once

#include "absl/status/status.h"
#include "engine/model/branches.h"
#include "engine/model/layer_rows.h"
#include "engine/model/model_buffers.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"

namespace morphserve {

// What one step's layers share; pointers are borrowed for the step.
struct LayerContext {
  const ModelConfig* config = nullptr;
  const BranchesConfig* branches = nullptr;  // Null: dense.
  KvDType kv_dtype = KvDType::kF16;
  const ModelBuffers* buffers = nullptr;
  const kernels::Backend* backend = nullptr;
  kernels::Stream stream;
  std::byte* arena_base = nullptr;
};

// Reads what DownPart gave, for projections of its own buffers.normed, and for shared ones and
// windows the base's q, k, v before rotation; writes the linear rows of buffers.mixed. q and k of
// these rows are scratch afterwards.
absl::Status LinearMix(const LayerContext& context, const LayerWeights& base,
                       const LinearWeights& branch, const LayerRows& rows);

// Products beside the base's: of branches with a state, from the normalised stream, and of those
// with shared projections too, from what the mixers made.
kernels::MatmulPart DownPart(const LayerContext& context, const LinearWeights& branch);
kernels::MatmulPart OutputDownPart(const LayerContext& context, const LinearWeights& branch);

// The low-rank change of the output projection of linear rows, after OutputDownPart, accumulated
// into buffers.x.
absl::Status LinearOutput(const LayerContext& context, const LinearWeights& branch,
                          const LayerRows& rows);

// y [rows, n] (+)= x W for listed rows; W may be several matrices over one input.
absl::Status ListedMatmul(const LayerContext& context, const float* x, int64_t x_stride,
                          const RowSet& rows, std::span<const kernels::MatmulPart> parts);

}  // namespace morphserve
