#include "kernels/cpu/dispatch.h"

#include <cstdint>

#include "kernels/cpu/hwy_targets.h"
// Highway after the list of targets that we build.
#include <hwy/highway.h>

namespace morphserve::kernels::cpu {

const char* VectorTargetName() {
  // The lowest set bit is the best target: Highway numbers them so.
  const int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  if (usable == 0) return hwy::TargetName(HWY_STATIC_TARGET);
  return hwy::TargetName(usable & -usable);
}

}  // namespace morphserve::kernels::cpu
