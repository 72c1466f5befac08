#include "engine/engine_options.h"

#include <algorithm>

namespace morphserve {

EngineOptions ResolveOptions(EngineOptions options, bool on_device) {
  if (options.sequences_max == 0) options.sequences_max = on_device ? 256 : 32;
  if (options.step_tokens_max == 0) {
    options.step_tokens_max = std::max(on_device ? 2048 : 256, options.sequences_max);
    options.step_tokens_max = std::max(options.step_tokens_max, options.chunk_tokens_min);
  }
  if (options.step_ms_target == 0) options.step_ms_target = on_device ? 50 : 150;
  return options;
}

}  // namespace morphserve
