// Panels of kFp8 (packed_layout.h): from e4m3 codes with their scales, or quantised from plain
// floats. Internal to the packer. Thread rule: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/types.h"

namespace morphserve::kernels {

// INVALID_ARGUMENT for NaN among [rows][k] codes, and for scales, [rows][ceil(k / 128)] or null,
// that are no finite factor of every code or negative.
absl::Status CheckFp8Rows(const std::byte* codes, int32_t rows, int32_t k, const float* scales);

// The panel of up to 16 rows of k inputs, dense. `type` is kF8_E4M3, already checked, or a plain
// float: then `scales` is null, and INVALID_ARGUMENT is for a value that is not finite. A panel of
// fewer rows is zero before.
absl::Status PackFp8Panel(DType type, const std::byte* source, int32_t rows, int32_t k,
                          const float* scales, std::byte* panel);

}  // namespace morphserve::kernels
