// Which instruction set Highway's run-time dispatch picks on this machine. Thread rule: any thread.
#pragma once

namespace morphserve::kernels::cpu {

// "AVX3" (AVX-512), "AVX2", "SSE4", "EMU128" (plain C++). Static storage, never null.
const char* VectorTargetName();

}  // namespace morphserve::kernels::cpu
