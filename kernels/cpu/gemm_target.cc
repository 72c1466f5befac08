// Detection of instruction sets by cpuid, and of the kernel's leave to use tile registers.
#include "kernels/cpu/gemm_target.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace morphserve::kernels::cpu {
namespace {

#if defined(__x86_64__)

// Linux hands out the 8 KB of tile registers on request only, once for the whole process; a kernel
// without AMX, or one that refuses, leaves us on AVX-512.
bool TilesAllowed() {
#if defined(__linux__)
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  constexpr unsigned kAmxTile = 1u << 24;
  constexpr unsigned kAmxInt8 = 1u << 25;
  if ((d & kAmxTile) == 0 || (d & kAmxInt8) == 0) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

GemmTarget Detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return GemmTarget::kScalar;
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kF16c = 1u << 29;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kF16c) == 0) return GemmTarget::kScalar;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return GemmTarget::kAvx2;
  }
  if (!__builtin_cpu_supports("avx512vnni")) return GemmTarget::kAvx512;
  return TilesAllowed() ? GemmTarget::kAmx : GemmTarget::kAvx512Vnni;
}

#else

GemmTarget Detect() { return GemmTarget::kScalar; }

#endif

std::atomic<GemmTarget>& Active() {
  static std::atomic<GemmTarget> active{BestGemmTarget()};
  return active;
}

}  // namespace

const char* GemmTargetName(GemmTarget target) {
  switch (target) {
    case GemmTarget::kScalar: return "scalar";
    case GemmTarget::kAvx2: return "AVX2";
    case GemmTarget::kAvx512: return "AVX-512";
    case GemmTarget::kAvx512Vnni: return "AVX-512 VNNI";
    case GemmTarget::kAmx: return "AVX-512 VNNI + AMX int8";
  }
  return "?";
}

GemmTarget BestGemmTarget() {
  static const GemmTarget best = Detect();
  return best;
}

GemmTarget ActiveGemmTarget() { return Active().load(std::memory_order_relaxed); }

bool SetGemmTargetForTest(GemmTarget target) {
  if (target > BestGemmTarget()) return false;
  Active().store(target, std::memory_order_relaxed);
  return true;
}

}  // namespace morphserve::kernels::cpu
