// Server credentials of the gRPC listeners. The PEM files are read once, at start.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace grpc {
class ServerCredentials;
}

namespace morphserve {

// The texts of the two PEM files must belong together: INVALID_ARGUMENT says what is wrong (no
// certificate, no key, the key is of another certificate, the certificate is not valid now).
absl::Status CheckCertificate(const std::string& certificate_pem, const std::string& key_pem);

// TLS 1.2 or later with the certificate chain and key of the two files; without TLS when both paths
// are empty. NOT_FOUND when a file cannot be read, else as CheckCertificate.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const std::string& certificate_path, const std::string& key_path);

}  // namespace morphserve
