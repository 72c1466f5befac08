#include "server/auth.h"

#include <grpcpp/server_context.h>
#include <openssl/crypto.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/engine.h"
#include "server/server_metrics.h"
#include "server/settings_load.h"

namespace morphserve {
namespace {

constexpr size_t kFileBytesMax = 1 << 20;
constexpr size_t kEntriesMax = 4096;
constexpr size_t kTenantBytesMax = 64;
constexpr size_t kTokenBytesMax = 4096;

constexpr Scope kScopes[] = {Scope::kInfer, Scope::kRead, Scope::kAdmin, Scope::kMorph};

uint32_t Bit(Scope scope) { return uint32_t{1} << static_cast<uint32_t>(scope); }

bool ParseDigest(const std::string& hex, Sha256Digest* digest) {
  if (hex.size() != 2 * digest->size()) return false;
  for (size_t i = 0; i < digest->size(); ++i) {
    const char* first = hex.data() + 2 * i;
    const auto [end, error] = std::from_chars(first, first + 2, (*digest)[i], 16);
    if (error != std::errc() || end != first + 2) return false;
  }
  return true;
}

bool ValidTenant(const std::string& tenant) {
  if (tenant.empty() || tenant.size() > kTenantBytesMax) return false;
  return std::all_of(tenant.begin(), tenant.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

absl::Status EntryError(size_t index, const std::string& problem) {
  return absl::InvalidArgumentError(
      absl::StrFormat("auth.tokens_file: entry %d %s", index + 1, problem));
}

absl::StatusOr<uint32_t> ParseScopes(const YAML::Node& node, size_t index) {
  if (!node || !node.IsSequence() || node.size() == 0) {
    return EntryError(index, "needs scopes, a list of infer, read, admin, morph");
  }
  uint32_t scopes = 0;
  for (const auto& item : node) {
    const std::string name = item.IsScalar() ? item.Scalar() : "";
    uint32_t bit = 0;
    for (const Scope scope : kScopes) {
      if (name == ScopeName(scope)) bit = Bit(scope);
    }
    if (bit == 0) {
      return EntryError(index,
                        absl::StrFormat("has scope '%s'; known are infer, read, admin, morph",
                                        name.substr(0, 64)));
    }
    scopes |= bit;
  }
  return scopes;
}

absl::Status CheckKeys(const YAML::Node& node, size_t index) {
  for (const auto& member : node) {
    const std::string key = member.first.IsScalar() ? member.first.Scalar() : "?";
    if (key == "weight" || key == "running_max" || key == "waiting_max" ||
        key == "tokens_per_minute") {
      return EntryError(index, absl::StrFormat("has '%s', which is planned, not built yet", key));
    }
    if (key != "sha256" && key != "scopes" && key != "tenant" && key != "priority_max") {
      return EntryError(index, absl::StrFormat("has unknown key '%s'", key.substr(0, 64)));
    }
  }
  return absl::OkStatus();
}

absl::Status ParseIdentity(const YAML::Node& node, size_t index, Identity* identity) {
  if (const YAML::Node tenant = node["tenant"]) {
    if (!tenant.IsScalar() || !ValidTenant(tenant.Scalar())) {
      return EntryError(index, "has a tenant that is not 1 to 64 of A-Z a-z 0-9 . _ -");
    }
    identity->tenant = tenant.Scalar();
  }
  if (const YAML::Node priority = node["priority_max"]) {
    const std::string text = priority.IsScalar() ? priority.Scalar() : "";
    const char* last = text.data() + text.size();
    const auto [end, error] = std::from_chars(text.data(), last, identity->priority_max);
    if (error != std::errc() || end != last || identity->priority_max < -100 ||
        identity->priority_max > 100) {
      return EntryError(
          index, absl::StrFormat("has priority_max '%s'; must be -100 to 100", text.substr(0, 64)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view ScopeName(Scope scope) {
  switch (scope) {
    case Scope::kInfer: return "infer";
    case Scope::kRead: return "read";
    case Scope::kAdmin: return "admin";
    case Scope::kMorph: return "morph";
  }
  return "";
}

absl::StatusOr<std::vector<Authorizer::Entry>> Authorizer::ParseTokens(const std::string& text) {
  const YAML::Node root = YAML::Load(text);
  if (!root.IsSequence() || root.size() == 0 || root.size() > kEntriesMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("auth.tokens_file must be a list of 1 to %d entries", kEntriesMax));
  }
  std::vector<Entry> entries;
  for (size_t i = 0; i < root.size(); ++i) {
    const YAML::Node node = root[i];
    if (!node.IsMap()) return EntryError(i, "is not a map");
    MS_RETURN_IF_ERROR(CheckKeys(node, i));
    Entry entry;
    const YAML::Node digest = node["sha256"];
    if (!digest || !digest.IsScalar() || !ParseDigest(digest.Scalar(), &entry.digest)) {
      return EntryError(i, "needs sha256, 64 hex digits");
    }
    for (const Entry& other : entries) {
      if (other.digest == entry.digest) return EntryError(i, "repeats the sha256 of another entry");
    }
    MS_ASSIGN_OR_RETURN(entry.scopes, ParseScopes(node["scopes"], i));
    MS_RETURN_IF_ERROR(ParseIdentity(node, i, &entry.identity));
    entries.push_back(std::move(entry));
  }
  return entries;
}

absl::StatusOr<std::unique_ptr<Authorizer>> Authorizer::FromYaml(const std::string& text,
                                                                 ServerMetrics* metrics) {
  try {
    MS_ASSIGN_OR_RETURN(std::vector<Entry> entries, ParseTokens(text));
    return std::unique_ptr<Authorizer>(new Authorizer(false, std::move(entries), metrics));
  } catch (const YAML::Exception& error) {
    // Only the place: the message of the parser may quote the file.
    return absl::InvalidArgumentError(
        absl::StrFormat("auth.tokens_file: line %d does not parse", error.mark.line + 1));
  }
}

absl::StatusOr<std::unique_ptr<Authorizer>> Authorizer::Create(const std::string& tokens_file,
                                                               ServerMetrics* metrics) {
  if (tokens_file.empty()) {
    return std::unique_ptr<Authorizer>(new Authorizer(true, {}, metrics));
  }
  MS_ASSIGN_OR_RETURN(const std::string text,
                      ReadSmallFile(tokens_file, kFileBytesMax, "auth.tokens_file"));
  return FromYaml(text, metrics);
}

absl::StatusOr<Identity> Authorizer::Authorize(grpc::CallbackServerContext* context,
                                               std::initializer_list<Scope> any_of) const {
  if (open_) return Identity();
  const auto& metadata = context->client_metadata();
  const auto found = metadata.find("authorization");
  if (found == metadata.end()) return AuthorizeHeader(std::nullopt, any_of);
  if (metadata.count("authorization") > 1) return AuthorizeHeader("", any_of);
  return AuthorizeHeader(std::string_view(found->second.data(), found->second.size()), any_of);
}

absl::StatusOr<Identity> Authorizer::AuthorizeHeader(std::optional<std::string_view> header,
                                                     std::initializer_list<Scope> any_of) const {
  if (open_) return Identity();
  const auto refuse = [this](std::string_view cause) {
    if (metrics_ != nullptr) metrics_->OnAuthFailure(cause);
    return WithReason(absl::UnauthenticatedError("missing or unknown credential"), "CREDENTIAL");
  };
  if (!header.has_value()) return refuse("missing");
  constexpr std::string_view kPrefix = "bearer ";
  if (header->size() <= kPrefix.size() || header->size() > kPrefix.size() + kTokenBytesMax) {
    return refuse("malformed");
  }
  for (size_t i = 0; i < kPrefix.size(); ++i) {
    const char c = (*header)[i];
    if ((c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c) != kPrefix[i]) return refuse("malformed");
  }
  Sha256 hash;
  hash.Update(header->substr(kPrefix.size()));
  const Sha256Digest digest = hash.Finish();
  // Every entry is compared, so that time says nothing about which one matched, or how far.
  const Entry* match = nullptr;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(entry.digest.data(), digest.data(), digest.size()) == 0) match = &entry;
  }
  if (match == nullptr) return refuse("unknown");
  std::string names;
  for (const Scope scope : any_of) {
    if ((match->scopes & Bit(scope)) != 0) return match->identity;
    names += absl::StrFormat("%s%s", names.empty() ? "" : " or ", ScopeName(scope));
  }
  if (metrics_ != nullptr) metrics_->OnAuthFailure("scope");
  return WithReason(absl::PermissionDeniedError(absl::StrFormat("method needs scope %s", names)),
                    "SCOPE_MISSING");
}

}  // namespace morphserve
