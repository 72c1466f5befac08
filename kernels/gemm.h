// What         Matrix product of token rows with packed weights, several matrices over one input.
// Math         y[t, n] = [y[t, n] +] (sum_k x[t, k] * w[n, k] + bias[n]), the sum first.
//              Quantised formats: x is quantised per token in groups of 32 to int8: scale d_x =
//              max|x| / 127, q = nearest even of x * (127 / max|x|); a group below 2^-100 counts as
//              zero. A group's dot with the weights' integers is an exact int32; groups are added
//              in ascending order, one f32 chain per output: y = fma(d_w * d_x, dot, y) and, for
//              formats with a minimum, y = fma(m_w, d_x * sum(q), y). Q6K: the two integer scales
//              of a group are inside `dot`. Float formats: one f32 FMA chain per output, k
//              ascending; a weight of kFp8 is first scale * code, rounded to f32. So the bits of a
//              row do not depend on the number of rows, the number of threads or the instruction
//              set. With a norm, rows of x first become what kernels/rmsnorm.h makes of them. With
//              swiglu, y of two products becomes what kernels/activation.h makes of them.
// Shapes       x [rows, k]; w [n, k]; bias? [n]; y [rows, n]. Strides in elements.
// Dtypes       x, bias, y: f32. w: one of WeightFormat.
// Aliasing     no y may overlap x or another y.
// Padding      rows == 0 does nothing. With a row list, entry r names the row of x and of y to use,
//              each row at most once; -1 skips it and writes nothing.
// Limits       k a multiple of 32 for kQ8 and kQ4, of 256 for the K formats, any k >= 1 for floats;
//              any n >= 1. A NaN or infinity in a row of x makes all outputs of the row NaN with
//              quantised weights, and follows IEEE rules with float weights.
// Launch       cpu: units of one panel of 16 outputs and up to 64 rows, split statically over the
//              pool by bytes. With AMX, 7 rows and more go through the matrix unit (not kQ6K).
// Cost         bytes = PackedBytes of every part (read once up to about 500 rows) + x + y;
//              flops = 2 * rows * n * k. Share of the ceilings: tests/bench/gemm_bench.cc.
// Determinism  bitwise repeatable; rows independent. Workspace: MatmulWorkspaceBytes.
// Errors       INVALID_ARGUMENT for a broken limit, before anything is written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/common/stream.h"
#include "kernels/common/types.h"

namespace morphserve::kernels {

// How a weight matrix is held in memory. Each file type has one format it runs in.
enum class WeightFormat : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8,   // Q8_0: int8, one f16 scale per 32.
  kQ4,   // Q4_0, Q4_1: 4 bits, f16 scale and minimum per 32.
  kQ4K,  // Q4_K: 4 bits, two-level scale and minimum.
  kQ5K,  // Q5_K: 5 bits, two-level scale and minimum.
  kQ6K,  // Q6_K: 6 bits, scales per 16, two-level.
  kFp8,  // F8_E4M3: one f32 scale per output and 128 inputs.
};

WeightFormat NativeFormat(DType type);
const char* WeightFormatName(WeightFormat format);

// A packed matrix: panels of 16 outputs (rows of w), padded with zeros to a multiple of 16, data
// 64-byte aligned. Does not own its memory.
struct PackedMatrix {
  WeightFormat format = WeightFormat::kF32;
  int32_t n = 0;  // Outputs.
  int32_t k = 0;  // Inputs.
  const std::byte* data = nullptr;
  // On a device: quantised weights once more, as rows of bf16, for products of many rows; or null.
  const std::byte* bf16_rows = nullptr;
};

// Bytes a packed [n, k] matrix takes. Against the file: Q4_1, Q8_0, Q6_K and floats the same to
// 1 %, Q4_K and Q5_K 3 % more, Q4_0 11 % more (its minima are stored).
int64_t PackedBytes(WeightFormat format, int32_t n, int32_t k);

// Packs rows [row_begin, row_begin + row_count) of a file's row-major matrix (`source` holds just
// these rows, in type `type`) into `destination`, which has room for PackedBytes. row_begin must
// be a multiple of 16, and row_count too unless the rows are the last. `shape` gives n, k and the
// format (its data is not used): NativeFormat(type), or kBF16 or kF32, to which any type converts
// (dequantised, rounded once), or, from plain floats, kFp8: a row's scale is its largest magnitude
// / 448, values are divided by it and rounded to nearest even, and a row below 2^-100 is zero.
// `scales` is for kF8_E4M3 alone: [row_count][ceil(k / 128)] factors of the codes; null: all one.
// Rows past n of the last panel are zeroed. Thread-safe for disjoint
// rows. INVALID_ARGUMENT for a broken limit of the format, for rows that do not fill panels, for a
// Q4_0 scale of 8192 and more, whose minimum no f16 holds, for NaN among e4m3 codes, scales that
// are negative or too large for a finite value, and floats that are not finite where kFp8 is made.
absl::Status PackRows(DType type, const std::byte* source, int32_t row_begin, int32_t row_count,
                      const PackedMatrix& shape, std::byte* destination,
                      const float* scales = nullptr);

// Writes row `row` (in range) of the packed matrix as k floats: what the products multiply with,
// and for native formats exactly what Dequantize gives.
// Embedding look-up of a tied head reads the packed head through this.
void UnpackRow(const PackedMatrix& matrix, int32_t row, float* out);

// Dequantises `count` elements (a multiple of BlockElements) of a file's type to f32; of kF8_E4M3
// the codes without a scale. No alignment.
void Dequantize(DType type, const std::byte* source, int64_t count, float* out);

struct MatmulPart {
  const PackedMatrix* weights = nullptr;
  const float* bias = nullptr;  // [n] or null.
  float* y = nullptr;
  int64_t y_stride = 0;
  bool accumulate = false;  // y += product instead of y = product; the product is summed first.
  // Of a row of y, those that a backend may write, with anything behind n: libraries want numbers
  // of outputs that are multiples of 8. 0: n of them.
  int32_t y_columns = 0;
};

// The norm of rows before a product. A backend may put the normalised rows into `normed` or fuse
// the norm with the product: what is there afterwards is undefined.
struct MatmulNorm {
  const float* weight = nullptr;  // [k]; null: no norm.
  float eps = 0;
  float* normed = nullptr;  // [rows, k]
  int64_t normed_stride = 0;
};

struct MatmulArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int32_t rows = 0;
  const int32_t* row_list = nullptr;  // [rows] or null; null with a norm or swiglu.
  std::span<const MatmulPart> parts;  // All with the same k.
  MatmulNorm norm = {};
  // Of exactly two parts, gate and up, of one n, without bias, not accumulating: y of the first is
  // the gated activation; that of the second is undefined afterwards.
  bool swiglu = false;
  std::byte* workspace = nullptr;  // 64-byte aligned.
  int64_t workspace_bytes = 0;
};

// Workspace for up to `rows` rows of `k` inputs, any format.
int64_t MatmulWorkspaceBytes(int32_t rows, int32_t k);

namespace cpu {
absl::Status Matmul(const MatmulArgs& args, Stream stream);
}

}  // namespace morphserve::kernels
