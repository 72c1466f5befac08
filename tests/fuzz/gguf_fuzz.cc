#include <cstddef>
#include <cstdint>

#include "tests/fuzz/loader_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  morphserve::fuzz::FuzzGguf({reinterpret_cast<const char*>(data), size});
  return 0;
}
