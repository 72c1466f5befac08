// Catches a certificate and key that do not belong together, and a start that falls back to plain
// text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <memory>
#include <string>

#include "server/tls.h"

namespace morphserve {
namespace {

using ::testing::HasSubstr;

struct Pair {
  std::string certificate;
  std::string key;
};

std::string Text(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string text(data, static_cast<size_t>(size));
  BIO_free(bio);
  return text;
}

// A self-signed certificate, valid from `begin_s` to `end_s` relative to now.
Pair MakePair(long begin_s, long end_s) {
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"),
                                                                &EVP_PKEY_free);
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(X509_new(), &X509_free);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), begin_s);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), end_s);
  X509_set_pubkey(certificate.get(), key.get());
  X509_sign(certificate.get(), key.get(), EVP_sha256());
  BIO* certificate_bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(certificate_bio, certificate.get());
  BIO* key_bio = BIO_new(BIO_s_mem());
  PEM_write_bio_PrivateKey(key_bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  return {Text(certificate_bio), Text(key_bio)};
}

std::string Fault(const std::string& certificate, const std::string& key) {
  const absl::Status status = CheckCertificate(certificate, key);
  return status.ok() ? "" : std::string(status.message());
}

TEST(Tls, ACertificateAndItsKeyPass) {
  const Pair pair = MakePair(-10, 1000);
  EXPECT_EQ(Fault(pair.certificate, pair.key), "");
}

TEST(Tls, WhatIsWrongIsNamed) {
  const Pair pair = MakePair(-10, 1000);
  const Pair other = MakePair(-10, 1000);
  EXPECT_EQ(Fault(pair.certificate, other.key), "tls.key is not the key of tls.cert");
  EXPECT_EQ(Fault("", pair.key), "tls.cert holds no PEM certificate");
  EXPECT_EQ(Fault(pair.key, pair.key), "tls.cert holds no PEM certificate");
  EXPECT_EQ(Fault(pair.certificate, ""), "tls.key holds no unencrypted PEM private key");
  EXPECT_EQ(Fault(pair.certificate, pair.certificate),
            "tls.key holds no unencrypted PEM private key");
  EXPECT_EQ(Fault(pair.certificate.substr(0, 100), pair.key), "tls.cert holds no PEM certificate");
  const Pair expired = MakePair(-1000, -10);
  EXPECT_EQ(Fault(expired.certificate, expired.key), "tls.cert has expired");
  const Pair early = MakePair(1000, 2000);
  EXPECT_EQ(Fault(early.certificate, early.key), "tls.cert is not valid yet");
}

TEST(Tls, FilesThatAreNotThereStopTheStart) {
  const auto credentials = MakeServerCredentials("no/such/cert.pem", "no/such/key.pem");
  ASSERT_FALSE(credentials.ok());
  EXPECT_THAT(std::string(credentials.status().message()), HasSubstr("tls.cert cannot be opened"));
  EXPECT_TRUE(MakeServerCredentials("", "").ok());
}

}  // namespace
}  // namespace morphserve
