// Builds one gRPC listener with the limits of the settings.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/server_config.h"

namespace morphserve {

struct Listener {
  std::unique_ptr<grpc::Server> server;
  int port = 0;  // As bound, for port 0.
};

struct ListenerOptions {
  std::string key;  // The setting that names the address, for messages.
  std::string address;
  std::shared_ptr<grpc::ServerCredentials> credentials;
  std::vector<grpc::Service*> services;  // Outlive the server.
};

// UNAVAILABLE when the address cannot be bound, also when another process listens there.
absl::StatusOr<Listener> StartListener(const ListenerOptions& options,
                                       const ServerConfig::Grpc& limits);

}  // namespace morphserve
