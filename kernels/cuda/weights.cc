// Upload: packed panels of the host become the layout of matrix_layout.h. Rows are turned one block
// at a time in page-locked memory, so that a large matrix needs little of it.
#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/matrix_bf16.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/packed_layout.h"
#include "kernels/quant_block.h"

namespace morphserve::kernels::cuda {
namespace {

constexpr int64_t kStagingBytes = 16 << 20;

// The values and scales of one output of a packed Q8, fp8 or Q4 matrix, as they are in the file,
// into their tile.
void PutQ8Row(const PackedMatrix& host, int32_t row, std::byte* tile) {
  const std::byte* panel = host.data + row / kPanelOutputs * PanelBytes(host.format, host.k);
  const int32_t output = row % kPanelOutputs, in_tile = row % kTileRows;
  for (int32_t group = 0; group < host.k / kGroup; ++group) {
    std::byte* const step = tile + group / 2 * TileStepBytes(WeightFormat::kQ8);
    std::memcpy(step + ScaleByte(WeightFormat::kQ8, in_tile, group % 2),
                panel + Q8ScaleOffset(group) + 2 * output, 2);
    const std::byte* quads = panel + Q8DataOffset(group);
    for (int32_t i = 0; i < kGroup; ++i) {
      // Both layouts add 128.
      step[Q8Byte(in_tile, group % 2 * kGroup + i)] =
          quads[i / 4 * kQuadBytes + 4 * output + i % 4];
    }
  }
}

void PutFp8Row(const PackedMatrix& host, int32_t row, std::byte* tile) {
  const std::byte* panel = host.data + row / kPanelOutputs * PanelBytes(host.format, host.k);
  const int32_t output = row % kPanelOutputs, in_tile = row % kTileRows;
  constexpr int32_t kInputs = StepInputs(WeightFormat::kFp8);
  static_assert(kFp8Inputs % kInputs == 0, "a step has one scale");
  for (int32_t begin = 0; begin < host.k; begin += kInputs) {
    const std::byte* from = panel + begin / kFp8Inputs * kFp8GroupBytes;
    std::byte* const step = tile + begin / kInputs * TileStepBytes(WeightFormat::kFp8);
    std::memcpy(step + Fp8ScaleByte(in_tile), from + 4 * output, 4);
    const std::byte* codes = from + kFp8ScaleBytes + begin % kFp8Inputs * kPanelOutputs + output;
    const int32_t count = std::min(kInputs, host.k - begin);
    for (int32_t i = 0; i < count; ++i) step[Fp8Byte(in_tile, i)] = codes[i * kPanelOutputs];
  }
}

void PutQ4Row(const PackedMatrix& host, int32_t row, std::byte* tile) {
  const std::byte* panel = host.data + row / kPanelOutputs * PanelBytes(host.format, host.k);
  const int32_t output = row % kPanelOutputs, in_tile = row % kTileRows;
  for (int32_t group = 0; group < host.k / kGroup; ++group) {
    std::byte* const step = tile + group / 4 * TileStepBytes(WeightFormat::kQ4);
    const std::byte* from = panel + group * kQ4GroupBytes;
    std::memcpy(step + ScaleByte(WeightFormat::kQ4, in_tile, group % 4), from + 2 * output, 2);
    std::memcpy(step + Q4MinByte(in_tile, group % 4), from + kHalfVectorBytes + 2 * output, 2);
    const std::byte* quads = from + 2 * kHalfVectorBytes;
    for (int32_t i = 0; i < kGroup; ++i) {
      const int32_t quad = i / 4;
      const auto byte =
          std::to_integer<uint32_t>(quads[quad % 4 * kQuadBytes + 4 * output + i % 4]);
      const uint32_t q = quad < 4 ? byte & 15u : byte >> 4;
      const int32_t at = group % 4 * kGroup + i;
      std::byte* word = step + Q4Word(in_tile, at);
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

int64_t Bf16CopyBytes(const PackedMatrix& matrix) {
  return IsTiled(UploadFormat(matrix.format)) ? MatrixBytes(WeightFormat::kBF16, matrix.n, matrix.k)
                                              : 0;
}

absl::Status AddBf16Copy(PackedMatrix* matrix, std::byte* device, Stream stream) {
  const int32_t padded = PaddedRows(WeightFormat::kBF16, matrix->n);
  absl::Status status = RowsAsBf16(*matrix, 0, matrix->n, padded, device, stream);
  if (status.ok()) matrix->bf16_rows = device;
  return status;
}

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
  // What is copied at a time: whole units of a row, or of a tile of them.
  const int32_t unit_rows = IsTiled(format) ? kTileRows : 1;
  const int64_t unit_bytes = IsTiled(format) ? TileBytes(format, host.k) : RowBytes(format, host.k);
  const int64_t units = PaddedRows(format, host.n) / unit_rows;
  const int64_t block = std::min(units, std::max<int64_t>(1, kStagingBytes / unit_bytes));
  auto staging = PinnedMemory::Allocate(block * unit_bytes);
  if (!staging.ok()) return staging.status();
  std::vector<float> values(static_cast<size_t>(host.k));
  for (int64_t first = 0; first < units; first += block) {
    const int64_t count = std::min(block, units - first);
    std::memset(staging->data(), 0, static_cast<size_t>(staging->bytes()));
    const int64_t end = std::min<int64_t>(host.n, (first + count) * unit_rows);
    for (int64_t r = first * unit_rows; r < end; ++r) {
      const auto row = static_cast<int32_t>(r);
      std::byte* const unit = staging->data() + (r / unit_rows - first) * unit_bytes;
      if (format == WeightFormat::kQ8) {
        PutQ8Row(host, row, unit);
      } else if (format == WeightFormat::kFp8) {
        PutFp8Row(host, row, unit);
      } else if (format == WeightFormat::kQ4) {
        PutQ4Row(host, row, unit);
      } else {
        PutFloatRow(host, row, format == WeightFormat::kF32, &values, unit);
      }
    }
    absl::Status status =
        CopyToDevice(device + first * unit_bytes, staging->data(), count * unit_bytes, stream);
    // The staging memory is used again.
    if (status.ok()) status = Synchronize(stream);
    if (!status.ok()) return status;
  }
  return PackedMatrix{.format = format, .n = host.n, .k = host.k, .data = device};
}

}  // namespace morphserve::kernels::cuda
