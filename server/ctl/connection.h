// Connection is one channel to a server, with the credentials and time limit of the command line.
// Thread rule: any thread after Open.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace morphserve::ctl {

struct ConnectionOptions {
  std::string addr = "127.0.0.1:8001";
  std::string admin_addr = "127.0.0.1:8003";
  bool tls = false;
  std::string tls_ca_file;  // Implies tls.
  std::string tls_name;     // Name to expect in the certificate, when it is not the address.
  std::string token_file;   // Holds one bearer token.
  double timeout_s = 0;     // Deadline of each call; 0: the server's default.
};

class Connection {
 public:
  // Reads the files. INVALID_ARGUMENT or NOT_FOUND names the option at fault. Does not connect yet.
  static absl::StatusOr<std::unique_ptr<Connection>> Open(const ConnectionOptions& options);

  const std::shared_ptr<grpc::Channel>& inference() const { return inference_; }
  const std::shared_ptr<grpc::Channel>& admin() const { return admin_; }
  // Adds the token and the deadline to a call.
  void Prepare(grpc::ClientContext* context) const;

 private:
  Connection() = default;
  std::shared_ptr<grpc::Channel> inference_;
  std::shared_ptr<grpc::Channel> admin_;
  std::string token_;
  double timeout_s_ = 0;
};

// One or more lines for a person: what failed, the reason, every field at fault, when to retry.
std::string Explain(const grpc::Status& status);
// The reason of the error catalogue, or empty.
std::string ReasonOf(const grpc::Status& status);
// True for refusals that pass: a full queue, a server that starts or drains, no connection yet.
bool IsTransient(const grpc::Status& status);

}  // namespace morphserve::ctl
