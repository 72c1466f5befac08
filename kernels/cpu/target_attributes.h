// Compiling a stretch of a file for a wider instruction set than the rest. What lies between BEGIN
// and END may only run where the processor has it. All includes come before BEGIN: inline functions
// of headers must stay at the baseline, because the linker keeps one copy of each for everybody.
#pragma once

#define MORPHSERVE_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define MORPHSERVE_TARGET_BEGIN(features) \
  MORPHSERVE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define MORPHSERVE_TARGET_END MORPHSERVE_PRAGMA(clang attribute pop)
#else
#define MORPHSERVE_TARGET_BEGIN(features) \
  MORPHSERVE_PRAGMA(GCC push_options) MORPHSERVE_PRAGMA(GCC target features)
#define MORPHSERVE_TARGET_END MORPHSERVE_PRAGMA(GCC pop_options)
#endif
