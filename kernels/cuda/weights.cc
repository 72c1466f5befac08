// Upload: packed panels of the host become the rows of matrix_layout.h. Rows are turned one block
// at a time in page-locked memory, so that a large matrix needs little of it.
#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/packed_layout.h"
#include "kernels/quant_block.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int64_t kStagingBytes = 16 << 20;

// The integers and scales of one output of a packed Q8 or Q4 matrix, as they are in the file.
void PutQ8Row(const PackedMatrix& host, int32_t row, std::byte* data, std::byte* scales) {
  const std::byte* panel = host.data + row / kPanelOutputs * PanelBytes(host.format, host.k);
  const int32_t output = row % kPanelOutputs;
  for (int32_t group = 0; group < host.k / kGroup; ++group) {
    std::memcpy(scales + 2 * group, panel + Q8ScaleOffset(group) + 2 * output, 2);
    const std::byte* quads = panel + Q8DataOffset(group);
    std::byte* step = data + group / 2 * kStepBytes;
    for (int32_t i = 0; i < kGroup; ++i) {
      // The packed layout adds 128: one bit turns it into two's complement.
      step[Q8Byte(group % 2 * kGroup + i)] =
          quads[i / 4 * kQuadBytes + 4 * output + i % 4] ^ std::byte{0x80};
    }
  }
}

void PutQ4Row(const PackedMatrix& host, int32_t row, std::byte* data, std::byte* scales) {
  const std::byte* panel = host.data + row / kPanelOutputs * PanelBytes(host.format, host.k);
  const int32_t output = row % kPanelOutputs;
  for (int32_t group = 0; group < host.k / kGroup; ++group) {
    const std::byte* from = panel + group * kQ4GroupBytes;
    std::memcpy(scales + 4 * group, from + 2 * output, 2);
    std::memcpy(scales + 4 * group + 2, from + kHalfVectorBytes + 2 * output, 2);
    const std::byte* quads = from + 2 * kHalfVectorBytes;
    for (int32_t i = 0; i < kGroup; ++i) {
      const int32_t quad = i / 4;
      const auto byte =
          std::to_integer<uint32_t>(quads[quad % 4 * kQuadBytes + 4 * output + i % 4]);
      const uint32_t q = quad < 4 ? byte & 15u : byte >> 4;
      const int32_t at = group % 4 * kGroup + i;
      std::byte* word = data + group / 4 * kStepBytes + 4 * Q4Word(at);
      uint32_t bits;
      std::memcpy(&bits, word, 4);
      bits |= q << Q4Bit(at);
      std::memcpy(word, &bits, 4);
    }
  }
}

void PutFloatRow(const PackedMatrix& host, int32_t row, bool wide, std::vector<float>* values,
                 std::byte* data) {
  UnpackRow(host, row, values->data());
  if (wide) {
    std::memcpy(data, values->data(), static_cast<size_t>(host.k) * 4);
    return;
  }
  for (int32_t i = 0; i < host.k; ++i) {
    const uint16_t bits = FloatToBFloat16((*values)[static_cast<size_t>(i)]);
    std::memcpy(data + 2 * i, &bits, 2);
  }
}

}  // namespace

int64_t DeviceMatrixBytes(const PackedMatrix& host) {
  return MatrixBytes(UploadFormat(host.format), host.n, host.k);
}

absl::StatusOr<PackedMatrix> UploadMatrix(const PackedMatrix& host, std::byte* device,
                                          Stream stream) {
  if (host.data == nullptr || device == nullptr || host.n < 1 || host.k < 1 ||
      host.k % InputGranule(host.format) != 0 || reinterpret_cast<uintptr_t>(device) % 64 != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("UploadMatrix: %s %d x %d, or memory that is not aligned to 64",
                        WeightFormatName(host.format), host.n, host.k));
  }
  const WeightFormat format = UploadFormat(host.format);
  const int64_t row_bytes = RowBytes(format, host.k), scale_bytes = ScaleRowBytes(format, host.k);
  const int64_t rows_max = std::max<int64_t>(1, kStagingBytes / (row_bytes + scale_bytes));
  const int64_t block = std::min<int64_t>(host.n, rows_max);
  auto staging = PinnedMemory::Allocate(block * (row_bytes + scale_bytes));
  if (!staging.ok()) return staging.status();
  std::byte* const data = staging->data();
  std::byte* const scales = data + block * row_bytes;
  std::vector<float> values(static_cast<size_t>(host.k));
  for (int64_t first = 0; first < host.n; first += block) {
    const int64_t rows = std::min(block, host.n - first);
    std::memset(data, 0, static_cast<size_t>(staging->bytes()));
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = static_cast<int32_t>(first + r);
      if (format == WeightFormat::kQ8) {
        PutQ8Row(host, row, data + r * row_bytes, scales + r * scale_bytes);
      } else if (format == WeightFormat::kQ4) {
        PutQ4Row(host, row, data + r * row_bytes, scales + r * scale_bytes);
      } else {
        PutFloatRow(host, row, format == WeightFormat::kF32, &values, data + r * row_bytes);
      }
    }
    absl::Status status = CopyToDevice(device + first * row_bytes, data, rows * row_bytes, stream);
    if (status.ok() && scale_bytes > 0) {
      status = CopyToDevice(device + ScaleOffset(format, host.n, host.k) + first * scale_bytes,
                            scales, rows * scale_bytes, stream);
    }
    // The staging memory is used again.
    if (status.ok()) status = Synchronize(stream);
    if (!status.ok()) return status;
  }
  return PackedMatrix{.format = format, .n = host.n, .k = host.k, .data = device};
}

}  // namespace morphserve::kernels::cuda
