// SelectionModel runs one whole sequence through a model and its linear branches for the selection
// of layers: both mixers of a layer, their mix under a gate, and the gradient of all of it with
// respect to the layer's input. It works on contiguous f32 rows with the engine's weights and
// kernels, and knows no sequences, caches or plans; serving is HybridModel's. Everything is added
// to a WorkList as jobs of one operation over a block of rows. Thread rule: the thread that runs
// the list. Ownership: owns the buffers; borrows configuration, weights, branches and pool.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/pages_memory.h"
#include "engine/model/branches.h"
#include "engine/model/model_config.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"
#include "kernels/output_norm.h"
#include "kernels/recurrent_core.h"
#include "kernels/recurrent_features.h"
#include "kernels/sequence_attention.h"
#include "morph/work_list.h"

namespace morphserve {

// What a selection runs on. All borrowed; they outlive every user.
struct SelectionSource {
  const ModelConfig* config = nullptr;
  const ModelWeights* weights = nullptr;
  const Branches* branches = nullptr;
  const kernels::Backend* backend = nullptr;
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
  // `block_rows` rows, a multiple of 64. INVALID_ARGUMENT when branches do not fit the model.
  static absl::StatusOr<std::unique_ptr<SelectionModel>> Create(const SelectionSource& source,
                                                                int32_t tokens_max, bool gradient,
                                                                int32_t block_rows = 64);
  static int64_t Bytes(const SelectionSource& source, int32_t tokens_max, bool gradient,
                       int32_t block_rows = 64);

  // The forward, in this order. x() is the residual stream [tokens, hidden].
  void AddEmbed(WorkList* list, std::span<const int32_t> tokens);
  void AddMixers(WorkList* list, int32_t layer, Mixers mixers);  // Reads x; fills full(), linear().
  void AddMix(WorkList* list, float gate);                       // x += the mix.
  void AddMlp(WorkList* list, int32_t layer);                    // x += MLP(norm(x)).
  // Logits [count, vocab] of rows [count, hidden] of the last layer's stream; at most block_rows.
  absl::Status LogitsOf(const float* stream_rows, int32_t count, float* logits);

  // The gradient of a layer: dx() is the gradient with respect to its output and becomes the one
  // with respect to its input. AddMlpGrad wants the stream after the mix in x(); AddMixerGrad
  // wants AddMixers of both kinds that count (gate > 0: full; gate < 1: linear) to have run on
  // `input`, the stream at the layer's start.
  void AddMlpGrad(WorkList* list, int32_t layer);
  void AddGateGrad(WorkList* list, double* gradient);  // <dx, full - linear>
  void AddMixerGrad(WorkList* list, int32_t layer, float gate, const float* input);

  float* x() const { return b_.x; }
  float* dx() const { return b_.dx; }
  float* full() const { return b_.full; }
  float* linear() const { return b_.linear; }
  int32_t tokens() const { return tokens_; }
  int32_t block_rows() const { return block_rows_; }
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
    float* logits_rows;                         // [block_rows, hidden]
    float *dx, *dnormed, *dmix;                 // hidden
    float *dmixed, *dcore, *dz, *dq, *dk, *dv;  // as their values
    float *ddown, *dlow, *dfeatures, *dqkv;
    float* dact;  // mlp width
    float* dstate;
    double* row_sums;
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
  void Scale(const float* from, float factor, float* to, int32_t begin, int32_t count) const;

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

  SelectionSource source_;
  DownColumns columns_;
  RopeTable rope_;
  int32_t tokens_max_ = 0;
  int32_t block_rows_ = 0;
  int32_t attention_rows_ = 0;  // Of a job of full attention.
  bool gradient_ = false;
  int32_t tokens_ = 0;
  int64_t hidden_ = 0, q_width_ = 0, kv_width_ = 0, linear_width_ = 0;
  PagesMemory memory_;
  Buffers b_ = {};
};

}  // namespace morphserve
