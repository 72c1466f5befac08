// Reads a branches file's weights into the form the kernels run.
#include <algorithm>
#include <map>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/model/branches_file.h"

namespace morphserve {
namespace {

using kernels::PackedMatrix;
using kernels::WeightFormat;

constexpr int64_t kAlignment = 64;
constexpr int64_t kReadBytes = int64_t{2} << 20;

// A matrix of a layer and the tensors whose rows it stacks.
struct MatrixPlace {
  PackedMatrix LinearWeights::*member;
  std::vector<std::string_view> tensors;
  bool rotary = false;  // Rows are channels of q or k.
};
const std::vector<MatrixPlace>& MatrixPlaces() {
  using W = LinearWeights;
  static const auto& places = *new std::vector<MatrixPlace>{
      {&W::down, {"aq", "ak", "av", "gd", "wa", "wb", "ws"}},  // The order of DownColumns.
      {&W::bq, {"bq"}, true},
      {&W::bk, {"bk"}, true},
      {&W::bv, {"bv"}},
      {&W::wq, {"wq"}, true},
      {&W::wk, {"wk"}, true},
      {&W::wv, {"wv"}},
      {&W::wo, {"wo"}},
      {&W::ao, {"ao"}},
      {&W::bo, {"bo"}},
      {&W::gu, {"gu"}}};
  return places;
}

struct VectorPlace {
  std::string_view tensor;
  Parameter LinearWeights::*member;
  float low, high;  // Outside, exp() of it would leave f32 or a state could grow.
};
constexpr float kAny = 1e30f;
constexpr VectorPlace kVectorPlaces[] = {{"gb", &LinearWeights::gb, -kAny, kAny},
                                         {"conv", &LinearWeights::conv, -kAny, kAny},
                                         {"a_log", &LinearWeights::a_log, -80, 80},
                                         {"dt_bias", &LinearWeights::dt_bias, -kAny, kAny},
                                         {"b_beta", &LinearWeights::b_beta, -kAny, kAny},
                                         {"slopes", &LinearWeights::slopes, 0, kAny},
                                         {"nw", &LinearWeights::nw, -kAny, kAny},
                                         {"bs", &LinearWeights::bs, -kAny, kAny}};

// One matrix to pack: which tensors, where to.
struct Item {
  const MatrixPlace* place = nullptr;
  std::vector<std::string_view> tensors;  // Those of the place that the kind has.
  PackedMatrix shape;
  int64_t storage_offset = 0;  // From the layer's beginning.
};

// The matrices of one layer; all layers are alike.
struct LayerLayout {
  std::vector<Item> items;
  int64_t bytes = 0;
};

LayerLayout MakeLayout(const BranchesConfig& config, const ModelConfig& model, WeightsDType dtype) {
  std::map<std::string_view, std::vector<int64_t>> shapes;
  for (const BranchTensor& tensor : BranchTensors(config, model)) {
    if (!tensor.vector) shapes[tensor.name] = tensor.shape;
  }
  LayerLayout out;
  for (const MatrixPlace& place : MatrixPlaces()) {
    Item item;
    item.place = &place;
    item.shape.format = dtype == WeightsDType::kF32 ? WeightFormat::kF32 : WeightFormat::kBF16;
    for (const std::string_view name : place.tensors) {
      const auto found = shapes.find(name);
      if (found == shapes.end()) continue;
      item.tensors.push_back(name);
      item.shape.n += static_cast<int32_t>(found->second[0]);
      item.shape.k = static_cast<int32_t>(found->second[1]);
    }
    if (item.tensors.empty()) continue;
    item.storage_offset = out.bytes;
    const int64_t bytes = kernels::PackedBytes(item.shape.format, item.shape.n, item.shape.k);
    out.bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    out.items.push_back(std::move(item));
  }
  return out;
}

// Row `to` of the base's order, in a file that holds each head's rotary rows split in halves.
// Interleaved: the pair (i, i + R/2) of the file becomes (2i, 2i + 1).
int64_t FileRow(int64_t to, const ModelConfig& model) {
  const int64_t rotary = model.rope.rotary_dim;
  const int64_t in_head = to % model.head_dim;
  if (!model.rope.interleaved || in_head >= rotary) return to;
  return to - in_head + in_head / 2 + (in_head % 2) * (rotary / 2);
}

class Loader {
 public:
  Loader(const FileReader& file, const BranchesFile& parsed, const ModelConfig& model)
      : file_(file), config_(parsed.header.config), model_(model) {
    for (const TensorInfo& tensor : parsed.tensors) tensors_[tensor.name] = &tensor;
  }

  absl::Status LoadLayer(const LayerLayout& layout, int32_t layer, std::byte* storage,
                         LinearWeights* out) {
    for (const Item& item : layout.items) {
      MS_RETURN_IF_ERROR(
          LoadMatrix(item, layer, storage + item.storage_offset, &(out->*item.place->member)));
    }
    for (const VectorPlace& place : kVectorPlaces) {
      const TensorInfo* tensor = Find(layer, place.tensor);
      if (tensor != nullptr) MS_RETURN_IF_ERROR(LoadVector(*tensor, place, out));
    }
    if (model_.rope.interleaved && !out->conv.empty()) PermuteConv(&out->conv.host());
    return absl::OkStatus();
  }

 private:
  const TensorInfo* Find(int32_t layer, std::string_view name) const {
    const auto found = tensors_.find(BranchTensorName(layer, name));
    return found == tensors_.end() ? nullptr : found->second;
  }

  absl::Status Refuse(const TensorInfo& tensor, const char* why) const {
    return absl::InvalidArgumentError(absl::StrFormat("tensor %s %s", tensor.name, why));
  }

  absl::Status Read(const TensorInfo& tensor, std::span<std::byte> out) const {
    const absl::Status status = file_.Read(tensor.offset, out);
    if (status.ok()) return status;
    return absl::Status(status.code(),
                        absl::StrCat("tensor ", tensor.name, ": ", status.message()));
  }

  absl::Status LoadMatrix(const Item& item, int32_t layer, std::byte* destination,
                          PackedMatrix* out) {
    std::vector<uint16_t> rows(static_cast<size_t>(int64_t{item.shape.n} * item.shape.k));
    size_t filled = 0;
    for (const std::string_view name : item.tensors) {
      const TensorInfo* tensor = Find(layer, name);
      MS_CHECK(tensor != nullptr && tensor->dtype == DType::kBF16);  // ReadBranchesFile saw it.
      const std::span<uint16_t> part =
          std::span(rows).subspan(filled, static_cast<size_t>(tensor->elements()));
      MS_RETURN_IF_ERROR(Read(*tensor, std::as_writable_bytes(part)));
      constexpr uint16_t kExponent = 0x7f80;
      if (std::any_of(part.begin(), part.end(),
                      [](uint16_t v) { return (v & kExponent) == kExponent; })) {
        return Refuse(*tensor, "holds a NaN or an infinity");
      }
      filled += part.size();
    }
    if (item.place->rotary && model_.rope.interleaved) PermuteRows(item.shape, &rows);
    const absl::Status packed =
        kernels::PackRows(DType::kBF16, reinterpret_cast<const std::byte*>(rows.data()), 0,
                          item.shape.n, item.shape, destination);
    if (!packed.ok()) return packed;
    *out = item.shape;
    out->data = destination;
    return absl::OkStatus();
  }

  void PermuteRows(const PackedMatrix& shape, std::vector<uint16_t>* rows) const {
    std::vector<uint16_t> out(rows->size());
    for (int64_t row = 0; row < shape.n; ++row) {
      std::copy_n(rows->begin() + FileRow(row, model_) * shape.k, shape.k,
                  out.begin() + row * shape.k);
    }
    rows->swap(out);
  }

  // [taps][q | k | v]: the channels of q and k.
  void PermuteConv(std::vector<float>* conv) const {
    const int64_t width = int64_t{config_.heads} * config_.head_dim;
    std::vector<float> out = *conv;
    for (int64_t group = 0; group < 3 * int64_t{config_.conv_taps}; ++group) {
      if (group % 3 == 2) continue;  // v
      for (int64_t i = 0; i < width; ++i) {
        out[static_cast<size_t>(group * width + i)] =
            (*conv)[static_cast<size_t>(group * width + FileRow(i, model_))];
      }
    }
    conv->swap(out);
  }

  absl::Status LoadVector(const TensorInfo& tensor, const VectorPlace& place,
                          LinearWeights* out) const {
    std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes));
    MS_RETURN_IF_ERROR(Read(tensor, bytes));
    std::vector<float>& values = (out->*place.member).host();
    values.resize(static_cast<size_t>(tensor.elements()));
    kernels::Dequantize(tensor.dtype, bytes.data(), tensor.elements(), values.data());
    for (const float value : values) {
      if (!(value >= place.low && value <= place.high)) {
        return Refuse(tensor, "holds a NaN, an infinity or a number out of range");
      }
    }
    return absl::OkStatus();
  }

  const FileReader& file_;
  const BranchesConfig& config_;
  const ModelConfig& model_;
  std::map<std::string_view, const TensorInfo*> tensors_;
};

absl::StatusOr<Sha256Digest> HashFile(const FileReader& file) {
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(kReadBytes, file.size())));
  Sha256 hash;
  for (int64_t offset = 0; offset < file.size();) {
    const int64_t bytes = std::min(kReadBytes, file.size() - offset);
    const std::span<std::byte> block(buffer.data(), static_cast<size_t>(bytes));
    MS_RETURN_IF_ERROR(file.Read(offset, block));
    hash.Update(block);
    offset += bytes;
  }
  return hash.Finish();
}

Sha256Digest HashText(std::string_view text) {
  Sha256 hash;
  hash.Update(text);
  return hash.Finish();
}

absl::Status CheckBase(const BranchesHeader& header, const Sha256Digest& base_id) {
  const std::string found = HexDigest(base_id);
  if (header.base_id == found) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("branches were made for base %s (%s); the model is %s", header.base_id,
                      header.base_name.empty() ? "no name" : header.base_name, found));
}

}  // namespace

int64_t BranchesBytes(const BranchesHeader& header, const ModelConfig& model, WeightsDType dtype) {
  return MakeLayout(header.config, model, dtype).bytes * model.layers;
}

absl::StatusOr<std::unique_ptr<Branches>> LoadBranches(const BranchesHeader& header,
                                                       const ModelConfig& model,
                                                       const Sha256Digest& base_id,
                                                       WeightsDType dtype) {
  auto out = std::make_unique<Branches>();
  out->header = header;
  out->layers.resize(static_cast<size_t>(model.layers));
  if (header.base_id.empty()) {  // No file.
    out->id = HashText(absl::StrFormat("window:%d:%d", header.config.window, header.config.sinks));
    return out;
  }
  MS_RETURN_IF_ERROR(CheckBase(header, base_id));
  MS_ASSIGN_OR_RETURN(const std::unique_ptr<FileReader> file, OpenFile(header.source));
  if (file->identity() != header.identity) {
    return absl::AbortedError("the branches file changed since its header was read");
  }
  MS_ASSIGN_OR_RETURN(const BranchesFile parsed, ReadBranchesFile(*file, header.source, model));
  MS_ASSIGN_OR_RETURN(out->id, HashFile(*file));
  const LayerLayout layout = MakeLayout(parsed.header.config, model, dtype);
  if (layout.bytes > 0) {
    MS_ASSIGN_OR_RETURN(out->storage, PagesMemory::Map(layout.bytes * model.layers));
  }
  Loader loader(*file, parsed, model);
  for (int32_t layer = 0; layer < model.layers; ++layer) {
    MS_RETURN_IF_ERROR(loader.LoadLayer(layout, layer, out->storage.data() + layer * layout.bytes,
                                        &out->layers[static_cast<size_t>(layer)]));
  }
  MS_RETURN_IF_ERROR(file->CheckUnchanged());
  return out;
}

}  // namespace morphserve
