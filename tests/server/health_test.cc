// Catches a Watch that misses a change, holds up a shutdown, or is left behind; and a probe that
// lies.
#include "server/health.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_format.h"
#include "server/probe.h"

namespace morphserve {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

class HealthTest : public ::testing::Test {
 protected:
  void SetUp() override {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
    address_ = absl::StrFormat("127.0.0.1:%d", port_);
    stub_ = grpc::health::v1::Health::NewStub(
        grpc::CreateChannel(address_, grpc::InsecureChannelCredentials()));
  }
  void TearDown() override {
    service_.EndWatches();
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(20));
  }

  grpc::Status Check(const std::string& name, HealthCheckResponse* response) {
    grpc::ClientContext context;
    HealthCheckRequest request;
    request.set_service(name);
    return stub_->Check(&context, request, response);
  }

  HealthService service_{{"", "readiness"}};
  int port_ = 0;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<grpc::health::v1::Health::Stub> stub_;
};

TEST_F(HealthTest, CheckTellsTheStateOfAName) {
  HealthCheckResponse response;
  ASSERT_TRUE(Check("readiness", &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  service_.Set("readiness", true);
  EXPECT_TRUE(service_.serving("readiness"));
  ASSERT_TRUE(Check("readiness", &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVING);
  ASSERT_TRUE(Check("", &response).ok());
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
}

TEST_F(HealthTest, CheckOfAnUnknownNameIsNotFound) {
  HealthCheckResponse response;
  EXPECT_EQ(Check("nonsense", &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(HealthTest, WatchTellsNowAndEveryChange) {
  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service("readiness");
  const auto reader = stub_->Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::NOT_SERVING);
  for (int i = 0; i < 20; ++i) {
    service_.Set("readiness", i % 2 == 0);
    service_.Set("", i % 2 == 0);  // Another name's changes are not ours.
    ASSERT_TRUE(reader->Read(&response));
    EXPECT_EQ(response.status(),
              i % 2 == 0 ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING);
  }
  service_.EndWatches();
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(HealthTest, WatchOfAnUnknownNameSaysSoAndStaysOpen) {
  grpc::ClientContext context;
  HealthCheckRequest request;
  request.set_service("nonsense");
  const auto reader = stub_->Watch(&context, request);
  HealthCheckResponse response;
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.status(), HealthCheckResponse::SERVICE_UNKNOWN);
  context.TryCancel();
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(HealthTest, AWatchThatComesAfterTheEndIsEndedAtOnce) {
  service_.EndWatches();
  grpc::ClientContext context;
  const auto reader = stub_->Watch(&context, HealthCheckRequest());
  HealthCheckResponse response;
  EXPECT_FALSE(reader->Read(&response));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(HealthTest, WatchersThatComeAndGoWhileTheStateFlipsLeaveNothingBehind) {
  std::atomic<bool> stop{false};
  std::thread flipper([&] {
    for (bool on = true; !stop; on = !on) service_.Set("readiness", on);
  });
  for (int i = 0; i < 40; ++i) {
    grpc::ClientContext context;
    HealthCheckRequest request;
    request.set_service("readiness");
    const auto reader = stub_->Watch(&context, request);
    HealthCheckResponse response;
    for (int reads = 0; reads < i % 4; ++reads) EXPECT_TRUE(reader->Read(&response));
    context.TryCancel();
    while (reader->Read(&response)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  stop = true;
  flipper.join();
}

TEST_F(HealthTest, ProbeAnswersByExitCode) {
  EXPECT_EQ(RunProbe({.target = address_ + ",readiness", .ca_file = ""}), 1);
  service_.Set("readiness", true);
  EXPECT_EQ(RunProbe({.target = address_ + ",readiness", .ca_file = ""}), 0);
  EXPECT_EQ(RunProbe({.target = address_, .ca_file = ""}), 1);
  EXPECT_EQ(RunProbe({.target = address_ + ",nonsense", .ca_file = ""}), 2);
  EXPECT_EQ(RunProbe({.target = "127.0.0.1:1", .ca_file = "", .timeout_s = 1}), 2);
  EXPECT_EQ(RunProbe({.target = "nonsense", .ca_file = ""}), 2);
  EXPECT_EQ(RunProbe({.target = address_, .ca_file = "no/such/file"}), 2);
}

}  // namespace
}  // namespace morphserve
