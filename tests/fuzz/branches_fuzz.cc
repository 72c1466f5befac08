#include <cstddef>
#include <cstdint>

#include "tests/fuzz/branches_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  morphserve::fuzz::FuzzBranches({reinterpret_cast<const char*>(data), size});
  return 0;
}
