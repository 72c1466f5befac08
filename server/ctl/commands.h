// The subcommands of morphctl. Each Register adds its flags and, when chosen, stores what to run;
// each returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
#pragma once

#include <functional>
#include <string>

#include "server/ctl/connection.h"
#include "server/ctl/interrupt.h"

namespace CLI {
class App;
}

namespace morphserve::ctl {

struct Context {
  ConnectionOptions connection;
  std::string model;  // Empty: the server's only one.
  bool json = false;
  Interrupt* interrupt = nullptr;
  std::function<int()> run;  // Set by the subcommand that was chosen.
};

void RegisterChat(CLI::App* app, Context* context);
void RegisterGenerate(CLI::App* app, Context* context);
void RegisterBench(CLI::App* app, Context* context);
void RegisterStatus(CLI::App* app, Context* context);  // status and models
void RegisterPlans(CLI::App* app, Context* context);   // plans and scores
void RegisterMorph(CLI::App* app, Context* context);   // morph, rollback and costs
void RegisterAutopilot(CLI::App* app, Context* context);
void RegisterReport(CLI::App* app, Context* context);
void RegisterTokenize(CLI::App* app, Context* context);  // tokenize and detokenize

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

// Prints "morphctl: <text>" to standard error and returns `code`.
int Complain(const std::string& text, int code);

}  // namespace morphserve::ctl
