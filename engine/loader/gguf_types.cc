#include "engine/loader/gguf_types.h"

#include <array>

#include "absl/strings/str_format.h"

namespace morphserve {
namespace {

struct SupportedType {
  uint32_t number;
  DType type;
};
constexpr std::array<SupportedType, 9> kSupported = {{{0, DType::kF32},
                                                      {1, DType::kF16},
                                                      {2, DType::kQ4_0},
                                                      {3, DType::kQ4_1},
                                                      {8, DType::kQ8_0},
                                                      {12, DType::kQ4_K},
                                                      {13, DType::kQ5_K},
                                                      {14, DType::kQ6_K},
                                                      {30, DType::kBF16}}};

// What ggml calls the rest, so that a refusal says what the user would have to convert.
struct KnownName {
  uint32_t number;
  std::string_view name;
};
constexpr std::array<KnownName, 30> kNames = {
    {{4, "Q4_2"},     {5, "Q4_3"},   {6, "Q5_0"},      {7, "Q5_1"},      {9, "Q8_1"},
     {10, "Q2_K"},    {11, "Q3_K"},  {15, "Q8_K"},     {16, "IQ2_XXS"},  {17, "IQ2_XS"},
     {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"},   {21, "IQ3_S"},    {22, "IQ2_S"},
     {23, "IQ4_XS"},  {24, "I8"},    {25, "I16"},      {26, "I32"},      {27, "I64"},
     {28, "F64"},     {29, "IQ1_M"}, {31, "Q4_0_4_4"}, {32, "Q4_0_4_8"}, {33, "Q4_0_8_8"},
     {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"},    {40, "NVFP4"},    {41, "Q1_0"}}};

}  // namespace

absl::StatusOr<DType> GgufTensorType(uint32_t number) {
  for (const SupportedType& supported : kSupported) {
    if (supported.number == number) return supported.type;
  }
  for (const KnownName& known : kNames) {
    if (known.number == number) {
      return absl::InvalidArgumentError(absl::StrFormat("type %s is not supported", known.name));
    }
  }
  return absl::InvalidArgumentError(absl::StrFormat("type number %u is not known", number));
}

}  // namespace morphserve
