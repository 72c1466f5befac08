#include "server/tls.h"

#include <grpcpp/security/server_credentials.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "server/settings_load.h"

namespace morphserve {
namespace {

constexpr size_t kPemBytesMax = 1 << 20;

using BioPtr = std::unique_ptr<BIO, decltype(&BIO_free)>;

BioPtr Wrap(const std::string& text) {
  return BioPtr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), &BIO_free);
}

// An encrypted key would otherwise make OpenSSL ask at the terminal.
int RefusePassphrase(char*, int, int, void*) { return 0; }

}  // namespace

absl::Status CheckCertificate(const std::string& certificate_pem, const std::string& key_pem) {
  const absl::Cleanup clear = [] { ERR_clear_error(); };
  const BioPtr certificate_bio = Wrap(certificate_pem);
  const BioPtr key_bio = Wrap(key_pem);
  if (certificate_bio == nullptr || key_bio == nullptr) {
    return absl::ResourceExhaustedError("no memory to read the certificate");
  }
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(
      PEM_read_bio_X509(certificate_bio.get(), nullptr, &RefusePassphrase, nullptr), &X509_free);
  if (certificate == nullptr) {
    return absl::InvalidArgumentError("tls.cert holds no PEM certificate");
  }
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
      PEM_read_bio_PrivateKey(key_bio.get(), nullptr, &RefusePassphrase, nullptr), &EVP_PKEY_free);
  if (key == nullptr) {
    return absl::InvalidArgumentError("tls.key holds no unencrypted PEM private key");
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return absl::InvalidArgumentError("tls.key is not the key of tls.cert");
  }
  if (X509_cmp_current_time(X509_get0_notBefore(certificate.get())) > 0) {
    return absl::InvalidArgumentError("tls.cert is not valid yet");
  }
  if (X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0) {
    return absl::InvalidArgumentError("tls.cert has expired");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const std::string& certificate_path, const std::string& key_path) {
  if (certificate_path.empty() && key_path.empty()) return grpc::InsecureServerCredentials();
  MS_ASSIGN_OR_RETURN(const std::string certificate,
                      ReadSmallFile(certificate_path, kPemBytesMax, "tls.cert"));
  MS_ASSIGN_OR_RETURN(const std::string key, ReadSmallFile(key_path, kPemBytesMax, "tls.key"));
  MS_RETURN_IF_ERROR(CheckCertificate(certificate, key));
  grpc::SslServerCredentialsOptions options;  // gRPC's own floor is TLS 1.2.
  options.pem_key_cert_pairs.push_back({key, certificate});
  return grpc::SslServerCredentials(options);
}

}  // namespace morphserve
