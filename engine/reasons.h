// Reasons of the statuses that the engine makes: the names clients see in ErrorInfo.reason. The
// error catalogue in server/errors.h says what each means.
#pragma once

namespace morphserve::reason {

inline constexpr char kFieldInvalid[] = "FIELD_INVALID";
inline constexpr char kContextTooLong[] = "CONTEXT_TOO_LONG";
inline constexpr char kNeverFits[] = "NEVER_FITS";
inline constexpr char kPlanNotFound[] = "PLAN_NOT_FOUND";
inline constexpr char kPlanWithdrawn[] = "PLAN_WITHDRAWN";
inline constexpr char kNotMorphable[] = "NOT_MORPHABLE";
inline constexpr char kRequestIdInUse[] = "REQUEST_ID_IN_USE";
inline constexpr char kQueueFull[] = "QUEUE_FULL";
inline constexpr char kDeadlineUnreachable[] = "DEADLINE_UNREACHABLE";
inline constexpr char kDeadlinePassed[] = "DEADLINE_PASSED";
inline constexpr char kDraining[] = "DRAINING";
inline constexpr char kNonFinite[] = "NON_FINITE";
inline constexpr char kInvariant[] = "INVARIANT";
inline constexpr char kDeviceLost[] = "DEVICE_LOST";

}  // namespace morphserve::reason
