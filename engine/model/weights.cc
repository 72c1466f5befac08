#include "engine/model/weights.h"

#include <algorithm>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/mutex.h"
#include "engine/base/status_macros.h"
#include "engine/loader/fp8_scales.h"
#include "kernels/cpu/thread_pool.h"

namespace morphserve {
namespace {

using kernels::PackedMatrix;
using kernels::WeightFormat;

constexpr int64_t kAlignment = 64;
constexpr int64_t kReadBytes = int64_t{2} << 20;  // Read and packed at a time.
constexpr int32_t kPanelRows = 16;

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// One tensor to load: where it goes.
struct Item {
  const TensorInfo* tensor = nullptr;
  PackedMatrix* matrix = nullptr;  // Either a matrix,
  Parameter* vector = nullptr;     // or a vector.
  int64_t storage_offset = 0;
  Sha256Digest digest{};
};

// With kFp8 the layers' floats become e4m3. The embedding and the head keep their type: they are
// few of the weights and most of the error. So do types that are smaller than fp8 already.
WeightFormat FormatOf(DType type, WeightsDType dtype, bool of_layer) {
  switch (dtype) {
    case WeightsDType::kFp8:
      if (of_layer && IsPlainFloat(type)) return WeightFormat::kFp8;
      return kernels::NativeFormat(type);
    case WeightsDType::kNative: return kernels::NativeFormat(type);
    case WeightsDType::kBF16: return WeightFormat::kBF16;
    case WeightsDType::kF32: return WeightFormat::kF32;
  }
  return WeightFormat::kF32;
}

// Lists every tensor of the network with its expected shape.
class Layout {
 public:
  Layout(const Checkpoint& checkpoint, WeightsDType dtype, ModelWeights* weights)
      : source_(*checkpoint.tensors), config_(checkpoint.config), dtype_(dtype) {
    Build(weights);
  }

  absl::Status status() const { return status_; }
  std::vector<Item>& items() { return items_; }
  int64_t storage_bytes() const { return storage_bytes_; }

 private:
  void Build(ModelWeights* w) {
    const ModelConfig& c = config_;
    const int32_t q_width = c.heads * c.head_dim;
    const int32_t kv_width = c.kv_heads * c.head_dim;
    Matrix("token_embd.weight", c.vocab, c.hidden, &w->embedding, false);
    if (!c.tied_head) Matrix("output.weight", c.vocab, c.hidden, &w->head, false);
    Vector("output_norm.weight", c.hidden, &w->output_norm);
    w->layers.resize(static_cast<size_t>(c.layers));
    for (int32_t l = 0; l < c.layers; ++l) {
      LayerWeights& layer = w->layers[static_cast<size_t>(l)];
      const std::string p = absl::StrCat("blk.", l, ".");
      Vector(p + "attn_norm.weight", c.hidden, &layer.attn_norm);
      Matrix(p + "attn_q.weight", q_width, c.hidden, &layer.q);
      Matrix(p + "attn_k.weight", kv_width, c.hidden, &layer.k);
      Matrix(p + "attn_v.weight", kv_width, c.hidden, &layer.v);
      Matrix(p + "attn_output.weight", c.hidden, q_width, &layer.output);
      if (c.qkv_bias) {
        Vector(p + "attn_q.bias", q_width, &layer.q_bias);
        Vector(p + "attn_k.bias", kv_width, &layer.k_bias);
        Vector(p + "attn_v.bias", kv_width, &layer.v_bias);
      }
      if (c.output_bias) Vector(p + "attn_output.bias", c.hidden, &layer.output_bias);
      if (c.qk_norm) {
        Vector(p + "attn_q_norm.weight", c.head_dim, &layer.q_norm);
        Vector(p + "attn_k_norm.weight", c.head_dim, &layer.k_norm);
      }
      Vector(p + "ffn_norm.weight", c.hidden, &layer.ffn_norm);
      Matrix(p + "ffn_gate.weight", c.mlp_width, c.hidden, &layer.gate);
      Matrix(p + "ffn_up.weight", c.mlp_width, c.hidden, &layer.up);
      Matrix(p + "ffn_down.weight", c.hidden, c.mlp_width, &layer.down);
    }
    if (dtype_ == WeightsDType::kFp8) CheckForFp8(*w);
  }

  // What was asked for must change something, or be there already.
  void CheckForFp8(const ModelWeights& w) {
    if (!status_.ok()) return;
    const TensorInfo* first = nullptr;
    for (const Item& item : items_) {
      if (item.matrix == nullptr) continue;
      if (item.matrix->format == WeightFormat::kFp8) return;
      if (item.matrix == &w.layers.front().q) first = item.tensor;
    }
    status_ = absl::FailedPreconditionError(absl::StrFormat(
        "weights_dtype fp8 rounds F32, F16 and BF16 matrices of layers, and this model has none: "
        "%s is %s; use native",
        first->name, DTypeName(first->dtype)));
  }

  const TensorInfo* Find(const std::string& name, const std::vector<int64_t>& shape) {
    if (!status_.ok()) return nullptr;
    const TensorInfo* tensor = source_.Find(name);
    if (tensor == nullptr) {
      status_ = absl::InvalidArgumentError(absl::StrFormat("tensor %s is missing", name));
      return nullptr;
    }
    if (tensor->shape != shape) {
      status_ = absl::InvalidArgumentError(
          absl::StrFormat("tensor %s has another shape than the configuration", name));
      return nullptr;
    }
    return tensor;
  }

  void Matrix(const std::string& name, int32_t n, int32_t k, PackedMatrix* matrix,
              bool of_layer = true) {
    const TensorInfo* tensor = Find(name, {n, k});
    if (tensor == nullptr) return;
    *matrix = {
        .format = FormatOf(tensor->dtype, dtype_, of_layer), .n = n, .k = k, .data = nullptr};
    items_.push_back({.tensor = tensor, .matrix = matrix, .storage_offset = storage_bytes_});
    storage_bytes_ += RoundUp(kernels::PackedBytes(matrix->format, n, k), kAlignment);
  }

  void Vector(const std::string& name, int32_t n, Parameter* vector) {
    const TensorInfo* tensor = Find(name, {n});
    if (tensor == nullptr) return;
    items_.push_back({.tensor = tensor, .vector = vector});
  }

  const TensorSource& source_;
  const ModelConfig& config_;
  const WeightsDType dtype_;
  std::vector<Item> items_;
  int64_t storage_bytes_ = 0;
  absl::Status status_;
};

absl::Status LoadVector(const TensorSource& source, Item* item) {
  const TensorInfo& tensor = *item->tensor;
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes));
  MS_RETURN_IF_ERROR(source.Read(tensor, 0, bytes));
  Sha256 hash;
  hash.Update(bytes);
  item->digest = hash.Finish();
  item->vector->host().resize(static_cast<size_t>(tensor.elements()));
  kernels::Dequantize(tensor.dtype, bytes.data(), tensor.elements(), item->vector->host().data());
  return absl::OkStatus();
}

// The values of a matrix's scale tensor; none without one. They belong to its digest.
absl::StatusOr<std::vector<float>> LoadScale(const TensorSource& source, const TensorInfo& tensor,
                                             Sha256* hash) {
  std::vector<float> values;
  if (tensor.scale == nullptr) return values;
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.scale->bytes));
  MS_RETURN_IF_ERROR(source.Read(*tensor.scale, 0, bytes));
  hash->Update(bytes);
  values.resize(static_cast<size_t>(tensor.scale->elements()));
  kernels::Dequantize(tensor.scale->dtype, bytes.data(), tensor.scale->elements(), values.data());
  return values;
}

absl::Status LoadMatrix(const TensorSource& source, std::byte* storage, Item* item,
                        const std::function<absl::Status(int64_t)>& advanced) {
  const TensorInfo& tensor = *item->tensor;
  PackedMatrix& matrix = *item->matrix;
  std::byte* destination = storage + item->storage_offset;
  const int64_t row_bytes = tensor.bytes / matrix.n;
  const int64_t block_rows = std::max<int64_t>(kReadBytes / row_bytes / kPanelRows, 1) * kPanelRows;
  std::vector<std::byte> buffer(
      static_cast<size_t>(std::min<int64_t>(block_rows, matrix.n) * row_bytes));
  Sha256 hash;
  MS_ASSIGN_OR_RETURN(const std::vector<float> scale, LoadScale(source, tensor, &hash));
  for (int64_t row = 0; row < matrix.n; row += block_rows) {
    const int64_t rows = std::min<int64_t>(block_rows, matrix.n - row);
    const std::span<std::byte> block(buffer.data(), static_cast<size_t>(rows * row_bytes));
    MS_RETURN_IF_ERROR(source.Read(tensor, row * row_bytes, block));
    hash.Update(block);
    std::vector<float> scales;
    if (!scale.empty()) scales = ScalesOfRows(tensor, scale, row, rows);
    absl::Status packed = kernels::PackRows(tensor.dtype, block.data(), static_cast<int32_t>(row),
                                            static_cast<int32_t>(rows), matrix, destination,
                                            scales.empty() ? nullptr : scales.data());
    if (!packed.ok()) {
      return absl::Status(packed.code(),
                          absl::StrCat("tensor ", tensor.name, ": ", packed.message()));
    }
    MS_RETURN_IF_ERROR(advanced(rows * row_bytes));
  }
  matrix.data = destination;
  item->digest = hash.Finish();
  return absl::OkStatus();
}

Sha256Digest BaseId(const std::vector<Item>& items) {
  std::map<std::string, const Item*> sorted;
  for (const Item& item : items) sorted[item.tensor->name] = &item;
  Sha256 hash;
  for (const auto& [name, item] : sorted) {
    std::string line = absl::StrCat(name, " ", DTypeName(item->tensor->dtype));
    for (const int64_t extent : item->tensor->shape) absl::StrAppend(&line, " ", extent);
    hash.Update(line + "\n");
    hash.Update(std::as_bytes(std::span(item->digest)));
  }
  return hash.Finish();
}

}  // namespace

absl::StatusOr<int64_t> PackedWeightBytes(const Checkpoint& checkpoint, WeightsDType dtype) {
  ModelWeights scratch;
  Layout layout(checkpoint, dtype, &scratch);
  MS_RETURN_IF_ERROR(layout.status());
  return layout.storage_bytes();
}

absl::StatusOr<ModelWeights> WeightShapes(const Checkpoint& checkpoint, WeightsDType dtype) {
  ModelWeights shapes;
  Layout layout(checkpoint, dtype, &shapes);
  MS_RETURN_IF_ERROR(layout.status());
  return shapes;
}

absl::StatusOr<std::unique_ptr<ModelWeights>> LoadWeights(
    const Checkpoint& checkpoint, WeightsDType dtype, kernels::cpu::ThreadPool* pool,
    const std::function<void(double)>& progress, const std::atomic<bool>* cancel) {
  auto weights = std::make_unique<ModelWeights>();
  Layout layout(checkpoint, dtype, weights.get());
  MS_RETURN_IF_ERROR(layout.status());
  MS_ASSIGN_OR_RETURN(weights->storage, PagesMemory::Map(layout.storage_bytes()));

  std::vector<Item>& items = layout.items();
  // Largest first, so that no worker is left alone with the embedding at the end.
  std::vector<Item*> order;
  int64_t total = 0;
  for (Item& item : items) {
    order.push_back(&item);
    total += item.tensor->bytes;
    weights->parameters += item.tensor->elements();
  }
  std::stable_sort(order.begin(), order.end(), [](const Item* a, const Item* b) {
    return a->tensor->bytes > b->tensor->bytes;
  });

  Mutex mutex;
  absl::Status failure;  // Guarded by mutex.
  int64_t done = 0;      // Guarded by mutex.
  std::atomic<size_t> next{0};
  const auto advanced = [&](int64_t bytes) -> absl::Status {
    if (cancel != nullptr && cancel->load(std::memory_order_relaxed)) {
      return absl::CancelledError("loading was cancelled");
    }
    MutexLock lock(&mutex);
    if (!failure.ok()) return failure;
    done += bytes;
    if (progress)
      progress(static_cast<double>(done) / static_cast<double>(std::max<int64_t>(total, 1)));
    return absl::OkStatus();
  };
  pool->ForEachWorker([&](int32_t) {
    for (;;) {
      const size_t index = next.fetch_add(1);
      if (index >= order.size()) return;
      Item* item = order[index];
      absl::Status status =
          item->matrix != nullptr
              ? LoadMatrix(*checkpoint.tensors, weights->storage.data(), item, advanced)
              : LoadVector(*checkpoint.tensors, item);
      if (!status.ok()) {
        MutexLock lock(&mutex);
        if (failure.ok()) failure = status;
        next.store(order.size());
        return;
      }
    }
  });
  MS_RETURN_IF_ERROR(failure);
  MS_RETURN_IF_ERROR(checkpoint.tensors->CheckUnchanged());
  if (checkpoint.config.tied_head) weights->head = weights->embedding;
  weights->base_id = BaseId(items);
  return weights;
}

}  // namespace morphserve
