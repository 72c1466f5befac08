// morphctl bench: a load of streaming requests against a running server. Closed loop: a fixed
// number in flight. Open loop: a seeded Poisson rate that does not wait for answers, as real
// traffic does not.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "absl/strings/str_format.h"
#include "morphserve/v1/models.grpc.pb.h"
#include "server/ctl/batch_file.h"
#include "server/ctl/bench_report.h"
#include "server/ctl/commands.h"
#include "server/ctl/generation_flags.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

constexpr int kInFlightMax = 1024;

struct BenchFlags {
  int concurrency = 1;
  double rate = 0;
  double burstiness = 1;
  int requests = 32;
  uint32_t prompt_tokens = 128;
  uint32_t output_tokens = 64;
  double spread = 0;
  uint32_t shared_prefix = 0;
  std::string input;
  uint64_t seed = 1;
  int warmup = 1;
  int ramp = 0;
  Objectives objectives;
  GenerationFlags generation;
};

class Load {
 public:
  Load(const Connection& connection, Context* context, const BenchFlags& flags,
       std::vector<BatchRequest> requests)
      : connection_(connection),
        interrupt_(context->interrupt),
        flags_(flags),
        requests_(std::move(requests)) {}

  std::vector<Outcome> Run() {
    if (flags_.rate > 0) {
      RunOpen();
    } else {
      RunClosed();
    }
    MutexLock lock(&mutex_);
    progress_.Clear();
    return std::move(outcomes_);
  }

 private:
  void RunClosed() {
    std::vector<std::thread> workers;
    for (int i = 0; i < flags_.concurrency; ++i) {
      workers.emplace_back([this] {
        for (;;) {
          const size_t index = next_.fetch_add(1);
          if (index >= requests_.size() || interrupt_->requested()) return;
          Call(index);
        }
      });
    }
    for (std::thread& worker : workers) worker.join();
  }

  // Gaps are gamma distributed with mean 1 / rate; shape = burstiness, 1 is Poisson.
  void RunOpen() {
    std::mt19937_64 random(flags_.seed);
    std::gamma_distribution<double> gap(flags_.burstiness, 1.0 / (flags_.rate * flags_.burstiness));
    std::vector<std::thread> calls;
    auto due = std::chrono::steady_clock::now();
    for (size_t i = 0; i < requests_.size() && !interrupt_->requested(); ++i) {
      std::this_thread::sleep_until(due);
      due += std::chrono::duration_cast<std::chrono::steady_clock::duration>(
          std::chrono::duration<double>(gap(random)));
      if (in_flight_.load() >= kInFlightMax) {
        Outcome dropped;
        dropped.error = absl::StrFormat("not sent: %d were in flight", kInFlightMax);
        dropped.sent_at = dropped.ended_at = SteadySeconds();
        Record(std::move(dropped));
        continue;
      }
      in_flight_.fetch_add(1);
      calls.emplace_back([this, i] {
        Call(i);
        in_flight_.fetch_sub(1);
      });
    }
    for (std::thread& call : calls) call.join();
  }

  void Call(size_t index) {
    const BatchRequest& request = requests_[index];
    Record(ToOutcome(RunStream(connection_, interrupt_, request.is_chat ? &request.chat : nullptr,
                               request.is_chat ? nullptr : &request.generate, nullptr)));
  }

  void Record(Outcome outcome) {
    MutexLock lock(&mutex_);
    outcomes_.push_back(std::move(outcome));
    progress_.Show(static_cast<int64_t>(outcomes_.size()), static_cast<int64_t>(requests_.size()),
                   absl::StrFormat("%d in flight", in_flight_.load()));
  }

  const Connection& connection_;
  Interrupt* const interrupt_;
  const BenchFlags& flags_;
  const std::vector<BatchRequest> requests_;
  std::atomic<size_t> next_{0};
  std::atomic<int> in_flight_{0};
  Mutex mutex_;
  std::vector<Outcome> outcomes_ ABSL_GUARDED_BY(mutex_);
  ProgressLine progress_ ABSL_GUARDED_BY(mutex_);
};

// Random token ids: no text in common but the shared prefix, lengths within +- spread.
std::vector<BatchRequest> MakeRandomLoad(const BenchFlags& flags, const v1::ModelInfo& info,
                                         int count, uint64_t salt) {
  std::mt19937_64 random(flags.seed + salt);
  const auto pick = [&](uint32_t mean) {
    const double low = mean * (1 - flags.spread);
    const double high = mean * (1 + flags.spread);
    const double u = static_cast<double>(random() >> 11) * 0x1p-53;
    return std::max(1u, static_cast<uint32_t>(std::lround(low + (high - low) * u)));
  };
  // The low ids of most vocabularies are control tokens.
  const uint32_t lowest = std::min(256u, info.vocab_size() / 2);
  const uint32_t span = info.vocab_size() - lowest;
  std::mt19937_64 prefix_random(flags.seed);
  std::vector<uint32_t> prefix(flags.shared_prefix);
  for (uint32_t& id : prefix) id = lowest + static_cast<uint32_t>(prefix_random() % span);
  std::vector<BatchRequest> load;
  for (int i = 0; i < count; ++i) {
    BatchRequest request;
    auto* ids = request.generate.mutable_tokens();
    for (const uint32_t id : prefix) ids->add_ids(id);
    for (uint32_t n = pick(flags.prompt_tokens); n > 0; --n) {
      ids->add_ids(lowest + static_cast<uint32_t>(random() % span));
    }
    v1::GenerationOptions* options = request.generate.mutable_options();
    flags.generation.Fill(options);
    options->mutable_stopping()->set_max_tokens(pick(flags.output_tokens));
    options->mutable_stopping()->set_ignore_eos(true);
    load.push_back(std::move(request));
  }
  return load;
}

int RunBench(Context* context, BenchFlags flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  const auto models = v1::Models::NewStub((*connection)->inference());
  v1::ModelInfo info;
  v1::ServerInfo server;
  v1::GetModelInfoRequest ask;
  ask.set_model(context->model);
  grpc::ClientContext info_call, server_call;
  (*connection)->Prepare(&info_call);
  (*connection)->Prepare(&server_call);
  grpc::Status status = models->GetModelInfo(&info_call, ask, &info);
  if (status.ok()) status = models->GetServerInfo(&server_call, {}, &server);
  if (status.ok()) status = flags.generation.Prepare(**connection, context->model);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);

  std::vector<BatchRequest> load;
  if (!flags.input.empty()) {
    v1::GenerationOptions defaults;
    flags.generation.Fill(&defaults);
    auto requests = ReadBatch(flags.input, defaults, context->model);
    if (!requests.ok()) {
      return Complain(absl::StrFormat("--input: %s", std::string(requests.status().message())),
                      kExitUsage);
    }
    load = *std::move(requests);
  } else {
    load = MakeRandomLoad(flags, info, flags.requests, /*salt=*/0);
  }
  if (flags.warmup > 0) {
    BenchFlags warm = flags;
    warm.rate = 0;
    warm.concurrency = 1;
    for (const Outcome& outcome :
         Load(**connection, context, warm, MakeRandomLoad(warm, info, flags.warmup, 1)).Run()) {
      if (!outcome.ok) return Complain("warm-up: " + outcome.error, kExitFailed);
    }
  }
  const BenchReport report = Measure(Load(**connection, context, flags, std::move(load)).Run(),
                                     flags.objectives, flags.ramp);
  if (context->json) {
    nlohmann::ordered_json head = {{"device", server.device_name()},
                                   {"version", server.version()},
                                   {"commit", server.commit()},
                                   {"settings", server.config_digest()},
                                   {"model", info.name()},
                                   {"seed", flags.seed},
                                   {"report", nlohmann::ordered_json::parse(ToJson(report))}};
    std::printf("%s\n", head.dump().c_str());
  } else {
    std::printf("%s on %s\ncommit %s, settings %s, seed %llu\n%s", info.name().c_str(),
                server.device_name().c_str(), server.commit().c_str(),
                server.config_digest().c_str(), static_cast<unsigned long long>(flags.seed),
                ToText(report).c_str());
  }
  if (context->interrupt->requested()) return kExitInterrupted;
  return report.failed == 0 ? kExitOk : kExitFailed;
}

}  // namespace

void RegisterBench(CLI::App* app, Context* context) {
  CLI::App* command = app->add_subcommand("bench", "measure a running server under load");
  auto f = std::make_shared<BenchFlags>();
  command->footer(R"(Examples:
  morphctl bench --concurrency 8 --requests 256 --ignore-eos     closed loop
  morphctl bench --rate 5 --burstiness 0.5 --slo-ttft-ms 500     open loop in bursts, goodput
  morphctl bench --concurrency 4 --spread 0.5 --plan fastest     varied lengths, another plan)");
  command->add_option("--concurrency", f->concurrency, "closed loop: requests in flight")
      ->check(CLI::Range(1, kInFlightMax))
      ->capture_default_str();
  command->add_option("--rate", f->rate, "open loop: requests per second; overrides --concurrency")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--burstiness", f->burstiness, "open loop: 1 is Poisson, below 1 bursts")
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  command->add_option("--requests", f->requests, "number of requests")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--prompt-tokens", f->prompt_tokens, "mean prompt length")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--output-tokens", f->output_tokens, "mean answer length")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--spread", f->spread, "lengths vary by this share around their means")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--shared-prefix", f->shared_prefix, "tokens that all prompts begin with");
  command->add_option("--input", f->input, "replay these requests (JSON Lines, see generate)");
  command->add_option("--load-seed", f->seed, "seed of lengths, tokens and arrivals")
      ->capture_default_str();
  command->add_option("--warmup", f->warmup, "requests before the load, not counted")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  command->add_option("--ramp", f->ramp, "requests left out at either end of the load")
      ->check(CLI::Range(0, 100000));
  command->add_option("--slo-ttft-ms", f->objectives.ttft_ms, "objective for goodput");
  command->add_option("--slo-tpot-ms", f->objectives.tpot_ms, "objective for goodput");
  command->add_option("--slo-e2el-ms", f->objectives.e2el_ms, "objective for goodput");
  f->generation.Register(command);
  command->callback([=] { context->run = [=] { return RunBench(context, *f); }; });
}

}  // namespace morphserve::ctl
