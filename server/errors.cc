#include "server/errors.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/server_context.h>

#include <algorithm>
#include <array>
#include <random>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/text_view.h"
#include "engine/engine.h"
#include "morph/reasons.h"

namespace morphserve {
namespace {

constexpr char kFaultsUrl[] = "morphserve.faults";  // A serialised google.rpc.BadRequest.
constexpr char kDomain[] = "morphserve";

// Trailing metadata must stay below the 8 KiB that clients accept by default; details travel in
// base64, beside the message.
constexpr size_t kMessageBytesMax = 512;
constexpr size_t kFaultBytesMax = 2048;
constexpr size_t kFaultsMax = 32;
constexpr size_t kQuotedBytesMax = 64;

// `text` cut to at most `bytes`, on a character boundary, without control characters.
std::string Clean(std::string_view text, size_t bytes) {
  size_t end = std::min(text.size(), bytes);
  while (end > 0 && end < text.size() && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;
  std::string out(text.substr(0, end));
  for (char& c : out) {
    if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  if (end < text.size()) out += "...";
  return out;
}

std::string MakeIncidentId() {
  std::random_device device;
  return absl::StrFormat("i-%08x%08x", device(), device());
}

struct RetryRule {
  std::string_view reason;
  int64_t after_ms;
};
constexpr std::array<RetryRule, 8> kRetryRules = {{
    {reason::kQueueFull, 1000},
    {reason::kPlansLiveMax, 1000},
    {reason::kAdminAbort, 1000},
    {reason::kPlanMemory, 1000},
    {reason::kMorphRunning, 1000},
    {reason::kStarting, 1000},
    {reason::kDraining, 1000},
    {reason::kNonFinite, 100},
}};

google::rpc::BadRequest FaultsOf(const absl::Status& status) {
  google::rpc::BadRequest faults;
  const absl::optional<absl::Cord> payload = status.GetPayload(kFaultsUrl);
  if (payload.has_value()) faults.ParseFromString(std::string(*payload));
  return faults;
}

google::rpc::ErrorInfo InfoOf(const absl::Status& status, const std::string& why) {
  google::rpc::ErrorInfo info;
  info.set_reason(why);
  info.set_domain(kDomain);
  status.ForEachPayload([&info](absl::string_view url, const absl::Cord& value) {
    const std::string_view name = ToStd(url);
    if (name.substr(0, sizeof(kMetadataUrl) - 1) != kMetadataUrl) return;
    const std::string key(name.substr(sizeof(kMetadataUrl) - 1));
    (*info.mutable_metadata())[key] = std::string(value);
  });
  return info;
}

// The absl and gRPC codes are the same numbers by design of both.
grpc::StatusCode CodeOf(const absl::Status& status) {
  static_assert(static_cast<int>(absl::StatusCode::kDataLoss) ==
                static_cast<int>(grpc::StatusCode::DATA_LOSS));
  static_assert(static_cast<int>(absl::StatusCode::kUnauthenticated) ==
                static_cast<int>(grpc::StatusCode::UNAUTHENTICATED));
  return static_cast<grpc::StatusCode>(static_cast<int>(status.code()));
}

// What has no reason of its own by the time it gets here is either the caller's doing or our fault.
std::string ReasonOrDefault(const absl::Status& status) {
  std::string why = ReasonOf(status);
  if (!why.empty()) return why;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange: return reason::kFieldInvalid;
    case absl::StatusCode::kUnimplemented: return reason::kFeatureUnavailable;
    case absl::StatusCode::kDeadlineExceeded: return reason::kDeadlinePassed;
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown: return reason::kInvariant;
    default: return "";
  }
}

}  // namespace

absl::Status FieldsInvalid(const std::vector<FieldFault>& faults, size_t count) {
  MS_CHECK(!faults.empty());
  const size_t others = std::max(count, faults.size()) - 1;
  std::string message =
      absl::StrFormat("%s %s", Clean(faults[0].field, 128), Clean(faults[0].problem, 256));
  google::rpc::BadRequest details;
  size_t bytes = 0;
  for (const FieldFault& fault : faults) {
    const std::string field = Clean(fault.field, 128);
    const std::string problem = Clean(fault.problem, 256);
    bytes += field.size() + problem.size() + 8;
    if (details.field_violations_size() > 0 &&
        (bytes > kFaultBytesMax ||
         details.field_violations_size() >= static_cast<int>(kFaultsMax))) {
      break;
    }
    auto* violation = details.add_field_violations();
    violation->set_field(field);
    violation->set_description(problem);
  }
  if (others > 0) {
    message += absl::StrFormat("; and %d more fault%s", others, others > 1 ? "s" : "");
  }
  absl::Status status = WithReason(absl::InvalidArgumentError(message), reason::kFieldInvalid);
  status.SetPayload(kFaultsUrl, absl::Cord(details.SerializeAsString()));
  return status;
}

absl::Status FieldInvalid(std::string field, std::string problem) {
  return FieldsInvalid({FieldFault{std::move(field), std::move(problem)}});
}

absl::Status FeatureUnavailable(std::string field) {
  absl::Status status = WithReason(
      absl::UnimplementedError(absl::StrFormat("%s is not in this release", Clean(field, 128))),
      reason::kFeatureUnavailable);
  return WithMetadata(std::move(status), "field", Clean(field, 128));
}

std::string Quoted(std::string_view text) {
  return absl::StrFormat("'%s'", Clean(text, kQuotedBytesMax));
}

std::optional<int64_t> RetryAfterMs(const absl::Status& status) {
  const std::string why = ReasonOf(status);
  for (const RetryRule& rule : kRetryRules) {
    if (rule.reason == why) return rule.after_ms;
  }
  return std::nullopt;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const std::string why = ReasonOrDefault(status);
  grpc::StatusCode code = CodeOf(status);
  std::string message = Clean(ToStd(status.message()), kMessageBytesMax);

  google::rpc::Status rich;
  google::rpc::ErrorInfo info = InfoOf(status, why);
  if (why == reason::kInvariant) {
    const std::string incident = MakeIncidentId();
    MS_LOG(ERROR) << "internal error incident=" << incident << " cause=" << message;
    code = grpc::StatusCode::INTERNAL;
    message = absl::StrFormat("internal error; incident %s", incident);
    (*info.mutable_metadata())["incident"] = incident;
  }
  if (!why.empty()) rich.add_details()->PackFrom(info);
  const google::rpc::BadRequest faults = FaultsOf(status);
  if (faults.field_violations_size() > 0) rich.add_details()->PackFrom(faults);
  if (const std::optional<int64_t> after_ms = RetryAfterMs(status); after_ms.has_value()) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(*after_ms / 1000);
    retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(*after_ms % 1000) * 1'000'000);
    rich.add_details()->PackFrom(retry);
  }
  rich.set_code(static_cast<int32_t>(code));
  rich.set_message(message);
  return grpc::Status(code, message, rich.SerializeAsString());
}

grpc::Status EndOfCall(const absl::Status& status, grpc::CallbackServerContext* context) {
  if (const std::optional<int64_t> after_ms = RetryAfterMs(status); after_ms.has_value()) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrFormat("%d", *after_ms));
  }
  return ToGrpcStatus(status);
}

}  // namespace morphserve
