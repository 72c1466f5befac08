// Numbers of tensor types in GGUF files. Pure functions.
// Source: the GGUF specification of ggml (docs/gguf.md).
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/common/types.h"

namespace morphserve {

// INVALID_ARGUMENT, with ggml's name of the type where it has one, when it is not supported.
absl::StatusOr<DType> GgufTensorType(uint32_t number);

}  // namespace morphserve
