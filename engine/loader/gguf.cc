#include "engine/loader/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/gguf_cursor.h"
#include "engine/loader/gguf_types.h"

namespace morphserve {
namespace {

// The format's own limits are far above any model's; these bound the memory a hostile header can
// take to a small multiple of its size.
constexpr uint64_t kKeysMax = 1 << 16;
constexpr uint64_t kTensorsMax = 1 << 16;
constexpr int64_t kNameBytesMax = 256;
constexpr int64_t kStringBytesMax = int64_t{64} << 20;      // A whole tokenizer.json.
constexpr int64_t kArrayStringBytesMax = int64_t{1} << 20;  // One token or merge.
constexpr uint64_t kArrayElementsMax = uint64_t{1} << 22;   // Of one array.
constexpr uint64_t kElementsMax = uint64_t{1} << 24;        // Of all arrays together.
constexpr int64_t kElementsPerTensorMax = int64_t{1} << 40;
constexpr uint32_t kDimensionsMax = 4;
constexpr int64_t kAlignmentDefault = 32;
constexpr int64_t kAlignmentMax = int64_t{1} << 20;
constexpr int64_t kKeyBytesMin = 8 + 1 + 4 + 1;             // Length, name, type, value.
constexpr int64_t kTensorBytesMin = 8 + 1 + 4 + 8 + 4 + 8;  // With one dimension.

enum ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

absl::Status Malformed(int64_t offset, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrFormat("%s at offset %d", what, offset));
}

// Names end up in messages and logs.
bool Printable(const std::string& name) {
  return !name.empty() &&
         std::all_of(name.begin(), name.end(), [](char c) { return c > ' ' && c <= '~'; });
}

// Bytes of one element of an array; 0 when it may not be one.
int64_t ElementBytes(uint32_t type) {
  switch (type) {
    case kUint8:
    case kInt8:
    case kBool: return 1;
    case kUint16:
    case kInt16: return 2;
    case kUint32:
    case kInt32:
    case kFloat32: return 4;
    case kUint64:
    case kInt64:
    case kFloat64:
    case kString: return 8;  // Of a string: its length.
    default: return 0;
  }
}

// Reads a header from front to back; each method leaves the cursor behind what it read.
class HeaderReader {
 public:
  explicit HeaderReader(const FileReader& file) : cursor_(file), file_size_(file.size()) {}

  absl::StatusOr<uint32_t> Version();
  // Versions 2 and 3 differ in byte order only.
  absl::Status Read(GgufMetadata* metadata, std::vector<TensorInfo>* tensors);

 private:
  absl::Status KeyValue(GgufMetadata* metadata);
  absl::StatusOr<GgufValue> Value(uint32_t type, int64_t at);
  absl::StatusOr<GgufValue> Array(int64_t at);
  absl::StatusOr<TensorInfo> Tensor();
  absl::Status Place(int64_t alignment, std::vector<TensorInfo>* tensors) const;
  absl::StatusOr<bool> Boolean();

  template <typename T>
  absl::StatusOr<GgufValue> Scalar() {
    MS_ASSIGN_OR_RETURN(const T value, cursor_.Number<T>());
    if constexpr (std::is_floating_point_v<T>) {
      return GgufValue{static_cast<double>(value)};
    } else if constexpr (std::is_same_v<T, uint64_t>) {
      return GgufValue{value};
    } else {
      return GgufValue{static_cast<int64_t>(value)};
    }
  }

  template <typename T>
  absl::StatusOr<GgufValue> Integers(uint64_t count) {
    GgufValue::Integers out;
    out.reserve(static_cast<size_t>(count));
    for (uint64_t i = 0; i < count; ++i) {
      const int64_t at = cursor_.position();
      MS_ASSIGN_OR_RETURN(const T value, cursor_.Number<T>());
      if (!std::in_range<int64_t>(value)) {
        return Malformed(at, absl::StrCat("array element ", value, " out of range"));
      }
      out.push_back(static_cast<int64_t>(value));
    }
    return GgufValue{std::move(out)};
  }

  template <typename T>
  absl::StatusOr<GgufValue> Floats(uint64_t count) {
    GgufValue::Floats out;
    out.reserve(static_cast<size_t>(count));
    for (uint64_t i = 0; i < count; ++i) {
      MS_ASSIGN_OR_RETURN(const T value, cursor_.Number<T>());
      out.push_back(static_cast<double>(value));
    }
    return GgufValue{std::move(out)};
  }

  GgufCursor cursor_;
  const int64_t file_size_;
  uint64_t array_elements_ = 0;
};

absl::StatusOr<uint32_t> HeaderReader::Version() {
  std::byte magic[4];
  MS_RETURN_IF_ERROR(cursor_.Bytes(magic));
  if (std::memcmp(magic, "GGUF", 4) != 0) return Malformed(0, "no GGUF magic");
  MS_ASSIGN_OR_RETURN(const uint32_t version, cursor_.Number<uint32_t>());
  if (version == 0x02000000U || version == 0x03000000U) {
    return absl::InvalidArgumentError("big-endian GGUF files are not supported");
  }
  if (version != 2 && version != 3) {
    return absl::InvalidArgumentError(
        absl::StrFormat("GGUF version %u is not supported; 2 and 3 are", version));
  }
  return version;
}

absl::Status HeaderReader::Read(GgufMetadata* metadata, std::vector<TensorInfo>* tensors) {
  MS_ASSIGN_OR_RETURN(const uint64_t tensor_count, cursor_.Number<uint64_t>());
  MS_ASSIGN_OR_RETURN(const uint64_t key_count, cursor_.Number<uint64_t>());
  const auto left = static_cast<uint64_t>(cursor_.remaining());
  if (key_count > kKeysMax || key_count > left / kKeyBytesMin) {
    return Malformed(
        16, absl::StrFormat("%u metadata keys, more than fit (limit %u),", key_count, kKeysMax));
  }
  if (tensor_count > kTensorsMax || tensor_count > left / kTensorBytesMin) {
    return Malformed(
        8, absl::StrFormat("%u tensors, more than fit (limit %u),", tensor_count, kTensorsMax));
  }
  for (uint64_t i = 0; i < key_count; ++i) MS_RETURN_IF_ERROR(KeyValue(metadata));

  int64_t alignment = kAlignmentDefault;
  if (metadata->contains("general.alignment")) {
    MS_ASSIGN_OR_RETURN(alignment, metadata->Integer("general.alignment"));
    if (alignment < 8 || alignment > kAlignmentMax ||
        !std::has_single_bit(static_cast<uint64_t>(alignment))) {
      return absl::InvalidArgumentError(
          absl::StrFormat("general.alignment is %d; a power of two from 8 to %d is needed",
                          alignment, kAlignmentMax));
    }
  }
  tensors->reserve(static_cast<size_t>(tensor_count));
  std::set<std::string, std::less<>> names;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    MS_ASSIGN_OR_RETURN(TensorInfo tensor, Tensor());
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(absl::StrFormat("tensor %s appears twice", tensor.name));
    }
    tensors->push_back(std::move(tensor));
  }
  return Place(alignment, tensors);
}

absl::Status HeaderReader::KeyValue(GgufMetadata* metadata) {
  const int64_t at = cursor_.position();
  MS_ASSIGN_OR_RETURN(std::string key, cursor_.String(kNameBytesMax));
  if (!Printable(key)) return Malformed(at, "metadata key that is not printable");
  MS_ASSIGN_OR_RETURN(const uint32_t type, cursor_.Number<uint32_t>());
  absl::StatusOr<GgufValue> value = Value(type, cursor_.position());
  if (!value.ok()) {
    return absl::Status(value.status().code(),
                        absl::StrCat("metadata key ", key, ": ", value.status().message()));
  }
  const auto [place, added] = metadata->values().emplace(std::move(key), *std::move(value));
  if (!added) return Malformed(at, absl::StrFormat("second metadata key %s", place->first));
  return absl::OkStatus();
}

absl::StatusOr<bool> HeaderReader::Boolean() {
  const int64_t at = cursor_.position();
  MS_ASSIGN_OR_RETURN(const uint8_t value, cursor_.Number<uint8_t>());
  if (value > 1) return Malformed(at, absl::StrCat("boolean of value ", value));
  return value == 1;
}

absl::StatusOr<GgufValue> HeaderReader::Value(uint32_t type, int64_t at) {
  switch (type) {
    case kUint8: return Scalar<uint8_t>();
    case kInt8: return Scalar<int8_t>();
    case kUint16: return Scalar<uint16_t>();
    case kInt16: return Scalar<int16_t>();
    case kUint32: return Scalar<uint32_t>();
    case kInt32: return Scalar<int32_t>();
    case kUint64: return Scalar<uint64_t>();
    case kInt64: return Scalar<int64_t>();
    case kFloat32: return Scalar<float>();
    case kFloat64: return Scalar<double>();
    case kBool: {
      MS_ASSIGN_OR_RETURN(const bool value, Boolean());
      return GgufValue{value};
    }
    case kString: {
      MS_ASSIGN_OR_RETURN(std::string text, cursor_.String(kStringBytesMax));
      return GgufValue{std::move(text)};
    }
    case kArray: return Array(at);
    default: return Malformed(at, absl::StrFormat("value of unknown type %u", type));
  }
}

absl::StatusOr<GgufValue> HeaderReader::Array(int64_t at) {
  MS_ASSIGN_OR_RETURN(const uint32_t type, cursor_.Number<uint32_t>());
  MS_ASSIGN_OR_RETURN(const uint64_t count, cursor_.Number<uint64_t>());
  if (type == kArray) return Malformed(at, "array of arrays");
  const int64_t element_bytes = ElementBytes(type);
  if (element_bytes == 0) {
    return Malformed(at, absl::StrFormat("array of unknown type %u", type));
  }
  if (count > static_cast<uint64_t>(cursor_.remaining() / element_bytes)) {
    return Malformed(at, absl::StrFormat("array of %u elements, more than the file holds,", count));
  }
  array_elements_ += count;
  if (count > kArrayElementsMax || array_elements_ > kElementsMax) {
    return Malformed(at, absl::StrFormat("array of %u elements (limit %u, %u in all arrays)", count,
                                         kArrayElementsMax, kElementsMax));
  }
  switch (type) {
    case kUint8: return Integers<uint8_t>(count);
    case kInt8: return Integers<int8_t>(count);
    case kUint16: return Integers<uint16_t>(count);
    case kInt16: return Integers<int16_t>(count);
    case kUint32: return Integers<uint32_t>(count);
    case kInt32: return Integers<int32_t>(count);
    case kUint64: return Integers<uint64_t>(count);
    case kInt64: return Integers<int64_t>(count);
    case kFloat32: return Floats<float>(count);
    case kFloat64: return Floats<double>(count);
    case kBool: {
      GgufValue::Integers out;
      for (uint64_t i = 0; i < count; ++i) {
        MS_ASSIGN_OR_RETURN(const bool value, Boolean());
        out.push_back(value ? 1 : 0);
      }
      return GgufValue{std::move(out)};
    }
    default: break;
  }
  GgufValue::Strings out;
  out.reserve(static_cast<size_t>(count));
  for (uint64_t i = 0; i < count; ++i) {
    MS_ASSIGN_OR_RETURN(std::string text, cursor_.String(kArrayStringBytesMax));
    out.push_back(std::move(text));
  }
  return GgufValue{std::move(out)};
}

// The offset stays relative to the data section until Place.
absl::StatusOr<TensorInfo> HeaderReader::Tensor() {
  const int64_t at = cursor_.position();
  TensorInfo tensor;
  MS_ASSIGN_OR_RETURN(tensor.name, cursor_.String(kNameBytesMax));
  if (!Printable(tensor.name)) return Malformed(at, "tensor name that is not printable");
  const auto refuse = [&tensor](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrFormat("tensor %s: %s", tensor.name, why));
  };
  MS_ASSIGN_OR_RETURN(const uint32_t dimensions, cursor_.Number<uint32_t>());
  if (dimensions < 1 || dimensions > kDimensionsMax) {
    return refuse(
        absl::StrFormat("%u dimensions; 1 to %u are possible", dimensions, kDimensionsMax));
  }
  int64_t elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    MS_ASSIGN_OR_RETURN(const uint64_t extent, cursor_.Number<uint64_t>());
    if (extent < 1 || extent > static_cast<uint64_t>(kElementsPerTensorMax / elements)) {
      return refuse(absl::StrFormat("dimension %u is %u, out of range", i, extent));
    }
    elements *= static_cast<int64_t>(extent);
    tensor.shape.push_back(static_cast<int64_t>(extent));
  }
  // The file lists the fastest dimension first.
  const int64_t row = tensor.shape.front();
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  MS_ASSIGN_OR_RETURN(const uint32_t type, cursor_.Number<uint32_t>());
  const absl::StatusOr<DType> dtype = GgufTensorType(type);
  if (!dtype.ok()) return refuse(std::string(dtype.status().message()));
  tensor.dtype = *dtype;
  if (row % BlockElements(*dtype) != 0) {
    return refuse(absl::StrFormat("rows of %d elements; blocks of %s have %d", row,
                                  DTypeName(*dtype), BlockElements(*dtype)));
  }
  tensor.bytes = elements / BlockElements(*dtype) * BlockBytes(*dtype);
  MS_ASSIGN_OR_RETURN(const uint64_t offset, cursor_.Number<uint64_t>());
  if (offset > static_cast<uint64_t>(file_size_)) {
    return refuse(absl::StrFormat("offset %u is outside the file", offset));
  }
  tensor.offset = static_cast<int64_t>(offset);
  return tensor;
}

absl::Status HeaderReader::Place(int64_t alignment, std::vector<TensorInfo>* tensors) const {
  // No overflow: a position is at most the file's size and the alignment at most kAlignmentMax.
  const int64_t data = (cursor_.position() + alignment - 1) / alignment * alignment;
  std::vector<const TensorInfo*> order;
  for (TensorInfo& tensor : *tensors) {
    if (tensor.offset % alignment != 0) {
      return absl::InvalidArgumentError(
          absl::StrFormat("tensor %s: offset %d is not a multiple of the alignment %d", tensor.name,
                          tensor.offset, alignment));
    }
    if (data > file_size_ || tensor.offset > file_size_ - data ||
        tensor.bytes > file_size_ - data - tensor.offset) {
      return absl::OutOfRangeError(
          absl::StrFormat("tensor %s: %d bytes at offset %d; the file has %d", tensor.name,
                          tensor.bytes, data + tensor.offset, file_size_));
    }
    tensor.offset += data;
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes) {
      return absl::InvalidArgumentError(absl::StrFormat("tensor %s at offset %d overlaps tensor %s",
                                                        order[i]->name, order[i]->offset,
                                                        order[i - 1]->name));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(std::shared_ptr<const FileReader> file) {
  std::unique_ptr<GgufFile> gguf(new GgufFile());
  HeaderReader reader(*file);
  MS_ASSIGN_OR_RETURN(gguf->version_, reader.Version());
  MS_RETURN_IF_ERROR(reader.Read(&gguf->metadata_, &gguf->tensors_));
  return gguf;
}

}  // namespace morphserve
