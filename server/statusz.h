// The status page: what this process is, does and was told, for people. Lengths and ids only;
// secrets appear as the paths of their files.
#pragma once

#include <string>

#include "server/server_metrics.h"
#include "server/serving_state.h"

namespace morphserve {

// Plain text. Any thread; `drain` is a word for the phase of a drain, empty when there is none.
std::string RenderStatus(const ServingState& state, const ServerMetrics& metrics,
                         const std::string& drain);

}  // namespace morphserve
