// SelectionModel runs one whole sequence through a model and its linear branches for the selection
// of layers: both mixers of a layer, their mix under a gate, and the gradient of all of it with
// respect to the layer's input. It works on contiguous f32 rows in the backend's memory with the
// engine's weights and kernels, and knows no sequences, caches or plans; serving is HybridModel's.
// Everything is added to a WorkList as jobs of one operation over a block of rows; on a device a
// job only puts its work into the stream's queue (work_slices.h). Thread rule: the thread that runs
// the list. Ownership: owns the buffers; borrows configuration, weights, branches and pool.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/backend_memory.h"
#include "engine/model/branches.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"
#include "kernels/selection_backend.h"
#include "morph/work_list.h"

namespace morphserve {

// What a selection runs on. All borrowed; they outlive every user.
struct SelectionSource {
  const ModelConfig* config = nullptr;
  const ModelWeights* weights = nullptr;
  const Branches* branches = nullptr;
  const kernels::Backend* backend = nullptr;
  const kernels::SelectionBackend* selection = &kernels::CpuSelectionBackend();
  kernels::Stream stream;
};

// The branches of a layer that a pass computes.
struct Mixers {
  bool full = true;
  bool linear = true;
};

class SelectionModel {
 public:
  // Room for sequences of up to `tokens_max`; `gradient` allows the *Grad calls. A job takes
  // `block_rows` rows, a multiple of 64; 0: as many as suit the backend. INVALID_ARGUMENT when
  // branches do not fit the model, RESOURCE_EXHAUSTED when there is no memory.
  static absl::StatusOr<std::unique_ptr<SelectionModel>> Create(const SelectionSource& source,
                                                                int32_t tokens_max, bool gradient,
                                                                int32_t block_rows = 0);
  static int64_t Bytes(const SelectionSource& source, int32_t tokens_max, bool gradient,
                       int32_t block_rows = 0);
  // What kept inputs take beside that.
  static int64_t KeptBytes(const ModelConfig& config, int32_t tokens_max) {
    return int64_t{config.layers} * tokens_max * config.hidden * 4;
  }

  // The forward, in this order. x() is the residual stream [tokens, hidden].
  void AddEmbed(WorkList* list, std::span<const int32_t> tokens);
  void AddMixers(WorkList* list, int32_t layer, Mixers mixers);  // Reads x; fills full(), linear().
  void AddMix(WorkList* list, float gate);                       // x += the mix.
  void AddMlp(WorkList* list, int32_t layer);                    // x += MLP(norm(x)).
  // Keeps x as the stream at the start of `layer`, and makes it x again; of one sequence at a time.
  void AddKeepInput(WorkList* list, int32_t layer);
  void AddTakeInput(WorkList* list, int32_t layer);

  // The gradient of a layer: dx() is the gradient with respect to its output and becomes the one
  // with respect to its input. AddMlpGrad wants the stream after the mix in x(); AddMixerGrad
  // wants AddMixers of both kinds that count (gate > 0: full; gate < 1: linear) to have run on
  // the layer's kept input.
  void AddZeroGrad(WorkList* list);  // dx = 0
  void AddMlpGrad(WorkList* list, int32_t layer);
  void AddGateGrad(WorkList* list, double* gradient);  // <dx, full - linear>
  void AddMixerGrad(WorkList* list, int32_t layer, float gate);

  // Called from jobs; host memory. Rows of a buffer [tokens, hidden] to `out` [rows.size(),
  // hidden].
  absl::Status ReadRows(const float* buffer, std::span<const int32_t> rows, float* out) const;
  // Adds `values` [rows.size(), hidden] to rows of dx, each at most once.
  absl::Status AddToGrad(std::span<const int32_t> rows, const float* values) const;
  // Logits [count, vocab] of rows [count, hidden] of the last layer's stream.
  static constexpr int32_t kLogitRows = 8;  // At most: logits are wide, and a job is to be short.
  absl::Status LogitsOf(const float* stream_rows, int32_t count, float* logits) const;

  // Memory of the backend.
  float* x() const { return b_.x; }
  float* dx() const { return b_.dx; }
  float* full() const { return b_.full; }
  float* linear() const { return b_.linear; }
  int32_t tokens() const { return tokens_; }
  const SelectionSource& source() const { return source_; }

 private:
  // Row buffers [tokens_max, width]; the gradient's own start at dx.
  struct Buffers {
    float *x, *normed, *full, *linear;          // hidden
    float *q, *k, *v, *q_roped, *k_roped;       // heads d, kv_heads d
    float* mixed;                               // heads d: input of an output projection
    float* down;                                // down columns
    float* low;                                 // rank
    float *qkv, *features;                      // 3 heads D
    float *core, *z;                            // heads D
    float *own_k, *own_v;                       // kv_heads d
    float *gate, *up;                           // mlp width
    float *cos, *sin;                           // rotary_dim / 2
    float* states;                              // recurrent states
    float* picked;                              // hidden: rows on their way from or to the host
    float *logits_rows, *logits;                // [kLogitRows] of hidden, of vocab
    int32_t *ids, *positions, *row_list;        // [tokens_max]
    float* frequency;                           // [rotary_dim / 2]
    float *dx, *dnormed, *dmix;                 // hidden
    float *dmixed, *dcore, *dz, *dq, *dk, *dv;  // as their values
    float *ddown, *dlow, *dfeatures, *dqkv;
    float* dact;  // mlp width
    float* dstate;
    double *row_sums, *gate_sum;
    std::byte *matmul_workspace, *attention_workspace, *grad_workspace;
    int64_t matmul_bytes, attention_bytes, grad_bytes;
  };
  class Cutter;
  using RowJob = std::function<absl::Status(int32_t begin, int32_t count)>;

  SelectionModel() = default;
  static void LayOut(const SelectionSource& source, int32_t tokens_max, bool gradient,
                     int32_t block_rows, Cutter* cutter, Buffers* b);
  void ForRows(WorkList* list, int32_t rows, RowJob job) const;
  void ForBlocks(WorkList* list, RowJob job) const;          // Ascending.
  void ForBlocksBackward(WorkList* list, RowJob job) const;  // Descending.

  // y (+)= x W for rows [begin, begin + count).
  struct Product {
    const kernels::PackedMatrix* weights;
    const float* bias;
    float* y;
    int64_t y_stride;
    bool accumulate = false;
  };
  absl::Status Multiply(const float* x, int64_t x_stride, int32_t begin, int32_t count,
                        std::span<const Product> products) const;
  absl::Status MultiplyGrad(const float* dy, int64_t dy_stride, const kernels::PackedMatrix& w,
                            float* dx, int64_t dx_stride, bool accumulate, int32_t begin,
                            int32_t count) const;
  // The same over all rows as jobs of their own: a range of outputs over a few hundred rows each,
  // because unpacking weights is what a narrow block of rows would mostly do.
  void AddMultiplyGrad(WorkList* list, const float* dy, int64_t dy_stride,
                       const kernels::PackedMatrix& w, float* dx, int64_t dx_stride,
                       bool accumulate) const;
  absl::Status Norm(const float* x, const Parameter& weight, int32_t begin, int32_t count);
  absl::Status NormGrad(const float* x, const Parameter& weight, int32_t begin,
                        int32_t count);  // dx += gradient through the norm of dnormed.
  absl::Status Scale(float factor, int32_t begin, int32_t count) const;  // dmix = factor * dx
  absl::StatusOr<BackendMemory> Allocate(int64_t bytes) const;
  absl::Status Put(void* to, const void* host, int64_t bytes) const;
  absl::Status Zero(float* rows, int64_t count) const;

  absl::Status MlpInputs(int32_t layer, int32_t begin, int32_t count);
  void AddBaseProjections(WorkList* list, int32_t layer, bool roped);
  void AddFullMixer(WorkList* list, int32_t layer);
  void AddLinearMixer(WorkList* list, int32_t layer);
  void AddLinearProjections(WorkList* list, int32_t layer);
  absl::Status LinearOutput(int32_t layer, int32_t begin, int32_t count);
  void AddFullGrad(WorkList* list, int32_t layer, float gate);
  void AddLinearGrad(WorkList* list, int32_t layer, float gate);
  void AddRecurrentGrad(WorkList* list, int32_t layer);
  absl::Status SharedGrad(int32_t layer, int32_t begin, int32_t count);
  absl::Status OwnGrad(int32_t layer, int32_t begin, int32_t count);
  absl::Status WindowGrad(int32_t layer, int32_t begin, int32_t count);
  absl::Status ProjectionGrads(int32_t layer, bool attends, bool state, int32_t begin,
                               int32_t count);
  absl::Status UnropeGrads(int32_t layer, int32_t begin, int32_t count);

  kernels::SequenceAttentionShape AttentionShape(int32_t begin, int32_t count, int32_t window,
                                                 int32_t sinks) const;
  kernels::RecurrentFeaturesShape FeaturesShape(const LinearWeights& w, int32_t begin,
                                                int32_t count) const;
  kernels::RecurrentCoreShape CoreShape(const LinearWeights& w, int32_t begin, int32_t count) const;
  kernels::OutputNormShape NormShape(const LinearWeights& w, int32_t rows) const;
  const LayerWeights& base(int32_t layer) const {
    return source_.weights->layers[static_cast<size_t>(layer)];
  }
  const LinearWeights& branch(int32_t layer) const {
    return source_.branches->layers[static_cast<size_t>(layer)];
  }
  const BranchesConfig& kind() const { return source_.branches->header.config; }
  float* Kept(int32_t layer) const {
    return reinterpret_cast<float*>(kept_.data()) + int64_t{layer} * tokens_max_ * hidden_;
  }

  SelectionSource source_;
  DownColumns columns_;
  RopeTable rope_;
  int32_t tokens_max_ = 0;
  int32_t block_rows_ = 0;
  int32_t attention_rows_ = 0;  // Of a job of full attention.
  bool gradient_ = false;
  int32_t tokens_ = 0;
  int64_t hidden_ = 0, q_width_ = 0, kv_width_ = 0, linear_width_ = 0;
  BackendMemory memory_;
  BackendMemory kept_;  // [layers][tokens_max, hidden], from the first AddKeepInput on.
  Buffers b_ = {};
};

}  // namespace morphserve
