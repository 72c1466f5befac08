// Catches a credential that opens too much, a token file that is half understood, and a message
// that tells an attacker which part was wrong.
#include "server/auth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/engine.h"
#include "server/server_metrics.h"
#include "tests/server/process_fakes.h"

namespace morphserve {
namespace {

using ::testing::HasSubstr;

std::string Hash(std::string_view token) {
  Sha256 hash;
  hash.Update(token);
  return HexDigest(hash.Finish());
}

std::string TwoTokens() {
  return "- sha256: " + Hash("sesame") + "\n  scopes: [infer, read]\n  tenant: team-a\n" +
         "  priority_max: 10\n- sha256: " + Hash("root") + "\n  scopes: [admin]\n";
}

std::string FaultOf(const std::string& yaml) {
  const auto authorizer = Authorizer::FromYaml(yaml);
  return authorizer.ok() ? "" : std::string(authorizer.status().message());
}

TEST(Auth, WithoutAFileEverythingIsAllowedAsTheDefaultTenant) {
  const auto authorizer = Authorizer::Create("");
  ASSERT_TRUE(authorizer.ok());
  EXPECT_TRUE((*authorizer)->open());
  const auto identity = (*authorizer)->AuthorizeHeader(std::nullopt, {Scope::kAdmin});
  ASSERT_TRUE(identity.ok());
  EXPECT_EQ(identity->tenant, "default");
  EXPECT_EQ(identity->priority_max, 100);
}

TEST(Auth, AKnownTokenGivesItsIdentity) {
  const auto authorizer = Authorizer::FromYaml(TwoTokens());
  ASSERT_TRUE(authorizer.ok()) << authorizer.status();
  for (const char* header : {"Bearer sesame", "bearer sesame", "BEARER sesame"}) {
    const auto identity = (*authorizer)->AuthorizeHeader(header, {Scope::kInfer});
    ASSERT_TRUE(identity.ok()) << header;
    EXPECT_EQ(identity->tenant, "team-a");
    EXPECT_EQ(identity->priority_max, 10);
  }
  EXPECT_TRUE((*authorizer)->AuthorizeHeader("Bearer sesame", {Scope::kAdmin, Scope::kRead}).ok());
}

TEST(Auth, AScopeOpensOnlyItself) {
  const auto authorizer = Authorizer::FromYaml(TwoTokens());
  ASSERT_TRUE(authorizer.ok());
  const auto refused = (*authorizer)->AuthorizeHeader("Bearer sesame", {Scope::kAdmin});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ReasonOf(refused.status()), "SCOPE_MISSING");
  EXPECT_EQ(refused.status().message(), "method needs scope admin");
  const auto other = (*authorizer)->AuthorizeHeader("Bearer root", {Scope::kInfer, Scope::kRead});
  EXPECT_EQ(other.status().message(), "method needs scope infer or read");
}

TEST(Auth, WhateverIsWrongTheAnswerIsTheSame) {
  const auto authorizer = Authorizer::FromYaml(TwoTokens());
  ASSERT_TRUE(authorizer.ok());
  const std::vector<std::optional<std::string_view>> headers = {
      std::nullopt, "",         "Bearer",         "Bearer ",        "sesame",
      "Basic eA==", "Bearer x", "Bearer sesame ", "Bearer  sesame", "Bearer sesam"};
  for (const auto& header : headers) {
    const auto refused = (*authorizer)->AuthorizeHeader(header, {Scope::kInfer});
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(ReasonOf(refused.status()), "CREDENTIAL");
    EXPECT_EQ(refused.status().message(), "missing or unknown credential");
  }
  const std::string huge = "Bearer " + std::string(1 << 20, 'x');
  EXPECT_FALSE((*authorizer)->AuthorizeHeader(huge, {Scope::kInfer}).ok());
}

TEST(Auth, TheHashItselfIsNoToken) {
  const auto authorizer = Authorizer::FromYaml(TwoTokens());
  ASSERT_TRUE(authorizer.ok());
  EXPECT_FALSE((*authorizer)->AuthorizeHeader("Bearer " + Hash("sesame"), {Scope::kInfer}).ok());
}

TEST(Auth, RefusalsAreCountedByCause) {
  ServerMetrics metrics;
  const auto authorizer = Authorizer::FromYaml(TwoTokens(), &metrics);
  ASSERT_TRUE(authorizer.ok());
  EXPECT_FALSE((*authorizer)->AuthorizeHeader(std::nullopt, {Scope::kInfer}).ok());
  EXPECT_FALSE((*authorizer)->AuthorizeHeader("nonsense", {Scope::kInfer}).ok());
  EXPECT_FALSE((*authorizer)->AuthorizeHeader("Bearer nobody", {Scope::kInfer}).ok());
  EXPECT_FALSE((*authorizer)->AuthorizeHeader("Bearer root", {Scope::kInfer}).ok());
  const std::string text = metrics.Render();
  for (const char* cause : {"missing", "malformed", "unknown", "scope"}) {
    EXPECT_EQ(testing::MetricValue(text, "morphserve_auth_failures_total",
                                   {std::string("cause=\"") + cause}),
              1)
        << cause;
  }
}

TEST(Auth, FaultyFilesAreRefusedByEntry) {
  const std::string good = "- sha256: " + Hash("a") + "\n  scopes: [infer]\n";
  EXPECT_EQ(FaultOf(good), "");
  EXPECT_THAT(FaultOf(""), HasSubstr("must be a list of 1"));
  EXPECT_THAT(FaultOf("a: b"), HasSubstr("must be a list of 1"));
  EXPECT_THAT(FaultOf("[]"), HasSubstr("must be a list of 1"));
  EXPECT_THAT(FaultOf("- x"), HasSubstr("entry 1 is not a map"));
  EXPECT_THAT(FaultOf("- scopes: [infer]"), HasSubstr("needs sha256"));
  EXPECT_THAT(FaultOf("- sha256: abc\n  scopes: [infer]"), HasSubstr("needs sha256"));
  EXPECT_THAT(FaultOf("- sha256: " + std::string(64, 'g') + "\n  scopes: [infer]"),
              HasSubstr("needs sha256"));
  EXPECT_THAT(FaultOf("- sha256: " + Hash("a") + "\n"), HasSubstr("needs scopes"));
  EXPECT_THAT(FaultOf("- sha256: " + Hash("a") + "\n  scopes: []\n"), HasSubstr("needs scopes"));
  EXPECT_THAT(FaultOf("- sha256: " + Hash("a") + "\n  scopes: [root]\n"),
              HasSubstr("scope 'root'; known are"));
  EXPECT_THAT(FaultOf(good + good), HasSubstr("entry 2 repeats"));
  EXPECT_THAT(FaultOf(good + "  tenant: 'a b'\n"), HasSubstr("tenant"));
  EXPECT_THAT(FaultOf(good + "  priority_max: 101\n"), HasSubstr("must be -100 to 100"));
  EXPECT_THAT(FaultOf(good + "  weight: 2\n"), HasSubstr("planned, not built yet"));
  EXPECT_THAT(FaultOf(good + "  scope: read\n"), HasSubstr("unknown key 'scope'"));
  EXPECT_THAT(FaultOf("- sha256: [\n"), HasSubstr("does not parse"));
}

TEST(Auth, AFileThatCannotBeReadStopsTheStart) {
  const auto absent = Authorizer::Create("no/such/tokens.yaml");
  ASSERT_FALSE(absent.ok());
  EXPECT_THAT(std::string(absent.status().message()), HasSubstr("auth.tokens_file"));
  EXPECT_THAT(std::string(absent.status().message()), ::testing::Not(HasSubstr("no/such")));
}

}  // namespace
}  // namespace morphserve
