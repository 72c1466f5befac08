// The instruction sets that operations are compiled for: AVX-512, AVX2 and SSE4, beside the plain
// baseline. Include before any Highway header. SSSE3 is left out: machines that have it and lack
// SSE4 are older than this project cares to make fast.
#pragma once

#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS HWY_SSSE3
#endif
