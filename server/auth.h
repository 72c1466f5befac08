// Authorizer decides who a call comes from and whether it may use a method. Credentials are bearer
// tokens, known by their SHA-256 from a YAML file:
//   - sha256: <64 hex digits>       # of the token's bytes
//     scopes: [infer, read]         # infer, read, admin, morph
//     tenant: team-a                # default: "default"
//     priority_max: 10              # ceiling of Scheduling.priority, -100..100; default 100
// Without a file everything is allowed, as tenant "default" (loopback, or allow_insecure).
// Thread rule: immutable after Create, any thread. Tokens are compared in constant time and never
// logged, nor is which part of a credential was wrong told to the caller.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/base/sha256.h"

namespace grpc {
class CallbackServerContext;
}

namespace morphserve {

class ServerMetrics;

enum class Scope : uint8_t { kInfer, kRead, kAdmin, kMorph };
std::string_view ScopeName(Scope scope);

struct Identity {
  std::string tenant = "default";
  int32_t priority_max = 100;
};

class Authorizer {
 public:
  // `tokens_file` empty: everyone may do everything. Otherwise INVALID_ARGUMENT names the entry at
  // fault, NOT_FOUND a file that cannot be read: a configured source that fails stops the start.
  // `metrics` counts refusals and outlives the authorizer; may be null.
  static absl::StatusOr<std::unique_ptr<Authorizer>> Create(const std::string& tokens_file,
                                                            ServerMetrics* metrics = nullptr);
  // The same from the file's text; for tests.
  static absl::StatusOr<std::unique_ptr<Authorizer>> FromYaml(const std::string& text,
                                                              ServerMetrics* metrics = nullptr);

  // UNAUTHENTICATED (reason CREDENTIAL) without a known token, PERMISSION_DENIED (SCOPE_MISSING)
  // when the token has none of `any_of`.
  absl::StatusOr<Identity> Authorize(grpc::CallbackServerContext* context,
                                     std::initializer_list<Scope> any_of) const;

  // What Authorize does with the value of the `authorization` metadata, if there is one.
  absl::StatusOr<Identity> AuthorizeHeader(std::optional<std::string_view> header,
                                           std::initializer_list<Scope> any_of) const;

  bool open() const { return open_; }  // No tokens file.

 private:
  struct Entry {
    Sha256Digest digest{};
    uint32_t scopes = 0;  // Bit 1 << Scope.
    Identity identity;
  };

  Authorizer(bool open, std::vector<Entry> entries, ServerMetrics* metrics)
      : open_(open), entries_(std::move(entries)), metrics_(metrics) {}
  static absl::StatusOr<std::vector<Entry>> ParseTokens(const std::string& text);

  const bool open_;
  const std::vector<Entry> entries_;
  ServerMetrics* const metrics_;
};

}  // namespace morphserve
