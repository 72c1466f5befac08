// The error catalogue: every gRPC status of this server is made here, from an absl::Status that
// carries its reason and metadata (engine.h: WithReason, WithMetadata). A status rides with a
// google.rpc.Status in grpc-status-details-bin:
//   ErrorInfo {reason, domain "morphserve", metadata}   whenever there is a reason
//   BadRequest                                          all faults of FIELD_INVALID
//   RetryInfo (and the metadatum grpc-retry-pushback-ms)  when the same call may be sent again
// Messages and details are bounded, so that they fit a client's header limit, and hold no path and
// no text of a prompt.
//
//   INVALID_ARGUMENT     FIELD_INVALID, CONTEXT_TOO_LONG, NEVER_FITS, TEMPLATE_FAILED,
//                        KEY_REUSED
//   NOT_FOUND            MODEL_NOT_FOUND, PLAN_NOT_FOUND
//   ALREADY_EXISTS       REQUEST_ID_IN_USE
//   FAILED_PRECONDITION  NO_CHAT_TEMPLATE, NO_TOKENIZER, NOT_MORPHABLE, PLAN_WITHDRAWN,
//                        TARGET_UNREACHABLE, QUALITY_BELOW_MIN, COSTS_UNKNOWN,
//                        NOTHING_TO_ROLL_BACK
//   UNIMPLEMENTED        FEATURE_UNAVAILABLE (metadata: field)
//   RESOURCE_EXHAUSTED   QUEUE_FULL, PLANS_LIVE_MAX, PLAN_MEMORY (all retry), SLOW_READER,
//                        RESPONSE_TOO_LARGE, SELECTION_MEMORY
//   DEADLINE_EXCEEDED    DEADLINE_UNREACHABLE (metadata: needed_ms, left_ms, basis),
//                        DEADLINE_PASSED (metadata: phase, completion_tokens once admitted)
//   ABORTED              ADMIN_ABORT, MORPH_RUNNING (both retry), PLAN_CHANGED, PLAN_ENDED
//   UNAVAILABLE          STARTING, DRAINING (both retry)
//   UNAUTHENTICATED      CREDENTIAL
//   PERMISSION_DENIED    SCOPE_MISSING
//   DATA_LOSS            NON_FINITE (retry)
//   INTERNAL             INVARIANT: the client sees an incident id, the log has the cause;
//                        DEVICE_LOST: the server ends, another may serve the call
//   CANCELLED            no reason: the caller did it
// Thread rule: functions without state, any thread.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "engine/reasons.h"

namespace grpc {
class CallbackServerContext;
}

namespace morphserve {

// Reasons that the server gives; those of the engine are in engine/reasons.h.
namespace reason {
inline constexpr char kTemplateFailed[] = "TEMPLATE_FAILED";
inline constexpr char kModelNotFound[] = "MODEL_NOT_FOUND";
inline constexpr char kNoChatTemplate[] = "NO_CHAT_TEMPLATE";
inline constexpr char kNoTokenizer[] = "NO_TOKENIZER";
inline constexpr char kPlansLiveMax[] = "PLANS_LIVE_MAX";
inline constexpr char kFeatureUnavailable[] = "FEATURE_UNAVAILABLE";
inline constexpr char kSlowReader[] = "SLOW_READER";
inline constexpr char kResponseTooLarge[] = "RESPONSE_TOO_LARGE";
inline constexpr char kAdminAbort[] = "ADMIN_ABORT";
inline constexpr char kPlanEnded[] = "PLAN_ENDED";
inline constexpr char kStarting[] = "STARTING";
inline constexpr char kCredential[] = "CREDENTIAL";
inline constexpr char kScopeMissing[] = "SCOPE_MISSING";
}  // namespace reason

// One field of a request and what is wrong with it: {"options.sampling.top_p", "is 1.5; must be in
// (0, 1]"}.
struct FieldFault {
  std::string field;
  std::string problem;
};

// INVALID_ARGUMENT, FIELD_INVALID. The message names the first fault and counts the others; the
// details have as many as fit. `count` is how many there are, when `faults` holds only the first of
// them. CHECKs that there is one.
absl::Status FieldsInvalid(const std::vector<FieldFault>& faults, size_t count = 0);
absl::Status FieldInvalid(std::string field, std::string problem);

// UNIMPLEMENTED, FEATURE_UNAVAILABLE: `field` (or method) is not in this release.
absl::Status FeatureUnavailable(std::string field);

// A client's string for a message: in quotes, at most 64 bytes of it, control characters replaced.
std::string Quoted(std::string_view text);

// How long a client should wait before it sends the same call again; empty: it should not.
std::optional<int64_t> RetryAfterMs(const absl::Status& status);

// The status as gRPC sends it. OK gives OK.
grpc::Status ToGrpcStatus(const absl::Status& status);

// The same for a call that now ends: also adds grpc-retry-pushback-ms to its trailing metadata.
grpc::Status EndOfCall(const absl::Status& status, grpc::CallbackServerContext* context);

}  // namespace morphserve
