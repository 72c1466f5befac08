// LoadPoint is the load at which a latency is meant: how many sequences decode together, over how
// long a context, and how long prompts are. A plain value.
#pragma once

#include <cstdint>

namespace morphserve {

struct LoadPoint {
  int32_t running = 1;
  int32_t context = 1024;  // Tokens of each running sequence.
  int32_t prompt = 1024;   // Tokens of a prompt, for the time to the first token.
};

}  // namespace morphserve
