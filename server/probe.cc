#include "server/probe.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>

#include "health.grpc.pb.h"
#include "server/server_config.h"
#include "server/settings_load.h"

namespace morphserve {

int RunProbe(const ProbeOptions& options) {
  const size_t comma = options.target.find(',');
  const std::string address = options.target.substr(0, comma);
  const std::string service = comma == std::string::npos ? "" : options.target.substr(comma + 1);
  HostPort parsed;
  if (!ParseHostPort(address, &parsed)) {
    std::fprintf(stderr, "probe: '%s' is not host:port\n", address.c_str());
    return 2;
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!options.ca_file.empty()) {
    const absl::StatusOr<std::string> pem = ReadSmallFile(options.ca_file, 1 << 20, "probe_ca");
    if (!pem.ok()) {
      std::fprintf(stderr, "probe: %s\n", std::string(pem.status().message()).c_str());
      return 2;
    }
    grpc::SslCredentialsOptions tls;
    tls.pem_root_certs = *pem;
    credentials = grpc::SslCredentials(tls);
  }
  const auto channel = grpc::CreateChannel(address, credentials);
  const auto stub = grpc::health::v1::Health::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<int64_t>(options.timeout_s * 1000)));
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  if (!status.ok()) {
    std::fprintf(stderr, "probe: %s: %s\n", options.target.c_str(), status.error_message().c_str());
    return 2;
  }
  if (response.status() == grpc::health::v1::HealthCheckResponse::SERVING) return 0;
  std::fprintf(stderr, "probe: %s: not serving\n", options.target.c_str());
  return 1;
}

}  // namespace morphserve
