// A product with a norm before it or an activation behind it, an operation at a time, for backends
// and calls that do not fuse them. Thread rule: as the operations it is given.
#pragma once

#include "kernels/activation.h"
#include "kernels/gemm.h"
#include "kernels/rmsnorm.h"

namespace morphserve::kernels {

inline bool HasStages(const MatmulArgs& args) { return args.norm.weight != nullptr || args.swiglu; }

// INVALID_ARGUMENT for a limit of the norm or of swiglu that the call breaks.
inline absl::Status CheckStages(const MatmulArgs& args) {
  if (!HasStages(args)) return absl::OkStatus();
  bool sound =
      args.row_list == nullptr && (args.norm.weight == nullptr || args.norm.normed != nullptr);
  if (args.swiglu) {
    sound = sound && args.parts.size() == 2 && args.parts[0].weights->n == args.parts[1].weights->n;
    for (const MatmulPart& part : args.parts) {
      sound = sound && part.bias == nullptr && !part.accumulate;
    }
  }
  return sound ? absl::OkStatus()
               : absl::InvalidArgumentError(
                     "Matmul: a norm or swiglu with a row list, without its "
                     "memory, or with other parts than gate and up");
}

// The activation of a sound call with swiglu, once both products are made.
inline SwiGluArgs SwiGluOfParts(const MatmulArgs& args) {
  const MatmulPart &gate = args.parts[0], &up = args.parts[1];
  return {.gate = gate.y,
          .gate_stride = gate.y_stride,
          .up = up.y,
          .up_stride = up.y_stride,
          .y = gate.y,
          .y_stride = gate.y_stride,
          .rows = args.rows,
          .width = gate.weights->n};
}

// `product` runs the call without them. The call is sound.
template <class RmsNormOf, class Product, class SwiGluOf>
absl::Status MatmulInStages(const MatmulArgs& args, Stream stream, RmsNormOf rms_norm,
                            Product product, SwiGluOf swiglu) {
  MatmulArgs plain = args;
  plain.norm = {};
  plain.swiglu = false;
  if (args.norm.weight != nullptr) {
    absl::Status status = rms_norm(RmsNormArgs{.x = args.x,
                                               .x_stride = args.x_stride,
                                               .weight = args.norm.weight,
                                               .y = args.norm.normed,
                                               .y_stride = args.norm.normed_stride,
                                               .rows = args.rows,
                                               .hidden = args.parts.front().weights->k,
                                               .eps = args.norm.eps},
                                   stream);
    if (!status.ok()) return status;
    plain.x = args.norm.normed;
    plain.x_stride = args.norm.normed_stride;
  }
  absl::Status status = product(plain, stream);
  if (!status.ok() || !args.swiglu) return status;
  return swiglu(SwiGluOfParts(args), stream);
}

}  // namespace morphserve::kernels
