// The services end to end over a real connection: the stream contract, unary answers, metadata,
// refusals with their details, and what a client can send that is no message at all.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "server/raw_message.h"
#include "server/request_id.h"
#include "tests/server/service_fixture.h"

namespace morphserve {
namespace {

using ::testing::ElementsAre;
using testing::FakeEngine;
using testing::FinishedAs;
using testing::HasMetric;
using ::testing::HasSubstr;
using testing::Header;
using testing::Play;
using testing::ReasonIn;
using testing::ServiceFixture;
using testing::StartedOnPlan;
using testing::TokensOf;

v1::GenerateRequest TextRequest(const std::string& text) {
  v1::GenerateRequest request;
  request.set_text(text);
  return request;
}

v1::ChatRequest ChatOf(const std::string& content) {
  v1::ChatRequest request;
  v1::ChatMessage* message = request.add_messages();
  message->set_role("user");
  message->set_content(content);
  return request;
}

// Reads a stream to its end; joined text per choice, and the kinds of messages with runs of deltas
// of one choice as one.
struct StreamRead {
  std::string shape;
  std::map<uint32_t, std::string> text;
  std::map<uint32_t, uint32_t> tokens;
  v1::Started started;
  v1::Done done;
  grpc::Status status;
};

StreamRead ReadAll(grpc::ClientReader<v1::GenerateEvent>* reader) {
  StreamRead out;
  v1::GenerateEvent event;
  std::string last;
  while (reader->Read(&event)) {
    std::string kind;
    switch (event.event_case()) {
      case v1::GenerateEvent::kStarted:
        kind = "started ";
        out.started = event.started();
        break;
      case v1::GenerateEvent::kDelta:
        kind = "deltas ";
        out.text[event.delta().index()] += event.delta().text();
        out.tokens[event.delta().index()] += event.delta().tokens();
        break;
      case v1::GenerateEvent::kFinished:
        kind = absl::StrFormat("finished%d ", event.finished().index());
        break;
      case v1::GenerateEvent::kDone:
        kind = "done ";
        out.done = event.done();
        break;
      case v1::GenerateEvent::EVENT_NOT_SET: kind = "nothing "; break;
    }
    if (kind != last) out.shape += kind;
    last = kind;
  }
  out.status = reader->Finish();
  return out;
}

TEST(InferenceService, StreamsByTheContract) {
  ServiceFixture fixture;
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "my-id");
  const std::string trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  context.AddMetadata("traceparent", trace);
  v1::GenerateRequest request = TextRequest("abc");
  request.mutable_options()->mutable_sampling()->set_seed(77);
  request.mutable_options()->mutable_stopping()->set_max_tokens(9);
  const auto reader = fixture.stub().GenerateStream(&context, request);
  const auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  EXPECT_EQ(live->request.id, "my-id");
  EXPECT_EQ(live->request.tenant, "default");
  reader->WaitForInitialMetadata();  // Comes at acceptance, before any event.
  EXPECT_EQ(Header(context.GetServerInitialMetadata(), "morphserve-request-id"), "my-id");
  std::thread engine([&live] { Play(live->sink.get(), "hello world"); });
  const StreamRead read = ReadAll(reader.get());
  engine.join();
  ASSERT_TRUE(read.status.ok()) << read.status.error_message();
  EXPECT_EQ(read.shape, "started deltas finished0 done ");
  EXPECT_EQ(read.text.at(0), "hello world");
  EXPECT_EQ(read.tokens.at(0), 11u);
  EXPECT_EQ(read.started.request_id(), "my-id");
  EXPECT_EQ(read.started.model(), "tiny");
  EXPECT_EQ(read.started.plan().plan_id(), "p-0123456789abcdef");
  EXPECT_EQ(read.started.plan().epoch(), 1u);
  EXPECT_EQ(read.started.prompt_tokens(), 4u);
  EXPECT_EQ(read.started.max_tokens(), 9u);
  EXPECT_EQ(read.started.seed(), 77u);
  EXPECT_EQ(read.done.usage().completion_tokens(), 11u);
  EXPECT_EQ(read.done.timings().tpot_ms(), 1.5);
  const auto& trailing = context.GetServerTrailingMetadata();
  EXPECT_EQ(Header(trailing, "morphserve-request-id"), "my-id");
  EXPECT_EQ(Header(trailing, "morphserve-plan"), "p-0123456789abcdef");
  EXPECT_EQ(Header(trailing, "traceparent"), trace);
}

TEST(InferenceService, StreamsSeveralChoicesIdsAndLogprobs) {
  ServiceFixture fixture;
  grpc::ClientContext context;
  v1::ChatRequest request = ChatOf("hi");
  request.mutable_options()->mutable_sampling()->set_n(2);
  request.mutable_options()->mutable_output()->set_token_ids(true);
  request.mutable_options()->mutable_output()->set_logprobs(1);
  const auto reader = fixture.stub().ChatStream(&context, request);
  const auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  EXPECT_EQ(live->request.sampling.n, 2);
  EXPECT_EQ(live->request.output.logprobs, 1);
  TokensEvent tokens = TokensOf(1, "x");
  tokens.logprobs = {{.chosen = {'x', -0.5F}, .rank = 2, .top = {{256, -0.25F}}}};
  live->sink->OnStarted(StartedOnPlan());
  live->sink->OnTokens(TokensOf(0, "a"));
  live->sink->OnTokens(tokens);
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.delta().index(), 0u);
  EXPECT_THAT(event.delta().token_ids(), ElementsAre('a'));
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.delta().index(), 1u);
  ASSERT_EQ(event.delta().logprobs_size(), 1);
  const v1::TokenLogprob& logprob = event.delta().logprobs(0);
  EXPECT_EQ(logprob.chosen().id(), static_cast<uint32_t>('x'));
  EXPECT_EQ(logprob.chosen().piece(), "x");
  EXPECT_EQ(logprob.chosen().logprob(), -0.5F);
  EXPECT_EQ(logprob.rank(), 2u);
  EXPECT_EQ(logprob.top(0).piece(), "<|end|>");
  FinishedEvent stopped = FinishedAs(0, FinishReason::kStop, 1);
  stopped.stop = "###";
  live->sink->OnFinished(stopped);
  live->sink->OnFinished(FinishedAs(1, FinishReason::kLength, 1));
  live->sink->OnDone({});
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.finished().reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(event.finished().stop(), "###");
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.finished().reason(), v1::FINISH_REASON_LENGTH);
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_TRUE(event.has_done());
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_TRUE(reader->Finish().ok());
}

TEST(InferenceService, AUnaryAnswerIsWhatTheStreamAddsUpTo) {
  ServiceFixture fixture;
  std::thread engine([&fixture] {
    const auto live = fixture.engine().Take();
    ASSERT_TRUE(live.has_value());
    Play(live->sink.get(), "hello");
  });
  grpc::ClientContext context;
  v1::GenerateResponse response;
  v1::GenerateRequest request = TextRequest("abc");
  request.mutable_options()->mutable_output()->set_token_ids(true);
  const grpc::Status status = fixture.stub().Generate(&context, request, &response);
  engine.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.completions_size(), 1);
  EXPECT_EQ(response.completions(0).text(), "hello");
  EXPECT_THAT(response.completions(0).token_ids(), ElementsAre('h', 'e', 'l', 'l', 'o'));
  EXPECT_EQ(response.completions(0).finished().reason(), v1::FINISH_REASON_EOS);
  EXPECT_EQ(response.done().usage().completion_tokens(), 5u);
  EXPECT_TRUE(IsValidRequestId(response.started().request_id()));
  EXPECT_EQ(Header(context.GetServerInitialMetadata(), "morphserve-request-id"),
            response.started().request_id());
  EXPECT_EQ(Header(context.GetServerTrailingMetadata(), "morphserve-plan"), "p-0123456789abcdef");
}

TEST(InferenceService, AChatAnswersAsTheAssistant) {
  ServiceFixture fixture;
  std::thread engine([&fixture] {
    const auto live = fixture.engine().Take();
    ASSERT_TRUE(live.has_value());
    Play(live->sink.get(), "fine");
  });
  grpc::ClientContext context;
  v1::ChatResponse response;
  const grpc::Status status = fixture.stub().Chat(&context, ChatOf("how are you"), &response);
  engine.join();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.choices_size(), 1);
  EXPECT_EQ(response.choices(0).message().role(), "assistant");
  EXPECT_EQ(response.choices(0).message().content(), "fine");
}

TEST(InferenceService, PromptLogprobsComeWithDone) {
  ServiceFixture fixture;
  grpc::ClientContext context;
  v1::GenerateRequest request = TextRequest("abc");
  request.mutable_options()->mutable_output()->set_prompt_logprobs(0);
  const auto reader = fixture.stub().GenerateStream(&context, request);
  const auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  EXPECT_EQ(live->request.output.prompt_logprobs, 0);
  DoneEvent done;
  done.prompt_logprobs = {{.chosen = {'a', -1.0F}, .rank = 1, .top = {}}};
  live->sink->OnStarted(StartedOnPlan());
  live->sink->OnFinished(FinishedAs(0, FinishReason::kLength, 0));
  live->sink->OnDone(done);
  const StreamRead read = ReadAll(reader.get());
  ASSERT_EQ(read.done.prompt_logprobs_size(), 1);
  EXPECT_EQ(read.done.prompt_logprobs(0).chosen().piece(), "a");
}

TEST(InferenceService, AnErrorOfTheEngineFollowsTheTextSoFar) {
  ServiceFixture fixture;
  grpc::ClientContext context;
  const auto reader = fixture.stub().GenerateStream(&context, TextRequest("abc"));
  const auto live = fixture.engine().Take();
  ASSERT_TRUE(live.has_value());
  live->sink->OnStarted(StartedOnPlan());
  live->sink->OnTokens(TokensOf(0, "word "));
  v1::GenerateEvent event;
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_TRUE(event.has_started());
  ASSERT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.delta().text(), "word ");
  live->sink->OnError(WithReason(absl::DataLossError("logits are not finite"), "NON_FINITE"));
  EXPECT_FALSE(reader->Read(&event));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_EQ(ReasonIn(status), "NON_FINITE");
  EXPECT_EQ(Header(context.GetServerTrailingMetadata(), "grpc-retry-pushback-ms"), "100");
  EXPECT_EQ(Header(context.GetServerTrailingMetadata(), "morphserve-plan"), "p-0123456789abcdef");
}

TEST(InferenceService, ARefusalOfTheEngineIsATrailersOnlyAnswer) {
  ServiceFixture fixture;
  fixture.engine().Refuse(
      WithReason(absl::ResourceExhaustedError("1024 requests wait; limit is 1024"), "QUEUE_FULL"));
  grpc::ClientContext context;
  const auto reader = fixture.stub().GenerateStream(&context, TextRequest("abc"));
  const StreamRead read = ReadAll(reader.get());
  EXPECT_EQ(read.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonIn(read.status), "QUEUE_FULL");
  // Acceptance was never told, so a client may retry by itself.
  EXPECT_EQ(Header(context.GetServerInitialMetadata(), "morphserve-request-id"), "");
  EXPECT_EQ(Header(context.GetServerTrailingMetadata(), "grpc-retry-pushback-ms"), "1000");
  EXPECT_NE(Header(context.GetServerTrailingMetadata(), "morphserve-request-id"), "");
  EXPECT_TRUE(HasMetric(&fixture.metrics(), "morphserve_admission_rejections_total",
                        "reason=\"QUEUE_FULL\"", "1"));
}

TEST(InferenceService, FaultsNameTheRequestAndItsFields) {
  ServiceFixture fixture;
  grpc::ClientContext context;
  v1::GenerateRequest request = TextRequest("abc");
  request.mutable_options()->set_request_id("bad one");
  v1::GenerateResponse response;
  grpc::Status status = fixture.stub().Generate(&context, request, &response);
  EXPECT_EQ(ReasonIn(status), "FIELD_INVALID");
  EXPECT_THAT(status.error_message(), HasSubstr("options.request_id"));
  request.mutable_options()->set_request_id("good");
  request.mutable_options()->mutable_sampling()->set_temperature(std::nanf(""));
  grpc::ClientContext again;
  status = fixture.stub().Generate(&again, request, &response);
  EXPECT_EQ(ReasonIn(status), "FIELD_INVALID");
  EXPECT_EQ(Header(again.GetServerTrailingMetadata(), "morphserve-request-id"), "good");
}

// Sends bytes as they are to a method.
grpc::Status CallRaw(ServiceFixture* fixture, const std::string& method, const std::string& bytes) {
  grpc::GenericStub stub(fixture->channel());
  grpc::ClientContext context;
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

TEST(InferenceService, BytesThatAreNoMessageAreInvalid) {
  ServiceFixture fixture;
  // text = 2 (0x12), three bytes; then: an invalid UTF-8 string, a length past the end, an unknown
  // wire type, a lone continuation of a varint.
  const std::vector<std::string> cases = {"\x12\x03\xFF\xFE\xFD",
                                          "\x12\x7F"
                                          "abc",
                                          "\x17", "\xFF\xFF\xFF"};
  for (const char* method : {"Generate", "GenerateStream", "Chat", "ChatStream", "Tokenize",
                             "Detokenize", "CountTokens"}) {
    for (const std::string& bytes : cases) {
      const grpc::Status status =
          CallRaw(&fixture, absl::StrFormat("/morphserve.v1.Inference/%s", method), bytes);
      if (std::string(method) == "Detokenize" && bytes == cases[0]) continue;  // Packed ids there.
      EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
      EXPECT_EQ(ReasonIn(status), "FIELD_INVALID") << method;
    }
  }
  const grpc::Status status =
      CallRaw(&fixture, "/morphserve.v1.Models/GetModelInfo", "\x0A\x01\xFF");
  EXPECT_EQ(ReasonIn(status), "FIELD_INVALID");
}

TEST(InferenceService, PromptsAboveTheLimitsAreRefusedAndTheServerLives) {
  ServiceFixture fixture;
  v1::GenerateResponse response;
  {
    grpc::ClientContext context;
    const grpc::Status status =
        fixture.stub().Generate(&context, TextRequest(std::string(10 << 20, 'a')), &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);  // gRPC's own.
  }
  {
    grpc::ClientContext context;
    const grpc::Status status =
        fixture.stub().Generate(&context, TextRequest(std::string(5 << 20, 'a')), &response);
    EXPECT_EQ(ReasonIn(status), "FIELD_INVALID");
  }
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text(std::string(1 << 20, 'a'));
    v1::TokenizeResponse tokens;
    ASSERT_TRUE(fixture.stub().Tokenize(&context, request, &tokens).ok());
    EXPECT_EQ(tokens.token_ids_size(), (1 << 20) + 1);
  }
}

TEST(InferenceService, UnknownModelsAreNotFoundByEveryMethod) {
  ServiceFixture fixture;
  v1::GenerateRequest generate = TextRequest("a");
  generate.set_model("other");
  v1::ChatRequest chat = ChatOf("a");
  chat.set_model("other");
  v1::TokenizeRequest tokenize;
  tokenize.set_model("other");
  v1::GetModelInfoRequest info;
  info.set_model("other");
  const auto expect = [](const grpc::Status& status) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
    EXPECT_EQ(ReasonIn(status), "MODEL_NOT_FOUND");
  };
  grpc::ClientContext contexts[4];
  v1::GenerateResponse generated;
  expect(fixture.stub().Generate(&contexts[0], generate, &generated));
  v1::ChatResponse chatted;
  expect(fixture.stub().Chat(&contexts[1], chat, &chatted));
  v1::TokenizeResponse tokens;
  expect(fixture.stub().Tokenize(&contexts[2], tokenize, &tokens));
  v1::ModelInfo model;
  expect(fixture.models().GetModelInfo(&contexts[3], info, &model));
}

TEST(InferenceService, NothingIsServedWhileTheModelLoadsOrAfterTheDrain) {
  ServiceFixture fixture(ServerConfig(), "", /*ready=*/false);
  const auto reason = [&fixture] {
    grpc::ClientContext context;
    v1::GenerateResponse response;
    return ReasonIn(fixture.stub().Generate(&context, TextRequest("a"), &response));
  };
  EXPECT_EQ(reason(), "STARTING");
  {
    grpc::ClientContext context;
    v1::ListModelsResponse response;
    EXPECT_EQ(ReasonIn(fixture.models().ListModels(&context, {}, &response)), "STARTING");
  }
  {
    grpc::ClientContext context;
    v1::ServerInfo info;
    ASSERT_TRUE(fixture.models().GetServerInfo(&context, {}, &info).ok());
    EXPECT_EQ(info.state(), "starting");
    EXPECT_EQ(info.arena_bytes(), 0u);
  }
  fixture.SetReady();
  fixture.state().BeginDrain();
  fixture.state().RefuseRequests();
  EXPECT_EQ(reason(), "DRAINING");
}

// The token "secret" with scope read only.
constexpr char kReadOnly[] =
    "- sha256: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n"
    "  scopes: [read]\n";

TEST(InferenceService, EveryMethodAsksForACredential) {
  ServiceFixture fixture(ServerConfig(), kReadOnly);
  for (const char* method :
       {"Inference/Generate", "Inference/GenerateStream", "Inference/Chat", "Inference/ChatStream",
        "Inference/Tokenize", "Inference/Detokenize", "Inference/CountTokens", "Models/ListModels",
        "Models/GetModelInfo", "Models/GetServerInfo"}) {
    const grpc::Status status = CallRaw(&fixture, absl::StrFormat("/morphserve.v1.%s", method), "");
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << method;
    EXPECT_EQ(ReasonIn(status), "CREDENTIAL") << method;
  }
}

TEST(InferenceService, AScopeForReadingDoesNotGenerate) {
  ServiceFixture fixture(ServerConfig(), kReadOnly);
  grpc::ClientContext contexts[2];
  for (auto& context : contexts) context.AddMetadata("authorization", "Bearer secret");
  v1::CountTokensRequest count;
  count.set_text("abc");
  v1::CountTokensResponse counted;
  const grpc::Status allowed = fixture.stub().CountTokens(&contexts[0], count, &counted);
  EXPECT_TRUE(allowed.ok()) << allowed.error_message();
  EXPECT_EQ(counted.tokens(), 4u);
  v1::GenerateResponse response;
  const grpc::Status refused = fixture.stub().Generate(&contexts[1], TextRequest("a"), &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(ReasonIn(refused), "SCOPE_MISSING");
}

TEST(InferenceService, TextCallsAnswer) {
  ServiceFixture fixture;
  {
    grpc::ClientContext context;
    v1::DetokenizeRequest request;
    for (const char c : std::string("h\xE2\x82")) request.add_token_ids(static_cast<uint8_t>(c));
    v1::DetokenizeResponse response;
    ASSERT_TRUE(fixture.stub().Detokenize(&context, request, &response).ok());
    EXPECT_EQ(response.text(), "h");
    EXPECT_EQ(response.incomplete_tail(), "\xE2\x82");
  }
  {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    *request.mutable_chat() = ChatOf("x");
    v1::TokenizeResponse response;
    ASSERT_TRUE(fixture.stub().Tokenize(&context, request, &response).ok());
    EXPECT_EQ(response.token_ids(0), 257u);
  }
}

TEST(InferenceService, AnAnswerAboveTheSendLimitIsRefusedNotTruncated) {
  ServerConfig config;
  config.grpc.send_bytes_max = 1000;
  ServiceFixture fixture(config);
  std::thread engine([&fixture] {
    const auto live = fixture.engine().Take();
    ASSERT_TRUE(live.has_value());
    live->sink->OnStarted(StartedOnPlan());
    for (int i = 0; i < 2; ++i) live->sink->OnTokens(TokensOf(0, std::string(600, 'a')));
  });
  grpc::ClientContext context;
  v1::GenerateResponse response;
  const grpc::Status status = fixture.stub().Generate(&context, TextRequest("abc"), &response);
  engine.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(ReasonIn(status), "RESPONSE_TOO_LARGE");
  EXPECT_EQ(fixture.engine().WaitForCancels(1).size(), 1u);
}

TEST(ModelsService, DescribesTheOnlyModel) {
  ServiceFixture fixture;
  grpc::ClientContext contexts[3];
  v1::ListModelsResponse list;
  ASSERT_TRUE(fixture.models().ListModels(&contexts[0], {}, &list).ok());
  EXPECT_THAT(list.models(), ElementsAre("tiny"));
  v1::ModelInfo info;
  ASSERT_TRUE(fixture.models().GetModelInfo(&contexts[1], {}, &info).ok());
  EXPECT_EQ(info.name(), "tiny");
  EXPECT_EQ(info.family(), "llama");
  EXPECT_EQ(info.parameters(), 1234u);
  EXPECT_EQ(info.layers(), 3u);
  EXPECT_EQ(info.vocab_size(), 260u);
  EXPECT_EQ(info.context_tokens_max(), 512u);
  EXPECT_FALSE(info.morphable());
  EXPECT_TRUE(info.chat_template());
  EXPECT_THAT(info.capabilities(), ElementsAre("text", "chat", "system_role", "generation_prompt"));
  EXPECT_EQ(info.defaults().top_k(), 7u);
  EXPECT_EQ(info.defaults().temperature(), 1);
  EXPECT_FALSE(info.defaults().has_seed());
  ASSERT_EQ(info.plans_size(), 1);
  EXPECT_EQ(info.plans(0).layers_size(), 3);
  EXPECT_EQ(info.plans(0).layers(0), v1::LAYER_KIND_FULL);
  const std::string full = fixture.engine().plans().active()->id();
  EXPECT_EQ(info.plans(0).plan_id(), full);
  EXPECT_EQ(info.pointers().active().plan_id(), full);
  EXPECT_EQ(info.pointers().fastest().plan_id(), full);
  EXPECT_EQ(info.branch_kind(), "");
  EXPECT_EQ(info.state_dtype(), "");
  v1::ServerInfo server;
  ASSERT_TRUE(fixture.models().GetServerInfo(&contexts[2], {}, &server).ok());
  EXPECT_EQ(server.state(), "ready");
  EXPECT_EQ(server.page_tokens(), 64u);
  EXPECT_EQ(server.arena_bytes(), 1u << 20);
  EXPECT_EQ(server.started_at().seconds(), 1'700'000'000);
  EXPECT_EQ(server.config_digest(), "digest");
  EXPECT_NE(server.instance_id(), "");
  EXPECT_NE(server.version(), "");
}

TEST(ModelsService, DescribesBranchesAndThePlansOfTheTable) {
  ServiceFixture fixture;
  testing::FakeEngine& engine = fixture.engine();
  engine.AddBranches();
  engine.mutable_info()->branch_kind = "gated_delta_window";
  engine.mutable_info()->branch_parameters = 77;
  ASSERT_TRUE(engine.plans().Register(testing::FakePlan("LFL"), "", "request").ok());
  ASSERT_TRUE(engine.plans().Point(PlanPointer::kFastest, testing::FakePlan("LFL")->id()).ok());
  grpc::ClientContext context;
  v1::ModelInfo info;
  ASSERT_TRUE(fixture.models().GetModelInfo(&context, {}, &info).ok());
  EXPECT_TRUE(info.morphable());
  EXPECT_EQ(info.branch_kind(), "gated_delta_window");
  EXPECT_EQ(info.branch_parameters(), 77u);
  EXPECT_EQ(info.state_dtype(), "F32");
  ASSERT_EQ(info.plans_size(), 2);
  EXPECT_EQ(info.plans(1).full_layers(), 1u);
  EXPECT_EQ(info.pointers().fastest().plan_id(), info.plans(1).plan_id());
  EXPECT_EQ(info.pointers().active().plan_id(), info.plans(0).plan_id());
}

}  // namespace
}  // namespace morphserve
