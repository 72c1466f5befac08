// The whole engine with its thread and the real kernels on random tiny models. Catches: refusals
// that are unclear or late, bits that depend on batch, chunk, threads or preemption, ends that
// leave something behind.
#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "engine/reasons.h"
#include "tests/engine/tiny_checkpoint.h"
#include "tests/engine/waiting_sink.h"

namespace morphserve {
namespace {

const SystemClock kClock;

EngineOptions SmallOptions() {
  EngineOptions options;
  options.threads = 2;
  options.arena_bytes = int64_t{8} << 20;
  return options;
}

std::unique_ptr<Engine> MakeEngine(const TinyOptions& tiny, const EngineOptions& options) {
  auto engine =
      Engine::Create(MakeTinyCheckpoint(tiny), options, &kClock, nullptr, nullptr, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

Request MakeRequest(const std::string& id, int32_t length, int32_t max_tokens, uint32_t salt) {
  Request request;
  request.id = id;
  std::mt19937 random(salt);
  for (int32_t i = 0; i < length; ++i) {
    request.prompt.push_back(static_cast<int32_t>(random() % 200));
  }
  request.stopping.max_tokens = max_tokens;
  request.sampling.seed = salt;
  request.output.logprobs = 3;
  request.received = kClock.Now();
  return request;
}

// Tokens and log-probabilities as one comparable value: equal only when every bit of them is.
std::vector<std::pair<int32_t, float>> Bits(const RecordingSink& sink, int32_t choice = 0) {
  std::vector<std::pair<int32_t, float>> out;
  const auto it = sink.logprobs.find(choice);
  if (it == sink.logprobs.end()) return out;
  for (const TokenLogprobs& entry : it->second) {
    out.emplace_back(entry.chosen.id, entry.chosen.logprob);
    for (const LogprobEntry& top : entry.top) out.emplace_back(top.id, top.logprob);
  }
  return out;
}

std::vector<std::pair<int32_t, float>> RunAlone(Engine* engine, Request request) {
  auto sink = std::make_shared<WaitingSink>();
  request.id += "-alone";
  EXPECT_EQ(engine->Submit(std::move(request), sink), absl::OkStatus());
  sink->WaitForEnd();
  EXPECT_TRUE(sink->record.done.has_value());
  return Bits(sink->record);
}

struct Variant {
  const char* name;
  TinyOptions tiny;
};

std::vector<Variant> Variants() {
  return {
      {"llama", {}},
      {"bf16", {.dtype = DType::kBF16, .hidden = 72, .heads = 3, .kv_heads = 3, .head_dim = 24}},
      {"q8_0", {.dtype = DType::kQ8_0}},
      {"window", {.window = 100, .tied_head = false}},
      {"bias", {.heads = 4, .kv_heads = 1, .head_dim = 20, .qkv_bias = true}},
      {"qk_norm", {.qk_norm = true, .tied_head = false}}};
}

TEST(Engine, TheBitsOfARequestDependOnNothingAroundIt) {
  for (const Variant& variant : Variants()) {
    SCOPED_TRACE(variant.name);
    EngineOptions options = SmallOptions();
    const std::unique_ptr<Engine> calm = MakeEngine(variant.tiny, options);
    // Other threads, chunks and batches; memory for few sequences, so that some are preempted.
    options.threads = 1;
    options.step_tokens_max = 64;
    options.sequences_max = 6;
    options.growth_tokens = 0;
    options.context_tokens = 512;
    options.arena_bytes = int64_t{2} << 20;
    const std::unique_ptr<Engine> busy = MakeEngine(variant.tiny, options);
    std::vector<Request> requests;
    for (uint32_t i = 0; i < 24; ++i) {
      requests.push_back(MakeRequest("r" + std::to_string(i),
                                     1 + static_cast<int32_t>(i * 17 % 290),
                                     20 + static_cast<int32_t>(i), i));
      if (i % 3 == 0) requests.back().sampling.temperature = 0;
    }
    std::vector<std::shared_ptr<WaitingSink>> sinks;
    for (const Request& request : requests) {
      sinks.push_back(std::make_shared<WaitingSink>());
      ASSERT_EQ(busy->Submit(request, sinks.back()), absl::OkStatus());
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      sinks[i]->WaitForEnd();
      ASSERT_TRUE(sinks[i]->record.done.has_value());
      EXPECT_EQ(Bits(sinks[i]->record), RunAlone(calm.get(), requests[i])) << requests[i].id;
    }
  }
}

TEST(Engine, PreemptedSequencesGiveTheSameBits) {
  EngineOptions options = SmallOptions();
  const std::unique_ptr<Engine> calm = MakeEngine({.layers = 6}, options);
  options.growth_tokens = 0;
  options.context_tokens = 320;
  options.sequences_max = 16;
  // A page of this model has 8 KiB: one super-block of 2 MiB holds 256, that is 42 a layer; 80 are
  // wanted.
  options.arena_bytes = int64_t{2} << 20;
  const std::unique_ptr<Engine> tight = MakeEngine({.layers = 6}, options);
  std::vector<Request> requests;
  std::vector<std::shared_ptr<WaitingSink>> sinks;
  for (uint32_t i = 0; i < 16; ++i) {
    requests.push_back(MakeRequest("p" + std::to_string(i), 20, 250, i));
    sinks.push_back(std::make_shared<WaitingSink>());
    ASSERT_EQ(tight->Submit(requests.back(), sinks.back()), absl::OkStatus());
  }
  int32_t preemptions = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    sinks[i]->WaitForEnd();
    ASSERT_TRUE(sinks[i]->record.done.has_value());
    preemptions += sinks[i]->record.done->preemptions;
    EXPECT_EQ(Bits(sinks[i]->record), RunAlone(calm.get(), requests[i]));
  }
  EXPECT_GT(preemptions, 0) << "the test did not reach what it is for";
}

TEST(Engine, ChoicesEqualSeparateRuns) {
  const std::unique_ptr<Engine> engine = MakeEngine({}, SmallOptions());
  Request request = MakeRequest("n", 100, 30, 5);
  request.sampling.n = 4;
  auto sink = std::make_shared<WaitingSink>();
  ASSERT_EQ(engine->Submit(request, sink), absl::OkStatus());
  sink->WaitForEnd();
  request.sampling.n = 1;
  EXPECT_EQ(Bits(sink->record, 0), RunAlone(engine.get(), request));
  EXPECT_NE(Bits(sink->record, 0), Bits(sink->record, 1));
}

TEST(Engine, PromptLogprobsAreThoseOfForcedDecoding) {
  const std::unique_ptr<Engine> engine = MakeEngine({}, SmallOptions());
  // Generate greedily, then score prompt + answer: the answer's log-probabilities must come back,
  // bit for bit.
  Request request = MakeRequest("g", 70, 20, 3);
  request.sampling.temperature = 0;
  auto first = std::make_shared<WaitingSink>();
  ASSERT_EQ(engine->Submit(request, first), absl::OkStatus());
  first->WaitForEnd();
  Request scored = request;
  scored.id = "scored";
  const std::vector<int32_t>& answer = first->record.tokens[0];
  scored.prompt.insert(scored.prompt.end(), answer.begin(), answer.end());
  scored.output.prompt_logprobs = 0;
  scored.stopping.max_tokens = 1;
  auto second = std::make_shared<WaitingSink>();
  ASSERT_EQ(engine->Submit(scored, second), absl::OkStatus());
  second->WaitForEnd();
  const auto& prompt = second->record.done->prompt_logprobs;
  ASSERT_EQ(prompt.size(), 89u);
  for (size_t i = 0; i < answer.size(); ++i) {
    EXPECT_EQ(prompt[69 + i].chosen.id, answer[i]);
    EXPECT_EQ(prompt[69 + i].chosen.logprob, first->record.logprobs[0][i].chosen.logprob);
  }
}

TEST(Engine, RefusesWithReasonsAndNeverCallsTheSink) {
  EngineOptions options = SmallOptions();
  options.queue_requests_max = 2;
  options.sequences_max = 1;
  const std::unique_ptr<Engine> engine = MakeEngine({}, options);
  const auto refusal = [&](const Request& request) {
    auto sink = std::make_shared<WaitingSink>();
    const absl::Status status = engine->Submit(request, sink);
    EXPECT_FALSE(sink->record.ended());
    return ReasonOf(status);
  };
  EXPECT_EQ(refusal(MakeRequest("a", 0, 5, 1)), reason::kFieldInvalid);
  Request outside = MakeRequest("b", 5, 5, 1);
  outside.prompt[2] = 200;
  EXPECT_EQ(refusal(outside), reason::kFieldInvalid);
  EXPECT_EQ(refusal(MakeRequest("c", 1000, 100, 1)), reason::kContextTooLong);
  Request late = MakeRequest("d", 5, 5, 1);
  late.deadline = kClock.Now() - absl::Seconds(1);
  EXPECT_EQ(refusal(late), reason::kDeadlinePassed);
  late.prompt.assign(900, 1);
  late.deadline = kClock.Now() + absl::Microseconds(300);
  const absl::Status unreachable = engine->Submit(late, std::make_shared<WaitingSink>());
  EXPECT_EQ(ReasonOf(unreachable), reason::kDeadlineUnreachable);
  EXPECT_EQ(MetadataOf(unreachable, "left_ms"), "0");
  EXPECT_NE(MetadataOf(unreachable, "needed_ms"), "");
  EXPECT_EQ(MetadataOf(unreachable, "basis"), "prefill");
  Request planned = MakeRequest("e", 5, 5, 1);
  planned.plan_id = "p-0000000000000000";
  EXPECT_EQ(refusal(planned), reason::kPlanNotFound);

  auto running = std::make_shared<WaitingSink>();
  ASSERT_EQ(engine->Submit(MakeRequest("run", 5, 900, 1), running), absl::OkStatus());
  running->WaitForTokens(1);
  EXPECT_EQ(refusal(MakeRequest("run", 5, 5, 1)), reason::kRequestIdInUse);
  auto wait1 = std::make_shared<WaitingSink>();
  auto wait2 = std::make_shared<WaitingSink>();
  ASSERT_EQ(engine->Submit(MakeRequest("w1", 5, 5, 1), wait1), absl::OkStatus());
  ASSERT_EQ(engine->Submit(MakeRequest("w2", 5, 5, 1), wait2), absl::OkStatus());
  EXPECT_EQ(refusal(MakeRequest("w3", 5, 5, 1)), reason::kQueueFull);
  EXPECT_EQ(engine->GetLoad().waiting, 2);
  engine->StopAdmission();
  EXPECT_EQ(refusal(MakeRequest("x", 5, 5, 1)), reason::kDraining);
  EXPECT_TRUE(engine->Cancel("run", absl::CancelledError("enough")));
  wait1->WaitForEnd();
  wait2->WaitForEnd();
  EXPECT_TRUE(wait2->record.done.has_value());
  EXPECT_FALSE(engine->Cancel("run", absl::CancelledError("again")));
}

TEST(Engine, ItsEndEndsWhatRunsAndWaits) {
  auto running = std::make_shared<WaitingSink>();
  auto waiting = std::make_shared<WaitingSink>();
  {
    EngineOptions options = SmallOptions();
    options.sequences_max = 1;
    const std::unique_ptr<Engine> engine = MakeEngine({}, options);
    ASSERT_EQ(engine->Submit(MakeRequest("a", 5, 900, 1), running), absl::OkStatus());
    ASSERT_EQ(engine->Submit(MakeRequest("b", 5, 900, 1), waiting), absl::OkStatus());
    running->WaitForTokens(1);
  }
  EXPECT_TRUE(absl::IsUnavailable(*running->record.error));
  EXPECT_TRUE(absl::IsUnavailable(*waiting->record.error));
}

TEST(Engine, SaysWhatItHoldsBeforeItLoads) {
  const TinyOptions tiny;
  EngineOptions options = SmallOptions();
  const auto verdict = Engine::Plan(MakeTinyCheckpoint(tiny), options);
  ASSERT_TRUE(verdict.ok()) << verdict.status();
  // K and V of 2 layers x 2 heads x 16 in f16.
  EXPECT_EQ(verdict->bytes_per_token, 2 * 2 * 2 * 16 * 2);
  EXPECT_EQ(verdict->page_bytes, 64 * 2 * 2 * 16 * 2);
  EXPECT_EQ(verdict->bytes_per_sequence, verdict->bytes_per_token * 1024);
  options.lab_bytes = int64_t{3} << 20;
  EXPECT_EQ(Engine::Plan(MakeTinyCheckpoint(tiny), options)->lab_bytes, 0) << "nothing to select";
  options.branches = "window:32";
  EXPECT_THAT(Engine::Plan(MakeTinyCheckpoint(tiny), options)->text,
              testing::HasSubstr("up to 3.0 MiB more while layers are selected"));
  options.branches = "";
  options.arena_bytes = int64_t{2} << 20;
  EXPECT_EQ(
      Engine::Plan(MakeTinyCheckpoint({.layers = 40, .kv_heads = 6}), options).status().code(),
      absl::StatusCode::kResourceExhausted);
}

TEST(Engine, AFileThatChangedWhileLoadingIsACleanError) {
  Checkpoint checkpoint = MakeTinyCheckpoint({});
  static_cast<MemoryTensors*>(checkpoint.tensors.get())->changed =
      absl::AbortedError("the file changed while it was read");
  const auto engine =
      Engine::Create(std::move(checkpoint), SmallOptions(), &kClock, nullptr, nullptr, nullptr);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kAborted);
}

TEST(Engine, LoadingCanBeCancelled) {
  const std::atomic<bool> cancel{true};
  const auto engine =
      Engine::Create(MakeTinyCheckpoint({}), SmallOptions(), &kClock, nullptr, nullptr, &cancel);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kCancelled);
}

TEST(Engine, NonFiniteWeightsAreFoundByTheSelfTest) {
  // Not reachable from a good file: the self-test is what stands between a broken one and clients.
  Checkpoint checkpoint = MakeTinyCheckpoint({});
  auto broken = std::make_unique<MemoryTensors>();
  std::mt19937 random(1);
  for (const TensorInfo& tensor : checkpoint.tensors->tensors()) {
    const float mean = tensor.name == "output_norm.weight" ? NAN : 0;
    broken->Add(tensor.name, DType::kF32, tensor.shape, 0.1F, mean, &random);
  }
  checkpoint.tensors = std::move(broken);
  const auto engine =
      Engine::Create(std::move(checkpoint), SmallOptions(), &kClock, nullptr, nullptr, nullptr);
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace morphserve
