// Early-return macros for absl::Status and absl::StatusOr. Each evaluates its expression once.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define MS_STATUS_CONCAT_INNER(a, b) a##b
#define MS_STATUS_CONCAT(a, b) MS_STATUS_CONCAT_INNER(a, b)

// Returns the status of `expr` from the enclosing function unless it is OK.
#define MS_RETURN_IF_ERROR(expr)             \
  do {                                       \
    ::absl::Status ms_status_ = (expr);      \
    if (!ms_status_.ok()) return ms_status_; \
  } while (false)

// `lhs` is a declaration or an lvalue; `rexpr` yields a StatusOr. Returns its status when not OK.
#define MS_ASSIGN_OR_RETURN(lhs, rexpr) \
  MS_ASSIGN_OR_RETURN_IMPL(MS_STATUS_CONCAT(ms_status_or_, __LINE__), lhs, rexpr)
#define MS_ASSIGN_OR_RETURN_IMPL(result, lhs, rexpr) \
  auto result = (rexpr);                             \
  if (!result.ok()) return result.status();          \
  lhs = *std::move(result)
