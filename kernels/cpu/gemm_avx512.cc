// The mat-mul kernels in AVX-512 without the 4-way integer dot.
#if defined(__x86_64__)

// g++ 12 takes the deliberately undefined operands inside its own AVX-512 header for a mistake.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <bit>
#include <cstring>

#include "kernels/cpu/gemm_kernels.h"
#include "kernels/cpu/target_attributes.h"
#include "kernels/packed_layout.h"

#define MORPHSERVE_VNNI 0

MORPHSERVE_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")

namespace morphserve::kernels::cpu {
namespace {

#include "kernels/cpu/gemm_avx512_ops-inl.h"
#include "kernels/cpu/gemm_formats-inl.h"
#include "kernels/cpu/gemm_kernels-inl.h"

}  // namespace

const GemmKernels& Avx512GemmKernels() {
  static const GemmKernels table = MakeKernels();
  return table;
}

}  // namespace morphserve::kernels::cpu

MORPHSERVE_TARGET_END

#endif
