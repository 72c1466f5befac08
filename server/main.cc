// The morphserve program: command line, settings, then the server.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/base/clock.h"
#include "engine/base/log.h"
#include "server/auth.h"
#include "server/autopilot_messages.h"
#include "server/command_line.h"
#include "server/log_bridge.h"
#include "server/model_loader.h"
#include "server/probe.h"
#include "server/server.h"
#include "server/server_config.h"
#include "server/settings_load.h"
#include "server/signals.h"
#include "server/tls.h"
#include "server/version.h"

namespace morphserve {
namespace {

constexpr int kExitUsage = 2;  // Command line or settings; 1 is a server that could not serve.
constexpr size_t kConfigBytesMax = 1 << 20;

int Fail(const std::string& problems) {
  for (size_t begin = 0; begin < problems.size();) {
    const size_t end = std::min(problems.find('\n', begin), problems.size());
    std::fprintf(stderr, "morphserve: %s\n", problems.substr(begin, end - begin).c_str());
    begin = end + 1;
  }
  return kExitUsage;
}

absl::StatusOr<LoadedSettings> ReadSettings(const CommandLine& line) {
  SettingsSources sources;
  if (!line.config_file.empty()) {
    absl::StatusOr<std::string> yaml =
        ReadSmallFile(line.config_file, kConfigBytesMax, "the file of --config");
    if (!yaml.ok()) return yaml.status();
    sources.yaml = *std::move(yaml);
  }
  sources.environment = ProcessEnvironment();
  sources.overrides = line.overrides;
  return LoadSettings(sources);
}

// Everything a start would refuse, without listening and without reading weights.
int CheckConfig(const LoadedSettings& settings) {
  const ServerConfig& config = settings.config;
  std::vector<std::string> problems = ValidateConfig(config);
  const auto note = [&problems](const absl::Status& status) {
    if (!status.ok()) problems.emplace_back(status.message());
  };
  note(Authorizer::Create(config.auth.tokens_file).status());
  if (config.tls.cert.empty() == config.tls.key.empty()) {
    note(MakeServerCredentials(config.tls.cert, config.tls.key).status());
  }
  std::string verdict;
  if (!config.model.path.empty()) {
    absl::StatusOr<Checkpoint> checkpoint = OpenCheckpoint(config.model.path);
    note(checkpoint.status());
    if (checkpoint.ok()) {
      note(ServedModelName(config, *checkpoint).status());
      const absl::StatusOr<MemoryVerdict> plan = Engine::Plan(*checkpoint, ToEngineOptions(config));
      note(plan.status());
      if (plan.ok()) verdict = plan->text;
      note(AutopilotTargetOf(config, checkpoint->config.layers).status());
    }
  }
  for (const std::string& warning : settings.warnings) {
    std::fprintf(stderr, "morphserve: warning: %s\n", warning.c_str());
  }
  std::string joined;
  for (const std::string& problem : problems) joined += problem + "\n";
  if (!problems.empty()) return Fail(joined);
  std::printf("memory: %s\nsettings are valid, digest %s\n", verdict.c_str(),
              SettingsDigest(config).c_str());
  return 0;
}

int Serve(const CommandLine& line, LoadedSettings settings) {
  std::string joined;
  for (const std::string& problem : ValidateConfig(settings.config)) joined += problem + "\n";
  if (!joined.empty()) return Fail(joined);
  LogLevel level = LogLevel::kInfo;
  ParseLogLevel(settings.config.log.level, &level);
  SetLogLevel(level);
  SetLogFormat(settings.config.log.format == "json" ? LogFormat::kJson : LogFormat::kText);
  InstallLogBridge();
  BlockSignals();
  const SystemClock clock;
  absl::StatusOr<std::unique_ptr<Server>> server = Server::Create(
      {.settings = std::move(settings), .ready_file = line.ready_file, .clock = &clock});
  if (!server.ok()) return Fail(std::string(server.status().message()));
  return (*server)->Run();
}

int Main(const std::vector<std::string>& arguments) {
  const absl::StatusOr<CommandLine> line = ParseCommandLine(arguments);
  if (!line.ok()) return Fail(std::string(line.status().message()));
  switch (line->action) {
    case CommandLine::Action::kVersion: std::printf("%s\n", VersionLine().c_str()); return 0;
    case CommandLine::Action::kHelp: std::printf("%s", HelpText().c_str()); return 0;
    case CommandLine::Action::kProbe:
      InstallLogBridge();
      return RunProbe({.target = line->probe, .ca_file = line->probe_ca});
    default: break;
  }
  absl::StatusOr<LoadedSettings> settings = ReadSettings(*line);
  if (!settings.ok()) return Fail(std::string(settings.status().message()));
  if (line->action == CommandLine::Action::kPrintConfig) {
    std::printf("%s", PrintSettings(settings->config, &settings->origins).c_str());
    return 0;
  }
  if (line->action == CommandLine::Action::kCheckConfig) return CheckConfig(*settings);
  return Serve(*line, *std::move(settings));
}

}  // namespace
}  // namespace morphserve

int main(int argc, char** argv) {
  return morphserve::Main(std::vector<std::string>(argv + 1, argv + argc));
}
