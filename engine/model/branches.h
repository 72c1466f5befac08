// Branches are the linear halves of a base checkpoint's layers: one for every layer, so that any
// layer plan can run. They come from a branches file (safetensors, format in
// engine/model/README.md), or need no file at all (`window:256`). Thread rule: immutable after
// LoadBranches.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/pages_memory.h"
#include "engine/base/sha256.h"
#include "engine/engine_options.h"
#include "engine/loader/file_reader.h"
#include "engine/model/model_config.h"
#include "engine/model/parameter.h"
#include "kernels/gemm.h"
#include "kernels/recurrent_mixer.h"
#include "kernels/slot_layout.h"

namespace morphserve {

enum class BranchKind : uint8_t { kWindow, kLightning, kGatedDelta, kGatedDeltaWindow };
const char* BranchKindName(BranchKind kind);  // As in the file: gated_delta_window.

// The shape of every layer's branch; from the file's metadata.
struct BranchesConfig {
  BranchKind kind = BranchKind::kWindow;
  bool own = false;  // Projections of its own; else low-rank changes of the base's.
  int32_t heads = 0;
  int32_t head_dim = 0;
  int32_t rank = 0;
  int32_t gate_rank = 0;
  int32_t conv_taps = 0;
  int32_t window = 0;
  int32_t sinks = 0;
  float norm_eps = 1e-5f;  // Of the output norm.
  float scale = 0;         // Of the recurrent output.
  bool silu = true;
  bool rope = true;
  kernels::QkNorm qk_norm = kernels::QkNorm::kL2;

  bool has_state() const { return kind != BranchKind::kWindow; }
  bool has_window() const {
    return kind == BranchKind::kWindow || kind == BranchKind::kGatedDeltaWindow;
  }
};

// One layer's branch in the form the kernels run. Rows and channels of q and k are in the base's
// order (pairs beside each other when its rotary embedding is interleaved). Absent parts have no
// data / are empty.
struct LinearWeights {
  // One product of the normed input: [aq; ak; av; gd; wa; wb; ws] stacked, `down_width` outputs.
  kernels::PackedMatrix down;
  kernels::PackedMatrix bq, bk, bv;  // shared: [heads D, rank]
  kernels::PackedMatrix wq, wk, wv;  // own: [heads D, hidden], kv heads for k and v
  kernels::PackedMatrix wo;          // own: [hidden, heads D]
  kernels::PackedMatrix ao, bo;      // shared: [rank, heads D], [hidden, rank]
  kernels::PackedMatrix gu;          // [heads D, gate_rank]
  Parameter gb;                      // [heads D]
  Parameter conv;                    // [taps][3 heads D]
  Parameter a_log, dt_bias, b_beta;  // [heads]
  Parameter slopes;                  // [heads], lightning
  Parameter nw;                      // [heads D]
  Parameter bs;                      // [heads]
};

// Columns of `down`, in order; a part that the kind lacks has width 0. Rows of the product are
// `stride` apart, a multiple of 8: cuBLASLt has fast kernels only for rows that are aligned.
struct DownColumns {
  int32_t q = 0, k = 0, v = 0, gate = 0, a = 0, b = 0, window = 0;  // First column of each.
  int32_t width = 0;
  int32_t stride = 0;
};
DownColumns MakeDownColumns(const BranchesConfig& config);

// The memory of one layer and sequence.
kernels::SlotShape MakeSlotShape(const BranchesConfig& config, const ModelConfig& model,
                                 KvDType dtype);

// What a selector chose: an order of layers, most worth keeping full first, or one set a budget, or
// both: a set then holds for its budget, the order for the others.
struct BranchesRanking {
  std::string selector;
  std::vector<int32_t> order;              // [layers], or empty with sets
  std::vector<std::vector<int32_t>> sets;  // By rising size from 1, each ascending; or empty.
  std::vector<double> gates;               // [layers] or empty
  int32_t context = 0;                     // Calibration tokens; 0: not said.
  int64_t seed = 0;
  bool is_default = false;  // One of the rankings that have an order.
  bool stale = false;       // Chosen on an earlier stage of the training than the file's weights.
  bool here = false;        // Not of the branches file: selected on this server, or beside it.
};
struct BranchesQuality {
  std::string selector;
  int32_t k = 0;
  std::vector<int32_t> layers;  // The full ones.
  double kl = 0;
  double ppl = 0;
  double full_ppl = 0;  // Of all layers on the same text; 0: that of the row of selector `full`.
  std::vector<std::pair<std::string, double>> recall;
  bool here = false;  // As BranchesRanking.
};

struct BranchesHeader {
  std::string source;  // What the operator wrote: a path, or window:256.
  std::string base_name;
  std::string base_id;  // Hex SHA-256; empty without a file.
  BranchesConfig config;
  FileIdentity identity;  // Of the file; LoadBranches reads no other.
  std::vector<BranchesRanking> rankings;
  std::vector<std::vector<double>> interaction;  // Q [layers][layers], or empty.
  bool interaction_here = false;                 // As BranchesRanking.
  std::vector<BranchesQuality> quality;
  int64_t parameters = 0;
};

struct Branches {
  BranchesHeader header;
  std::vector<LinearWeights> layers;
  Sha256Digest id{};  // SHA-256 of the file; of the text `window:W:SINKS` where there is none.
  PagesMemory storage;
};

// Reads and checks the header only: a path, or "window:W" / "window:W:SINKS" (4 sinks unless said).
// INVALID_ARGUMENT names the tensor, field or shape that is wrong or does not fit `model`; errors
// of OpenFile for a path that cannot be read.
absl::StatusOr<BranchesHeader> OpenBranches(std::string_view source, const ModelConfig& model);

// Bytes LoadBranches will hold, from the header alone.
int64_t BranchesBytes(const BranchesHeader& header, const ModelConfig& model, WeightsDType dtype);

// Reads the weights; matrices are kept in bf16 (as in the file), or f32 with kF32.
// FAILED_PRECONDITION names both ids when the file was made for another base than `base_id`;
// INVALID_ARGUMENT names a tensor that holds a NaN, an infinity or a number out of range; ABORTED
// when the file changed since the header was read.
absl::StatusOr<std::unique_ptr<Branches>> LoadBranches(const BranchesHeader& header,
                                                       const ModelConfig& model,
                                                       const Sha256Digest& base_id,
                                                       WeightsDType dtype);

}  // namespace morphserve
