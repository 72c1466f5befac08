// Fuzzes the chat template engine: see template_targets.h.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/template_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  morphserve::fuzz::FuzzTemplateInput({reinterpret_cast<const char*>(data), size});
  return 0;
}
