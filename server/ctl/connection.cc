#include "server/ctl/connection.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

namespace morphserve::ctl {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path, const char* option) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrFormat("%s: cannot read '%s'", option, path));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

template <typename Detail>
std::optional<Detail> FindDetail(const grpc::Status& status) {
  google::rpc::Status details;
  if (!details.ParseFromString(status.error_details())) return std::nullopt;
  for (const auto& any : details.details()) {
    Detail detail;
    if (any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

const char* CodeName(grpc::StatusCode code) {
  switch (code) {
    case grpc::OK: return "OK";
    case grpc::CANCELLED: return "CANCELLED";
    case grpc::INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case grpc::DEADLINE_EXCEEDED: return "DEADLINE_EXCEEDED";
    case grpc::NOT_FOUND: return "NOT_FOUND";
    case grpc::ALREADY_EXISTS: return "ALREADY_EXISTS";
    case grpc::PERMISSION_DENIED: return "PERMISSION_DENIED";
    case grpc::UNAUTHENTICATED: return "UNAUTHENTICATED";
    case grpc::RESOURCE_EXHAUSTED: return "RESOURCE_EXHAUSTED";
    case grpc::FAILED_PRECONDITION: return "FAILED_PRECONDITION";
    case grpc::ABORTED: return "ABORTED";
    case grpc::OUT_OF_RANGE: return "OUT_OF_RANGE";
    case grpc::UNIMPLEMENTED: return "UNIMPLEMENTED";
    case grpc::INTERNAL: return "INTERNAL";
    case grpc::UNAVAILABLE: return "UNAVAILABLE";
    case grpc::DATA_LOSS: return "DATA_LOSS";
    default: return "UNKNOWN";
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Open(const ConnectionOptions& options) {
  std::unique_ptr<Connection> connection(new Connection);
  connection->timeout_s_ = options.timeout_s;
  if (!options.token_file.empty()) {
    auto token = ReadFile(options.token_file, "--token-file");
    if (!token.ok()) return token.status();
    connection->token_ = std::string(absl::StripAsciiWhitespace(*token));
    if (connection->token_.empty()) {
      return absl::InvalidArgumentError("--token-file: the file is empty");
    }
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  if (options.tls || !options.tls_ca_file.empty()) {
    grpc::SslCredentialsOptions ssl;
    if (!options.tls_ca_file.empty()) {
      auto ca = ReadFile(options.tls_ca_file, "--tls-ca");
      if (!ca.ok()) return ca.status();
      ssl.pem_root_certs = *std::move(ca);
    }
    credentials = grpc::SslCredentials(ssl);
    if (!options.tls_name.empty()) arguments.SetSslTargetNameOverride(options.tls_name);
  }
  connection->inference_ = grpc::CreateCustomChannel(options.addr, credentials, arguments);
  connection->admin_ = grpc::CreateCustomChannel(options.admin_addr, credentials, arguments);
  return connection;
}

void Connection::Prepare(grpc::ClientContext* context) const {
  if (!token_.empty()) context->AddMetadata("authorization", "Bearer " + token_);
  if (timeout_s_ > 0) {
    context->set_deadline(std::chrono::system_clock::now() +
                          std::chrono::milliseconds(static_cast<int64_t>(timeout_s_ * 1000)));
  }
}

std::string ReasonOf(const grpc::Status& status) {
  const auto info = FindDetail<google::rpc::ErrorInfo>(status);
  return info.has_value() ? info->reason() : std::string();
}

std::string Explain(const grpc::Status& status) {
  std::string out = absl::StrFormat("%s", CodeName(status.error_code()));
  const std::string reason = ReasonOf(status);
  if (!reason.empty()) out += " (" + reason + ")";
  out += ": " + status.error_message();
  // Without a reason it is gRPC that speaks: nothing answered.
  if (status.error_code() == grpc::UNAVAILABLE && reason.empty()) {
    out += "\n  is morphserve running there? --addr and --admin-addr name its listeners";
  }
  if (const auto bad = FindDetail<google::rpc::BadRequest>(status)) {
    for (const auto& violation : bad->field_violations()) {
      out += absl::StrFormat("\n  %s %s", violation.field(), violation.description());
    }
  }
  if (const auto retry = FindDetail<google::rpc::RetryInfo>(status)) {
    const double seconds =
        static_cast<double>(retry->retry_delay().seconds()) + retry->retry_delay().nanos() * 1e-9;
    out += absl::StrFormat("\n  may be sent again in %.1f s", seconds);
  }
  return out;
}

bool IsTransient(const grpc::Status& status) {
  return status.error_code() == grpc::UNAVAILABLE ||
         (status.error_code() == grpc::RESOURCE_EXHAUSTED && ReasonOf(status) == "QUEUE_FULL");
}

}  // namespace morphserve::ctl
