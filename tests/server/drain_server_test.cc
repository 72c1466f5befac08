// The whole process with an engine that stands in: what clients see while it loads, serves, drains
// and ends. Catches a listener that answers before it may, a method without a check of its caller,
// a drain that loses or keeps requests.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <functional>
#include <sstream>
#include <thread>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "health.grpc.pb.h"
#include "morphserve/v1/admin.grpc.pb.h"
#include "morphserve/v1/inference.grpc.pb.h"
#include "morphserve/v1/models.grpc.pb.h"
#include "server/server.h"
#include "server/settings.h"
#include "server/statusz.h"
#include "server/tracked_engine.h"
#include "tests/server/process_fakes.h"

namespace morphserve {
namespace {

using ::testing::HasSubstr;

bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 400; ++i) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(25));
  }
  return false;
}

// Runs a Server on free ports. The loader waits until Load() and then gives the stub engine away.
class ServerTest : public ::testing::Test {
 protected:
  void Start(std::vector<std::pair<std::string, std::string>> values = {}) {
    LoadedSettings settings;
    values.insert(values.begin(), {{"model.path", "stub"},
                                   {"listen.inference", "127.0.0.1:0"},
                                   {"listen.http", "127.0.0.1:0"},
                                   {"listen.admin", "127.0.0.1:0"},
                                   {"drain.withdraw_s", "0"}});
    for (const auto& [key, value] : values) {
      const absl::Status status = SetSetting(*FindSetting(key), value, &settings.config);
      ASSERT_TRUE(status.ok()) << status;
    }
    ready_file_ = ::testing::TempDir() + absl::StrFormat("ready-%d.json", getpid());
    auto server = Server::Create(
        {.settings = settings,
         .ready_file = ready_file_,
         .loader = [this](const ServerConfig&, const LoadHooks& hooks) { return Loader(hooks); },
         .clock = &clock_,
         .take_signals = false});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    inference_ = Connect(server_->ports().inference);
    admin_ = v1::Admin::NewStub(Connect(server_->ports().admin));
    running_ = std::thread([this] { exit_code_ = server_->Run(); });
  }

  void StartAndLoad(std::vector<std::pair<std::string, std::string>> values = {}) {
    Start(std::move(values));
    load_ = true;
    ASSERT_TRUE(Eventually([this] { return std::ifstream(ready_file_).good(); }));
  }

  void TearDown() override {
    if (server_ == nullptr) return;
    server_->Stop();
    load_ = true;
    if (running_.joinable()) running_.join();
    server_.reset();
    EXPECT_FALSE(std::ifstream(ready_file_).good()) << "the ready file was left behind";
  }

  int Join() {
    running_.join();
    return exit_code_;
  }

  static std::shared_ptr<grpc::Channel> Connect(int port) {
    return grpc::CreateChannel(absl::StrFormat("127.0.0.1:%d", port),
                               grpc::InsecureChannelCredentials());
  }

  grpc::health::v1::HealthCheckResponse::ServingStatus Health(const std::string& name) {
    const auto stub = grpc::health::v1::Health::NewStub(inference_);
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(name);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status = stub->Check(&context, request, &response);
    return status.ok() ? response.status() : grpc::health::v1::HealthCheckResponse::SERVICE_UNKNOWN;
  }
  bool Serving(const std::string& name) {
    return Health(name) == grpc::health::v1::HealthCheckResponse::SERVING;
  }

  // A generation of the stub: runs until somebody ends it.
  std::thread Generate(const std::string& id, grpc::Status* end, const std::string& plan_id = "") {
    return std::thread([this, id, end, plan_id] {
      const auto stub = v1::Inference::NewStub(inference_);
      grpc::ClientContext context;
      v1::GenerateRequest request;
      request.mutable_tokens()->add_ids(1);
      request.mutable_options()->set_request_id(id);
      if (!plan_id.empty()) request.mutable_options()->mutable_plan()->set_plan_id(plan_id);
      request.mutable_options()->mutable_output()->set_text(false);
      const auto reader = stub->GenerateStream(&context, request);
      v1::GenerateEvent event;
      while (reader->Read(&event)) {
      }
      *end = reader->Finish();
    });
  }
  bool Runs(const std::string& id) {
    testing::StubEngine* const engine = engine_;
    return engine != nullptr && engine->Has(id);
  }

  absl::StatusOr<LoadedModel> Loader(const LoadHooks& hooks) {
    while (!load_ && !hooks.cancel->load()) absl::SleepFor(absl::Milliseconds(5));
    if (hooks.cancel->load()) return absl::CancelledError("cancelled");
    if (!load_error_.ok()) return load_error_;
    auto engine = std::make_unique<testing::StubEngine>();
    engine_ = engine.get();
    LoadedModel loaded;
    loaded.engine = std::move(engine);
    loaded.name = "stub";
    return loaded;
  }

  const SystemClock clock_;
  std::atomic<bool> load_{false};
  absl::Status load_error_;
  std::atomic<testing::StubEngine*> engine_{nullptr};
  std::string ready_file_;
  std::unique_ptr<Server> server_;
  std::thread running_;
  std::atomic<int> exit_code_{-1};
  std::shared_ptr<grpc::Channel> inference_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

TEST_F(ServerTest, WhileLoadingItIsAliveAndNotReady) {
  Start();
  ASSERT_TRUE(Eventually([this] { return Serving("liveness"); }));
  EXPECT_FALSE(Serving("readiness"));
  EXPECT_FALSE(Serving(""));
  EXPECT_FALSE(Serving("morphserve.v1.Inference"));
  grpc::Status end;
  Generate("r1", &end).join();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(end.error_message(), "server is loading its model");
  v1::Load load;
  grpc::ClientContext context;
  ASSERT_TRUE(admin_->GetLoad(&context, v1::GetLoadRequest(), &load).ok());
  EXPECT_EQ(load.state(), "starting");
}

TEST_F(ServerTest, ReadyMeansHealthAndTheFileOfPorts) {
  StartAndLoad();
  for (const char* name :
       {"", "readiness", "liveness", "morphserve.v1.Inference", "morphserve.v1.Models"}) {
    EXPECT_TRUE(Serving(name)) << name;
  }
  std::stringstream text;
  text << std::ifstream(ready_file_).rdbuf();
  EXPECT_EQ(text.str(),
            absl::StrFormat("{\"inference\": %d, \"http\": %d, \"admin\": %d, \"pid\": %d}\n",
                            server_->ports().inference, server_->ports().http,
                            server_->ports().admin, getpid()));
}

TEST_F(ServerTest, AModelThatDoesNotLoadEndsTheProcessWithOne) {
  load_error_ = absl::InvalidArgumentError("tensor x is odd");
  Start();
  load_ = true;
  EXPECT_EQ(Join(), 1);
}

TEST_F(ServerTest, AStopWhileLoadingEndsWithZero) {
  Start();
  server_->Stop();
  EXPECT_EQ(Join(), 0);
}

TEST_F(ServerTest, AStalledEngineEndsLivenessUntilItMoves) {
  StartAndLoad({{"health.stall_s", "5"}});
  EngineLoad load;
  load.step_age_s = 4.9;
  engine_.load()->SetLoad(load);
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_TRUE(Serving("liveness"));
  load.step_age_s = 5.1;
  engine_.load()->SetLoad(load);
  EXPECT_TRUE(Eventually([this] { return !Serving("liveness") && !Serving("readiness"); }));
  load.step_age_s = 0;
  engine_.load()->SetLoad(load);
  EXPECT_TRUE(Eventually([this] { return Serving("liveness") && Serving("readiness"); }));
}

TEST_F(ServerTest, ADeviceThatFailedEndsTheProcessWithOne) {
  StartAndLoad({{"drain.withdraw_s", "1"}});
  EngineLoad load;
  load.device_lost = "an illegal memory access was encountered";
  engine_.load()->SetLoad(load);
  EXPECT_TRUE(Eventually([this] { return !Serving("liveness") && !Serving("readiness"); }));
  EXPECT_EQ(Join(), 1);
}

TEST_F(ServerTest, ADrainLetsRunningRequestsHaveTheirTimeThenEndsThem) {
  StartAndLoad({{"drain.timeout_s", "1"}});
  grpc::Status end;
  std::thread call = Generate("r1", &end);
  ASSERT_TRUE(Eventually([this] { return Runs("r1"); }));
  const absl::Time begin = absl::Now();
  server_->Stop();
  ASSERT_TRUE(Eventually([this] { return engine_.load()->stopped(); }));
  call.join();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(end.error_message(), HasSubstr("draining"));
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(900));
  EXPECT_EQ(Join(), 0);
}

TEST_F(ServerTest, AnOpenHealthWatchDoesNotHoldUpTheEnd) {
  StartAndLoad({{"drain.timeout_s", "600"}});
  grpc::ClientContext context;
  const auto stub = grpc::health::v1::Health::NewStub(inference_);
  const auto watch = stub->Watch(&context, grpc::health::v1::HealthCheckRequest());
  grpc::health::v1::HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  grpc::ClientContext load_context;
  const auto load_watch = admin_->WatchLoad(&load_context, v1::WatchLoadRequest());
  v1::Load load;
  ASSERT_TRUE(load_watch->Read(&load));
  const absl::Time begin = absl::Now();
  server_->Stop();
  EXPECT_EQ(Join(), 0);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(20));
  while (watch->Read(&response)) {
  }
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  while (load_watch->Read(&load)) {
  }
  EXPECT_EQ(load_watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, AHeldDrainRefusesUntilResumed) {
  StartAndLoad();
  v1::DrainResponse drained;
  grpc::ClientContext drain_context;
  ASSERT_TRUE(admin_->Drain(&drain_context, v1::DrainRequest(), &drained).ok());
  ASSERT_TRUE(Eventually([this] { return !Serving("readiness"); }));
  grpc::Status end;
  ASSERT_TRUE(Eventually([&] {
    Generate("r1", &end).join();
    return end.error_message() == "server is draining";
  }));
  EXPECT_TRUE(Serving("liveness"));
  v1::ResumeResponse resumed;
  grpc::ClientContext resume_context;
  ASSERT_TRUE(admin_->Resume(&resume_context, v1::ResumeRequest(), &resumed).ok());
  ASSERT_TRUE(Eventually([this] { return Serving("readiness"); }));
  std::thread call = Generate("r2", &end);
  EXPECT_TRUE(Eventually([this] { return Runs("r2"); }));
  engine_.load()->Cancel("r2", absl::AbortedError("over"));
  call.join();
  grpc::ClientContext again_context;
  EXPECT_EQ(admin_->Resume(&again_context, v1::ResumeRequest(), &resumed).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(ServerTest, AbortEndsTheNamedAndTellsTheUnknown) {
  StartAndLoad();
  grpc::Status ends[2];
  std::thread one = Generate("one", &ends[0]);
  std::thread two = Generate("two", &ends[1]);
  ASSERT_TRUE(Eventually([this] { return Runs("one") && Runs("two"); }));
  v1::AbortRequest request;
  request.add_request_ids("one");
  request.add_request_ids("none");
  v1::AbortResponse response;
  grpc::ClientContext context;
  ASSERT_TRUE(admin_->Abort(&context, request, &response).ok());
  EXPECT_EQ(response.aborted(), 1U);
  ASSERT_EQ(response.unknown_ids_size(), 1);
  EXPECT_EQ(response.unknown_ids(0), "none");
  one.join();
  EXPECT_EQ(ends[0].error_code(), grpc::StatusCode::ABORTED);
  EXPECT_TRUE(Runs("two"));
  v1::AbortRequest by_tenant;
  by_tenant.set_tenant("default");
  grpc::ClientContext tenant_context;
  ASSERT_TRUE(admin_->Abort(&tenant_context, by_tenant, &response).ok());
  EXPECT_EQ(response.aborted(), 1U);
  two.join();
}

TEST_F(ServerTest, AbortByPlanTakesThoseThatWaitForItToo) {
  StartAndLoad();
  testing::StubEngine* const engine = engine_;
  const std::string full = engine->plans().active()->id();
  grpc::Status end;
  std::thread call = Generate("one", &end, full);
  ASSERT_TRUE(Eventually([this] { return Runs("one"); }));
  v1::AbortResponse response;
  v1::AbortRequest unknown, other, named;
  unknown.set_plan_id("p-9");
  grpc::ClientContext c1, c2, c3;
  const grpc::Status refused = admin_->Abort(&c1, unknown, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::NOT_FOUND);
  other.set_plan_id("p-0123456789abcdef");
  ASSERT_TRUE(admin_->Abort(&c2, other, &response).ok());
  EXPECT_EQ(response.aborted(), 0U);
  named.set_plan_id(full.substr(0, 8));
  ASSERT_TRUE(admin_->Abort(&c3, named, &response).ok());
  EXPECT_EQ(response.aborted(), 1U);
  call.join();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(ServerTest, FlushingReachesTheEngineAsItWasAsked) {
  StartAndLoad();
  testing::StubEngine* const engine = engine_;
  const std::string full = engine->plans().active()->id();
  const auto flush = [this](const v1::FlushPrefixCacheRequest& request) {
    grpc::ClientContext context;
    v1::FlushPrefixCacheResponse response;
    const grpc::Status status = admin_->FlushPrefixCache(&context, request, &response);
    if (status.ok()) {
      EXPECT_EQ(response.entries(), 3U);
      EXPECT_EQ(response.bytes(), 4096U);
    }
    return status.error_code();
  };
  v1::FlushPrefixCacheRequest request;
  EXPECT_EQ(flush(request), grpc::StatusCode::OK);
  EXPECT_EQ(engine->asked(), "plan=* salt=*");
  request.set_plan_id(full.substr(0, 8));
  EXPECT_EQ(flush(request), grpc::StatusCode::OK);
  EXPECT_EQ(engine->asked(), "plan=" + full + " salt=*");
  request.set_salt("s");
  EXPECT_EQ(flush(request), grpc::StatusCode::INVALID_ARGUMENT) << "a salt of which tenant?";
  request.set_tenant("team");
  EXPECT_EQ(flush(request), grpc::StatusCode::OK);
  EXPECT_EQ(engine->asked(), "plan=" + full + " salt=team/s");
  request.clear_salt();
  EXPECT_EQ(flush(request), grpc::StatusCode::OK);
  EXPECT_EQ(engine->asked(), "plan=" + full + " salt=team/");
  request.set_plan_id("p-9");
  EXPECT_EQ(flush(request), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServerTest, TheLoadAndTheStatusPageTellPoolsAndPlans) {
  StartAndLoad();
  testing::StubEngine* const engine = engine_;
  const std::string full = engine->plans().active()->id();
  EngineLoad load;
  load.arena_bytes = 20000;  // Of pages of 1000 bytes and slots of 2000.
  load.cache.pages_total = 9;
  load.cache.pages_running = 4;
  load.cache.pages_cached = 1;
  load.cache.slots_total = 5;
  load.cache.slots_running = 2;
  load.cache.slots_free = 3;
  load.running_by_plan = {{full, 2}};
  engine->SetLoad(load);
  grpc::ClientContext context;
  v1::Load told;
  ASSERT_TRUE(admin_->GetLoad(&context, v1::GetLoadRequest(), &told).ok());
  EXPECT_EQ(told.pages().total(), 9U);
  EXPECT_EQ(told.pages().running(), 4U);
  EXPECT_EQ(told.slots().total(), 5U);
  EXPECT_EQ(told.slots().free(), 3U);
  EXPECT_EQ(told.arena_bytes().total(), 20000U);
  EXPECT_EQ(told.arena_bytes().running(), 8000U);
  EXPECT_EQ(told.arena_bytes().cached(), 1000U);
  EXPECT_EQ(told.arena_bytes().free(), 11000U);
  EXPECT_EQ(told.pointers().active().plan_id(), full);
  EXPECT_EQ(told.pointers().highest().epoch(), 1U);
  ASSERT_EQ(told.running_by_plan_size(), 1);
  EXPECT_EQ(told.running_by_plan().at(full), 2U);
  ServingState state(ServerConfig(), "digest", absl::Now());
  ServedModel model;
  model.engine = engine;
  model.name = "stub";
  state.SetReady(std::move(model));
  const std::string page = RenderStatus(state, ServerMetrics(), "");
  EXPECT_THAT(page, HasSubstr("  " + full + " FF 2F/0L"));
  EXPECT_THAT(page, HasSubstr("from start: active fastest balanced highest"));
  EXPECT_THAT(page, HasSubstr("slots: 5 in all, 2 running, 0 cached, 3 free, 0 quarantined"));
}

TEST_F(ServerTest, AdminRefusesWhatItCannotDo) {
  StartAndLoad();
  const auto code = [](const grpc::Status& status) { return status.error_code(); };
  v1::AbortResponse aborted;
  v1::PauseResponse paused;
  v1::SetLogLevelResponse level;
  v1::DrainResponse drained;
  grpc::ClientContext c1, c2, c4, c5, c6;
  EXPECT_EQ(code(admin_->Abort(&c1, v1::AbortRequest(), &aborted)),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(code(admin_->Pause(&c2, v1::PauseRequest(), &paused)), grpc::StatusCode::UNIMPLEMENTED);
  v1::SetLogLevelRequest loud;
  loud.set_level("loud");
  EXPECT_EQ(code(admin_->SetLogLevel(&c4, loud, &level)), grpc::StatusCode::INVALID_ARGUMENT);
  v1::SetLogLevelRequest module;
  module.set_level("info");
  module.set_module("engine");
  EXPECT_EQ(code(admin_->SetLogLevel(&c5, module, &level)), grpc::StatusCode::UNIMPLEMENTED);
  v1::DrainRequest endless;
  endless.mutable_timeout()->set_seconds(INT64_MAX);
  EXPECT_EQ(code(admin_->Drain(&c6, endless, &drained)), grpc::StatusCode::INVALID_ARGUMENT);
}

// Sends `bytes` to a unary or streaming method and waits for its status.
grpc::Status Call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                  const std::string& bytes) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  grpc::CompletionQueue queue;
  const grpc::Slice slice(bytes);
  const grpc::ByteBuffer request(&slice, 1);
  const auto call = stub.PrepareUnaryCall(&context, method, request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  queue.Shutdown();
  while (queue.Next(&tag, &ok)) {
  }
  return status;
}

std::vector<std::pair<bool, std::string>> AllMethods() {
  std::vector<std::pair<bool, std::string>> methods;  // {on the admin listener, path}.
  const auto* pool = google::protobuf::DescriptorPool::generated_pool();
  for (const std::string name : {"Inference", "Models", "Admin", "Morph"}) {
    const auto* service = pool->FindServiceByName("morphserve.v1." + name);
    EXPECT_NE(service, nullptr) << name;
    for (int i = 0; i < service->method_count(); ++i) {
      methods.emplace_back(name == "Admin" || name == "Morph",
                           "/" + service->full_name() + "/" + service->method(i)->name());
    }
  }
  return methods;
}

TEST_F(ServerTest, NoMethodAnswersWithoutACredential) {
  const std::string path = ::testing::TempDir() + absl::StrFormat("tokens-%d.yaml", getpid());
  std::ofstream(path) << "- sha256: " << std::string(64, 'a') << "\n  scopes: [read]\n";
  StartAndLoad({{"auth.tokens_file", path}});
  const auto admin = Connect(server_->ports().admin);
  const auto methods = AllMethods();
  EXPECT_GE(methods.size(), 25U);
  for (const auto& [on_admin, method] : methods) {
    EXPECT_EQ(Call(on_admin ? admin : inference_, method, "").error_code(),
              grpc::StatusCode::UNAUTHENTICATED)
        << method;
  }
  EXPECT_TRUE(Serving("readiness")) << "probes carry no credential";
  std::remove(path.c_str());
}

TEST_F(ServerTest, BytesThatDoNotParseAreTheCallersFaultEverywhere) {
  StartAndLoad();
  const auto admin = Connect(server_->ports().admin);
  for (const auto& [on_admin, method] : AllMethods()) {
    const grpc::Status status = Call(on_admin ? admin : inference_, method, "\x0a\xff\xff");
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
    EXPECT_FALSE(status.error_message().empty()) << method;
  }
}

TEST_F(ServerTest, AdminIsNotOnTheOpenListener) {
  StartAndLoad();
  EXPECT_EQ(Call(inference_, "/morphserve.v1.Admin/GetLoad", "").error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(
      Call(Connect(server_->ports().admin), "/morphserve.v1.Models/ListModels", "").error_code(),
      grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(ServerTest, APortInUseIsRefusedByItsSetting) {
  StartAndLoad();
  for (const char* key : {"listen.inference", "listen.http", "listen.admin"}) {
    LoadedSettings settings;
    settings.config.model.path = "stub";
    for (const char* other : {"listen.inference", "listen.http", "listen.admin"}) {
      ASSERT_TRUE(SetSetting(*FindSetting(other), "127.0.0.1:0", &settings.config).ok());
    }
    const std::string taken = absl::StrFormat("127.0.0.1:%d", server_->ports().inference);
    ASSERT_TRUE(SetSetting(*FindSetting(key), taken, &settings.config).ok());
    const auto second = Server::Create({.settings = settings, .ready_file = "", .clock = &clock_});
    ASSERT_FALSE(second.ok()) << key;
    EXPECT_THAT(std::string(second.status().message()), HasSubstr(key));
    EXPECT_THAT(std::string(second.status().message()), HasSubstr(taken));
  }
}

TEST(TrackedEngine, KnowsWhatIsLiveAndFreesAnIdBeforeItsEndIsTold) {
  auto inner = std::make_unique<testing::StubEngine>();
  testing::StubEngine* stub = inner.get();
  TrackedEngine engine(std::move(inner));
  const auto submit = [&](const std::string& id, std::shared_ptr<testing::EndSink> sink) {
    Request request;
    request.id = id;
    request.tenant = "t";
    request.plan_id = "p-" + id;
    return engine.Submit(std::move(request), std::move(sink));
  };
  auto a = std::make_shared<testing::EndSink>();
  auto b = std::make_shared<testing::EndSink>();
  ASSERT_TRUE(submit("a", a).ok());
  ASSERT_TRUE(submit("b", b).ok());
  const absl::Status twice = submit("a", a);
  EXPECT_EQ(twice.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ReasonOf(twice), "REQUEST_ID_IN_USE");
  ASSERT_EQ(engine.LiveRequests().size(), 2U);
  EXPECT_EQ(engine.LiveRequests()[0].tenant, "t");
  EXPECT_EQ(engine.LiveRequests()[0].plan_id, "p-a") << "asked for, not yet started";
  stub->Take("a")->OnDone({});
  EXPECT_TRUE(a->done);
  EXPECT_EQ(engine.live_count(), 1U);
  EXPECT_EQ(engine.EndAll(absl::UnavailableError("over")), 1U);
  EXPECT_EQ(b->error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine.live_count(), 0U);
  stub->Refuse(absl::ResourceExhaustedError("full"));
  EXPECT_FALSE(submit("c", a).ok());
  EXPECT_EQ(engine.live_count(), 0U);
}

}  // namespace
}  // namespace morphserve
