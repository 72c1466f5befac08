#include "engine/model/device_weights.h"

#include <initializer_list>
#include <vector>

#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

using kernels::PackedMatrix;

constexpr int64_t kAlignment = 256;

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Pieces {
  std::vector<PackedMatrix*> matrices;
  std::vector<Parameter*> parameters;

  void Add(std::initializer_list<PackedMatrix*> list) {
    for (PackedMatrix* matrix : list) {
      if (matrix->n > 0) matrices.push_back(matrix);
    }
  }
  void Add(std::initializer_list<Parameter*> list) {
    for (Parameter* parameter : list) {
      if (!parameter->empty()) parameters.push_back(parameter);
    }
  }
};

Pieces Collect(ModelWeights* weights, Branches* branches) {
  Pieces out;
  out.Add({&weights->embedding});
  // A tied head is the embedding itself.
  if (weights->head.data == nullptr || weights->head.data != weights->embedding.data) {
    out.Add({&weights->head});
  }
  out.Add({&weights->output_norm});
  for (LayerWeights& w : weights->layers) {
    out.Add({&w.q, &w.k, &w.v, &w.output, &w.gate, &w.up, &w.down});
    out.Add({&w.attn_norm, &w.q_bias, &w.k_bias, &w.v_bias, &w.q_norm, &w.k_norm, &w.output_bias,
             &w.ffn_norm});
  }
  if (branches == nullptr) return out;
  for (LinearWeights& w : branches->layers) {
    out.Add({&w.down, &w.bq, &w.bk, &w.bv, &w.wq, &w.wk, &w.wv, &w.wo, &w.ao, &w.bo, &w.gu});
    out.Add({&w.gb, &w.conv, &w.a_log, &w.dt_bias, &w.b_beta, &w.slopes, &w.nw, &w.bs});
  }
  return out;
}

int64_t BytesOf(const Pieces& pieces) {
  int64_t bytes = 0;
  for (const PackedMatrix* matrix : pieces.matrices) {
    bytes += Aligned(kernels::cuda::DeviceMatrixBytes(*matrix));
  }
  for (const Parameter* parameter : pieces.parameters) {
    bytes += Aligned(static_cast<int64_t>(parameter->size() * sizeof(float)));
  }
  return bytes;
}

// Of the base's matrices: a branch's are floats.
int64_t CopiesOf(const Pieces& pieces) {
  int64_t bytes = 0;
  for (const PackedMatrix* matrix : pieces.matrices) {
    bytes += Aligned(kernels::cuda::Bf16CopyBytes(*matrix));
  }
  return bytes;
}

}  // namespace

int64_t DeviceBytes(const ModelWeights& weights, const Branches* branches) {
  // Collect only looks, here.
  return BytesOf(Collect(const_cast<ModelWeights*>(&weights), const_cast<Branches*>(branches)));
}

int64_t Bf16CopiesBytes(const ModelWeights& weights) {
  return CopiesOf(Collect(const_cast<ModelWeights*>(&weights), nullptr));
}

absl::StatusOr<kernels::cuda::DeviceMemory> PlaceOnDevice(ModelWeights* weights, Branches* branches,
                                                          bool bf16_copies,
                                                          kernels::Stream stream) {
  const bool tied = weights->head.data != nullptr && weights->head.data == weights->embedding.data;
  const Pieces pieces = Collect(weights, branches);
  const Pieces copied = bf16_copies ? Collect(weights, nullptr) : Pieces();
  const int64_t bytes = BytesOf(pieces) + CopiesOf(copied);
  MS_ASSIGN_OR_RETURN(kernels::cuda::DeviceMemory memory,
                      kernels::cuda::DeviceMemory::Allocate(bytes));
  std::byte* at = memory.data();
  for (PackedMatrix* matrix : pieces.matrices) {
    const int64_t taken = Aligned(kernels::cuda::DeviceMatrixBytes(*matrix));
    MS_ASSIGN_OR_RETURN(*matrix, kernels::cuda::UploadMatrix(*matrix, at, stream));
    at += taken;
  }
  for (Parameter* parameter : pieces.parameters) {
    const auto taken = static_cast<int64_t>(parameter->size() * sizeof(float));
    MS_RETURN_IF_ERROR(kernels::cuda::CopyToDevice(at, parameter->host().data(), taken, stream));
    parameter->Place(reinterpret_cast<const float*>(at));
    at += Aligned(taken);
  }
  for (PackedMatrix* matrix : copied.matrices) {
    const int64_t taken = kernels::cuda::Bf16CopyBytes(*matrix);
    if (taken == 0) continue;
    MS_RETURN_IF_ERROR(kernels::cuda::AddBf16Copy(matrix, at, stream));
    at += Aligned(taken);
  }
  MS_CHECK(at == memory.data() + bytes);
  MS_RETURN_IF_ERROR(kernels::cuda::Synchronize(stream));
  if (tied) weights->head = weights->embedding;
  weights->storage = PagesMemory();
  if (branches != nullptr) branches->storage = PagesMemory();
  return memory;
}

}  // namespace morphserve
