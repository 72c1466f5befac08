// morphctl chat: one answer, or a conversation that keeps its history.
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "server/ctl/commands.h"
#include "server/ctl/generation_flags.h"
#include "server/ctl/stream_call.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

struct ChatFlags {
  std::string prompt;
  std::string system;
  bool stats = false;
  GenerationFlags generation;
};

constexpr char kHelp[] =
    "/reset forgets the conversation, /system TEXT sets the system message, /stats shows speed, "
    "/exit ends.\nCtrl-C stops an answer; at the prompt it ends the chat.\n";

void PrintStats(const StreamResult& result) {
  const v1::Usage& usage = result.done.usage();
  const v1::Timings& timings = result.done.timings();
  const v1::PlanRef& plan = result.started.plan();
  std::fprintf(stderr,
               "[%u prompt tokens, %u of them cached, %u generated; first token after %.0f ms%s; "
               "plan %s, %u of %u layers full]\n",
               usage.prompt_tokens(), usage.cached_tokens(), usage.completion_tokens(),
               timings.ttft_ms(),
               timings.has_tpot_ms() && timings.tpot_ms() > 0
                   ? absl::StrFormat(", then %.1f tokens/s", 1000 / timings.tpot_ms()).c_str()
                   : "",
               plan.plan_id().c_str(), plan.full_layers(), plan.layers());
}

// Asks once and prints the answer as it comes. The answer is added to the request's messages.
grpc::Status Ask(const Connection& connection, Context* context, bool stats,
                 v1::ChatRequest* request) {
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  const bool many = request->options().sampling().n() > 1;
  const StreamResult result =
      RunStream(connection, context->interrupt, request, nullptr, [&](const v1::Delta& delta) {
        if (many) return;  // Choices interleave; they are printed when all is there.
        const std::string text = terminal ? SafeForTerminal(delta.text()) : delta.text();
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
      });
  if (many) {
    for (size_t i = 0; i < result.texts.size(); ++i) {
      const std::string text = terminal ? SafeForTerminal(result.texts[i]) : result.texts[i];
      std::fprintf(stdout, "[%zu] %s\n", i, text.c_str());
    }
  } else if (result.status.ok() || (!result.texts.empty() && !result.texts[0].empty())) {
    std::fputc('\n', stdout);
  }
  std::fflush(stdout);
  if (result.status.ok() && stats) PrintStats(result);
  if (!result.texts.empty()) {
    v1::ChatMessage* answer = request->add_messages();
    answer->set_role("assistant");
    answer->set_content(result.texts[0]);
  }
  return result.status;
}

void AddMessage(v1::ChatRequest* request, const std::string& role, const std::string& content) {
  v1::ChatMessage* message = request->add_messages();
  message->set_role(role);
  message->set_content(content);
}

void Reset(const std::string& system, v1::ChatRequest* request) {
  request->clear_messages();
  if (!system.empty()) AddMessage(request, "system", system);
}

int RunInteractive(const Connection& connection, Context* context, ChatFlags flags,
                   v1::ChatRequest request) {
  const bool terminal = isatty(STDIN_FILENO) == 1;
  if (terminal) std::fputs(kHelp, stderr);
  int code = kExitOk;
  for (;;) {
    if (terminal) std::fputs("> ", stderr);
    context->interrupt->Reset();
    context->interrupt->set_exit_when_idle(true);
    std::string line;
    if (!std::getline(std::cin, line)) break;
    context->interrupt->set_exit_when_idle(false);
    if (line.empty()) continue;
    if (line == "/exit" || line == "/quit") break;
    if (line == "/help") {
      std::fputs(kHelp, stderr);
    } else if (line == "/reset") {
      Reset(flags.system, &request);
    } else if (line == "/stats") {
      flags.stats = !flags.stats;
    } else if (line.rfind("/system ", 0) == 0) {
      flags.system = line.substr(8);
      Reset(flags.system, &request);
    } else if (line[0] == '/') {
      Complain(absl::StrFormat("unknown command '%s'; /help lists them", line), 0);
    } else {
      AddMessage(&request, "user", line);
      const int before = request.messages_size();
      const grpc::Status status = Ask(connection, context, flags.stats, &request);
      if (status.ok()) continue;
      if (status.error_code() != grpc::CANCELLED) {
        code = Complain(Explain(status), kExitFailed);
      }
      if (request.messages_size() == before) request.mutable_messages()->RemoveLast();
    }
  }
  return terminal ? kExitOk : code;
}

int RunChat(Context* context, ChatFlags flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  const grpc::Status asked = flags.generation.Prepare(**connection, context->model);
  if (!asked.ok()) return Complain(Explain(asked), kExitFailed);
  v1::ChatRequest request;
  request.set_model(context->model);
  flags.generation.Fill(request.mutable_options());
  Reset(flags.system, &request);
  if (flags.prompt.empty()) {
    return RunInteractive(**connection, context, flags, std::move(request));
  }
  AddMessage(&request, "user", flags.prompt);
  if (context->json) {
    return Complain("--json is not for chat; use generate --input", kExitUsage);
  }
  const grpc::Status status = Ask(**connection, context, flags.stats, &request);
  if (status.ok()) return kExitOk;
  if (context->interrupt->requested()) return kExitInterrupted;
  return Complain(Explain(status), kExitFailed);
}

}  // namespace

void RegisterChat(CLI::App* app, Context* context) {
  CLI::App* command = app->add_subcommand("chat", "talk to the model, or ask one question");
  auto flags = std::make_shared<ChatFlags>();
  command->add_option("--prompt", flags->prompt, "ask this and end");
  command->add_option("--system", flags->system, "system message");
  command->add_flag("--stats", flags->stats, "show counts and speed after each answer");
  flags->generation.Register(command);
  command->callback([=] { context->run = [=] { return RunChat(context, *flags); }; });
}

}  // namespace morphserve::ctl
