// CHECK for broken invariants (on in every build), DCHECK for inner loops (debug builds only).
// Never for anything a client or a file can cause: that is an absl::Status.
#pragma once

namespace morphserve::internal {

// Prints the failed condition and ends the process with SIGABRT.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);

}  // namespace morphserve::internal

#define MS_CHECK(condition)           \
  ((condition) ? static_cast<void>(0) \
               : ::morphserve::internal::CheckFailed(__FILE__, __LINE__, #condition))

#ifdef NDEBUG
#define MS_DCHECK(condition) static_cast<void>(sizeof(!(condition)))
#else
#define MS_DCHECK(condition) MS_CHECK(condition)
#endif
