// The MLP as its two products, for backends and calls that do not fuse them. Thread rule: as the
// operations it is given.
#pragma once

#include <span>

#include "kernels/gemm.h"
#include "kernels/mlp.h"

namespace morphserve::kernels {

// The calls of an MLP, which its checks found sound.
class MlpProducts {
 public:
  explicit MlpProducts(const MlpArgs& args)
      : args_(args),
        inputs_{{.weights = args.gate, .y = args.gate_rows, .y_stride = args.rows_stride},
                {.weights = args.up, .y = args.up_rows, .y_stride = args.rows_stride}},
        output_{.weights = args.down, .y = args.x, .y_stride = args.x_stride, .accumulate = true} {}
  MlpProducts(const MlpProducts&) = delete;
  MlpProducts& operator=(const MlpProducts&) = delete;

  // Gate and up with the norm before and the activation behind them. Both point into this object.
  MatmulArgs GateUp() const {
    return {.x = args_.x,
            .x_stride = args_.x_stride,
            .rows = args_.rows,
            .parts = inputs_,
            .norm = args_.norm,
            .swiglu = true,
            .workspace = args_.workspace,
            .workspace_bytes = args_.workspace_bytes};
  }
  // Down, of what GateUp leaves.
  MatmulArgs Down() const {
    return {.x = args_.gate_rows,
            .x_stride = args_.rows_stride,
            .rows = args_.rows,
            .parts = std::span(&output_, 1),
            .workspace = args_.workspace,
            .workspace_bytes = args_.workspace_bytes};
  }

 private:
  const MlpArgs& args_;
  const MatmulPart inputs_[2];
  const MatmulPart output_;
};

// INVALID_ARGUMENT unless the matrices fit each other and the buffers are there.
inline absl::Status CheckMlp(const MlpArgs& args) {
  const bool sound = args.gate != nullptr && args.up != nullptr && args.down != nullptr &&
                     args.gate_rows != nullptr && args.up_rows != nullptr &&
                     args.rows_stride >= args.gate->n && args.up->n == args.gate->n &&
                     args.up->k == args.gate->k && args.down->k == args.gate->n &&
                     args.down->n == args.gate->k;
  return sound ? absl::OkStatus()
               : absl::InvalidArgumentError("Mlp: matrices of other shapes, or no rows for them");
}

template <class Product>
absl::Status MlpInStages(const MlpProducts& products, Stream stream, Product product) {
  absl::Status status = product(products.GateUp(), stream);
  return status.ok() ? product(products.Down(), stream) : status;
}

}  // namespace morphserve::kernels
