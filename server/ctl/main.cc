// morphctl: the command-line client of morphserve.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>

#include "server/ctl/commands.h"

namespace morphserve::ctl {
namespace {

constexpr char kExamples[] = R"(Examples:
  morphctl chat                                   talk to the model
  morphctl chat --prompt "Why is the sky blue?"   one answer
  morphctl generate --prompt "Once upon a time" --max-tokens 64
  morphctl generate --input requests.jsonl --output results.jsonl --concurrency 8
  morphctl bench --concurrency 4 --requests 64 --prompt-tokens 128 --output-tokens 64
  morphctl status
  morphctl plans                                  layer plans, and what each costs
  morphctl chat --plan fastest                    answer on another plan
  morphctl report                                 all of it as a page with plots

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.)";

constexpr char kOfCommand[] =
    "Options of the connection, --timeout and --json may follow: see morphctl --help.";

void RegisterGlobals(CLI::App* app, Context* context) {
  ConnectionOptions& c = context->connection;
  app->add_option("--addr", c.addr, "inference listener, HOST:PORT")
      ->envname("MORPHCTL_ADDR")
      ->capture_default_str();
  app->add_option("--admin-addr", c.admin_addr, "admin listener, HOST:PORT")
      ->envname("MORPHCTL_ADMIN_ADDR")
      ->capture_default_str();
  app->add_option("--model", context->model, "model name; not needed with one model");
  app->add_flag("--tls", c.tls, "connect with TLS and the system's certificates");
  app->add_option("--tls-ca", c.tls_ca_file, "connect with TLS and trust this PEM file");
  app->add_option("--tls-name", c.tls_name, "name to expect in the certificate");
  app->add_option("--token-file", c.token_file, "file with the bearer token")
      ->envname("MORPHCTL_TOKEN_FILE");
  app->add_option("--timeout", c.timeout_s, "deadline of each call in seconds; 0: the server's")
      ->check(CLI::NonNegativeNumber);
  app->add_flag("--json", context->json, "print JSON");
}

int Main(int argc, char** argv) {
  Interrupt interrupt;
  Context context;
  context.interrupt = &interrupt;
  CLI::App app("morphctl: command-line client of morphserve", "morphctl");
  app.footer(kOfCommand);  // Of commands that set none: they take it when they are added.
  app.set_version_flag("--version", std::string("morphctl " MORPHSERVE_VERSION));
  app.require_subcommand(1);
  app.fallthrough();  // Global flags may follow the subcommand.
  RegisterGlobals(&app, &context);
  RegisterChat(&app, &context);
  RegisterGenerate(&app, &context);
  RegisterBench(&app, &context);
  RegisterStatus(&app, &context);
  RegisterPlans(&app, &context);
  RegisterMorph(&app, &context);
  RegisterAutopilot(&app, &context);
  RegisterReport(&app, &context);
  RegisterTokenize(&app, &context);
  app.footer(kExamples);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // The library would only say that a command is required.
    if (app.get_subcommands().empty() && !app.remaining().empty()) {
      return Complain("unknown command '" + app.remaining()[0] + "'; morphctl --help lists them",
                      kExitUsage);
    }
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return context.run();
}

}  // namespace
}  // namespace morphserve::ctl

int main(int argc, char** argv) { return morphserve::ctl::Main(argc, argv); }
