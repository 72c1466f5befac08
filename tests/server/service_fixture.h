// The inference and models services on a real gRPC server in this process, over a fake engine.
// For tests/server only.
#pragma once

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <morphserve/v1/inference.grpc.pb.h>
#include <morphserve/v1/models.grpc.pb.h>

#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "server/inference_service.h"
#include "server/models_service.h"
#include "tests/server/service_fakes.h"

namespace morphserve::testing {

// A server on a port of its own, and a channel to it.
class ServiceFixture {
 public:
  explicit ServiceFixture(const ServerConfig& config = ServerConfig(), std::string tokens_yaml = "",
                          bool ready = true)
      : state_(config, "digest", absl::FromUnixSeconds(1'700'000'000)) {
    absl::StatusOr<std::unique_ptr<Authorizer>> authorizer =
        tokens_yaml.empty() ? Authorizer::Create("") : Authorizer::FromYaml(tokens_yaml);
    MS_CHECK(authorizer.ok());
    authorizer_ = *std::move(authorizer);
    if (ready) SetReady();
    inference_ = std::make_unique<InferenceService>(&state_, authorizer_.get(), &metrics_, &clock_);
    models_ = std::make_unique<ModelsService>(&state_, authorizer_.get(), &metrics_, &clock_);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.SetMaxReceiveMessageSize(static_cast<int>(config.grpc.receive_bytes_max));
    builder.RegisterService(inference_.get());
    builder.RegisterService(models_.get());
    server_ = builder.BuildAndStart();
    MS_CHECK(server_ != nullptr);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(absl::StrFormat("127.0.0.1:%d", port_),
                                         grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Inference::NewStub(channel_);
    models_stub_ = v1::Models::NewStub(channel_);
  }
  ~ServiceFixture() {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5));
    server_->Wait();
  }

  void SetReady() {
    ServedModel model;
    model.engine = &engine_;
    model.chat_template = &chat_template_;
    model.name = "tiny";
    model.generation.top_k = 7;
    state_.SetReady(std::move(model));
  }

  FakeEngine& engine() { return engine_; }
  ByteTokenizer& tokenizer() { return tokenizer_; }
  ServingState& state() { return state_; }
  ServerMetrics& metrics() { return metrics_; }
  v1::Inference::Stub& stub() { return *stub_; }
  v1::Models::Stub& models() { return *models_stub_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

 private:
  SystemClock clock_;
  ByteTokenizer tokenizer_;
  SimpleTemplate chat_template_;
  FakeEngine engine_{&tokenizer_};
  ServingState state_;
  ServerMetrics metrics_;
  std::unique_ptr<Authorizer> authorizer_;
  std::unique_ptr<InferenceService> inference_;
  std::unique_ptr<ModelsService> models_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::unique_ptr<v1::Models::Stub> models_stub_;
};

// True when a line of the metrics has the family's name, `label` and the value.
inline bool HasMetric(ServerMetrics* metrics, const std::string& name, const std::string& label,
                      const std::string& value) {
  std::istringstream lines(metrics->Render());
  for (std::string line; std::getline(lines, line);) {
    const size_t space = line.rfind(' ');
    if (line.rfind(name + "{", 0) == 0 && line.find(label) != std::string::npos &&
        line.substr(space + 1) == value) {
      return true;
    }
  }
  return false;
}

// The reason in a status's details; empty when there is none.
inline std::string ReasonIn(const grpc::Status& status) {
  google::rpc::Status rich;
  google::rpc::ErrorInfo info;
  if (!rich.ParseFromString(status.error_details())) return "";
  for (const auto& detail : rich.details()) {
    if (detail.UnpackTo(&info)) return info.reason();
  }
  return "";
}

inline std::string Header(const std::multimap<grpc::string_ref, grpc::string_ref>& metadata,
                          const std::string& name) {
  const auto it = metadata.find(name);
  return it == metadata.end() ? "" : std::string(it->second.data(), it->second.size());
}

inline TokensEvent TokensOf(int32_t index, const std::string& text) {
  TokensEvent event;
  event.index = index;
  for (const char c : text) event.token_ids.push_back(static_cast<uint8_t>(c));
  event.text = text;
  return event;
}

inline StartedEvent StartedOnPlan() {
  StartedEvent event;
  event.plan_id = "p-0123456789abcdef";
  event.epoch = 1;
  event.full_layers = 3;
  event.layers = 3;
  return event;
}

inline FinishedEvent FinishedAs(int32_t index, FinishReason reason, int32_t tokens) {
  FinishedEvent event;
  event.index = index;
  event.reason = reason;
  event.completion_tokens = tokens;
  return event;
}

// Streams `text` as one choice and ends it.
inline void Play(TokenSink* sink, const std::string& text) {
  sink->OnStarted(StartedOnPlan());
  for (const char c : text) sink->OnTokens(TokensOf(0, std::string(1, c)));
  const auto tokens = static_cast<int32_t>(text.size());
  sink->OnFinished(FinishedAs(0, FinishReason::kEos, tokens));
  DoneEvent done;
  done.prompt_tokens = 4;
  done.completion_tokens = tokens;
  done.tpot_ms = 1.5;
  sink->OnDone(done);
}

}  // namespace morphserve::testing
