// morphctl generate: continue one prompt, or run a file of requests with several in flight. A file
// run can be broken off and started again: results that are there are kept.
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <thread>

#include "absl/strings/str_format.h"
#include "server/ctl/batch_file.h"
#include "server/ctl/commands.h"
#include "server/ctl/generation_flags.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

struct GenerateFlags {
  std::string prompt;
  std::string input;
  std::string output;
  int concurrency = 8;
  int retries = 5;
  GenerationFlags generation;
};

int RunOne(const Connection& connection, Context* context, const GenerateFlags& flags) {
  v1::GenerateRequest request;
  request.set_model(context->model);
  request.set_text(flags.prompt == "-" ? std::string(std::istreambuf_iterator<char>(std::cin), {})
                                       : flags.prompt);
  flags.generation.Fill(request.mutable_options());
  request.mutable_options()->mutable_output()->set_token_ids(context->json);
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  const bool many = request.options().sampling().n() > 1;
  const bool live = !context->json && !many;
  const StreamResult result =
      RunStream(connection, context->interrupt, nullptr, &request, [&](const v1::Delta& delta) {
        if (!live) return;
        const std::string text = terminal ? SafeForTerminal(delta.text()) : delta.text();
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
      });
  if (live) {
    // A call that failed before its first word has no line to end.
    if (result.status.ok() || (!result.texts.empty() && !result.texts[0].empty())) {
      std::fputc('\n', stdout);
    }
  } else if (context->json) {
    std::printf("%s\n", ResultLine("", result).c_str());
  } else {
    for (size_t i = 0; i < result.texts.size(); ++i) {
      std::printf("[%zu] %s\n", i,
                  (terminal ? SafeForTerminal(result.texts[i]) : result.texts[i]).c_str());
    }
  }
  std::fflush(stdout);
  if (result.status.ok()) return kExitOk;
  if (context->interrupt->requested()) return kExitInterrupted;
  return Complain(Explain(result.status), kExitFailed);
}

// The workers of a file run and what they share.
class BatchRun {
 public:
  BatchRun(const Connection& connection, Context* context, std::vector<BatchRequest> requests,
           std::ofstream output, int retries)
      : connection_(connection),
        interrupt_(context->interrupt),
        requests_(std::move(requests)),
        retries_(retries),
        output_(std::move(output)),
        started_at_(SteadySeconds()) {}

  void Run(int concurrency) {
    std::vector<std::thread> workers;
    for (int i = 0; i < concurrency; ++i) workers.emplace_back([this] { Work(); });
    for (std::thread& worker : workers) worker.join();
    MutexLock lock(&mutex_);
    progress_.Clear();
  }

  int64_t done() {
    MutexLock lock(&mutex_);
    return done_;
  }
  int64_t failed() {
    MutexLock lock(&mutex_);
    return failed_;
  }
  bool write_failed() {
    MutexLock lock(&mutex_);
    return write_failed_;
  }

 private:
  void Work() {
    for (;;) {
      const size_t index = next_.fetch_add(1);
      if (index >= requests_.size() || interrupt_->requested() || write_failed()) return;
      const BatchRequest& request = requests_[index];
      const StreamResult result = CallWithRetries(request);
      if (!result.status.ok() && interrupt_->requested())
        return;  // Not an answer: do it next time.
      Record(request.id, result);
    }
  }

  StreamResult CallWithRetries(const BatchRequest& request) const {
    for (int attempt = 0;; ++attempt) {
      StreamResult result =
          RunStream(connection_, interrupt_, request.is_chat ? &request.chat : nullptr,
                    request.is_chat ? nullptr : &request.generate, nullptr);
      if (!IsTransient(result.status) || attempt >= retries_ || interrupt_->requested()) {
        return result;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(250 << std::min(attempt, 5)));
    }
  }

  void Record(const std::string& id, const StreamResult& result) {
    const std::string line = ResultLine(id, result) + "\n";
    MutexLock lock(&mutex_);
    output_.write(line.data(), static_cast<std::streamsize>(line.size()));
    output_.flush();
    if (!output_) {
      write_failed_ = true;
      return;
    }
    ++done_;
    if (!result.status.ok()) ++failed_;
    tokens_ += result.done.usage().completion_tokens();
    const double seconds = SteadySeconds() - started_at_;
    const double left = seconds / static_cast<double>(done_) *
                        static_cast<double>(static_cast<int64_t>(requests_.size()) - done_);
    progress_.Show(done_, static_cast<int64_t>(requests_.size()),
                   absl::StrFormat("%.0f tokens/s, %d failed, %.0f s left",
                                   static_cast<double>(tokens_) / seconds, failed_, left));
  }

  const Connection& connection_;
  Interrupt* const interrupt_;
  const std::vector<BatchRequest> requests_;
  const int retries_;
  std::atomic<size_t> next_{0};
  Mutex mutex_;
  std::ofstream output_ ABSL_GUARDED_BY(mutex_);
  ProgressLine progress_ ABSL_GUARDED_BY(mutex_);
  int64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t failed_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  bool write_failed_ ABSL_GUARDED_BY(mutex_) = false;
  const double started_at_;
};

int RunFile(const Connection& connection, Context* context, const GenerateFlags& flags) {
  v1::GenerationOptions defaults;
  flags.generation.Fill(&defaults);
  auto requests = ReadBatch(flags.input, defaults, context->model);
  if (!requests.ok()) {
    return Complain(absl::StrFormat("--input: %s", std::string(requests.status().message())),
                    kExitUsage);
  }
  auto finished = ReadFinishedIds(flags.output);
  if (!finished.ok()) {
    return Complain(absl::StrFormat("--output: %s", std::string(finished.status().message())),
                    kExitUsage);
  }
  const size_t total = requests->size();
  std::erase_if(*requests, [&](const BatchRequest& r) { return finished->contains(r.id); });
  const size_t kept = total - requests->size();
  if (kept > 0) std::fprintf(stderr, "%zu of %zu results are there already\n", kept, total);
  std::ofstream output(flags.output, std::ios::app | std::ios::binary);
  if (!output) {
    return Complain(absl::StrFormat("--output: cannot write '%s'", flags.output), kExitFailed);
  }
  const auto wanted = static_cast<int64_t>(requests->size());
  BatchRun run(connection, context, *std::move(requests), std::move(output), flags.retries);
  run.Run(flags.concurrency);
  if (run.write_failed()) {
    return Complain(absl::StrFormat("--output: writing '%s' failed; %d results were kept",
                                    flags.output, run.done()),
                    kExitFailed);
  }
  if (context->interrupt->requested()) {
    return Complain(absl::StrFormat("stopped; %d of %d are left, run the same command to go on",
                                    wanted - run.done(), wanted),
                    kExitInterrupted);
  }
  std::fprintf(stderr, "%lld done, %lld failed\n", static_cast<long long>(run.done()),
               static_cast<long long>(run.failed()));
  return run.failed() == 0 ? kExitOk : kExitFailed;
}

int RunGenerate(Context* context, GenerateFlags flags) {
  if (flags.prompt.empty() == flags.input.empty()) {
    return Complain("generate needs either --prompt or --input", kExitUsage);
  }
  if (flags.input.empty() != flags.output.empty()) {
    return Complain("--input and --output go together", kExitUsage);
  }
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  const grpc::Status asked = flags.generation.Prepare(**connection, context->model);
  if (!asked.ok()) return Complain(Explain(asked), kExitFailed);
  return flags.input.empty() ? RunOne(**connection, context, flags)
                             : RunFile(**connection, context, flags);
}

}  // namespace

void RegisterGenerate(CLI::App* app, Context* context) {
  CLI::App* command =
      app->add_subcommand("generate", "continue a prompt, or run a file of requests");
  auto flags = std::make_shared<GenerateFlags>();
  command->add_option("--prompt", flags->prompt, "continue this text; - reads standard input");
  command->add_option("--input", flags->input, "JSON Lines of requests");
  command->add_option("--output", flags->output, "JSON Lines of results; added to when it exists");
  command->add_option("--concurrency", flags->concurrency, "requests in flight with --input")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_option("--retries", flags->retries, "times to repeat a refused request")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  flags->generation.Register(command);
  command->footer(
      "Lines of --input: {\"id\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],"
      "\"sampling\":{\"temperature\":0,\"max_tokens\":64}}; \"prompt\" or \"token_ids\" may stand "
      "for \"messages\".");
  command->callback([=] { context->run = [=] { return RunGenerate(context, *flags); }; });
}

}  // namespace morphserve::ctl
