// Where the tests of whole models run: MORPHSERVE_TEST_DEVICE=cuda sends them to a device.
#pragma once

#include <cstdlib>
#include <string_view>

#include "engine/engine_options.h"

namespace morphserve {

inline DeviceKind TestDevice() {
  const char* device = std::getenv("MORPHSERVE_TEST_DEVICE");
  return device != nullptr && std::string_view(device) == "cuda" ? DeviceKind::kCuda
                                                                 : DeviceKind::kCpu;
}

}  // namespace morphserve
