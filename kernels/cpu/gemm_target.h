// Which instruction set the mat-mul runs in: found once per process, the best that the processor
// and the operating system allow. Every target computes the same bits.
// Thread rule: ActiveGemmTarget from any thread; SetGemmTargetForTest while no product runs.
#pragma once

#include <cstdint>

namespace morphserve::kernels::cpu {

// In rising order; a later one implies the earlier ones.
enum class GemmTarget : uint8_t {
  kScalar,      // Plain C++.
  kAvx2,        // AVX2, FMA, F16C.
  kAvx512,      // AVX-512 F, BW, DQ, VL.
  kAvx512Vnni,  // 4-way int8 dots.
  kAmx,         // Tiles of int8 dots, where rows are many enough.
};

const char* GemmTargetName(GemmTarget target);

// The best target of this machine. On Linux the first call asks the kernel for the tile registers.
GemmTarget BestGemmTarget();

// The target in use: the best one unless a test chose a lower one.
GemmTarget ActiveGemmTarget();

// Uses `target` from now on; false, and nothing changes, if the machine lacks it.
bool SetGemmTargetForTest(GemmTarget target);

}  // namespace morphserve::kernels::cpu
