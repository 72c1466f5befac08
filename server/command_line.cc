#include "server/command_line.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/settings.h"

namespace morphserve {
namespace {

struct Shorthand {
  std::string_view flag;
  std::string_view key;
};

constexpr Shorthand kShorthands[] = {
    {"model", "model.path"},
    {"model_name", "model.name"},
    {"branches", "model.branches"},
    {"weights_dtype", "model.weights_dtype"},
    {"kv_dtype", "cache.kv_dtype"},
    {"arena_bytes", "cache.arena_bytes"},
    {"context_tokens", "limits.context_tokens"},
    {"device", "device.kind"},
    {"threads", "device.threads"},
    {"listen", "listen.inference"},
    {"http", "listen.http"},
    {"admin", "listen.admin"},
    {"tls_cert", "tls.cert"},
    {"tls_key", "tls.key"},
    {"tokens_file", "auth.tokens_file"},
    {"log_level", "log.level"},
    {"log_format", "log.format"},
};

struct OwnFlag {
  std::string_view flag;
  std::string_view value;  // Empty: takes none.
  std::string_view help;
};

constexpr OwnFlag kOwnFlags[] = {
    {"config", "FILE", "settings as YAML"},
    {"set", "KEY=VALUE", "one setting; may be repeated, the last one counts"},
    {"ready_file", "FILE", "written once ready: JSON of the bound ports (for port 0)"},
    {"check_config", "", "check settings, credentials, certificate and memory, then exit"},
    {"print_config", "", "print the effective settings as YAML, then exit"},
    {"probe", "ADDR[,SERVICE]",
     "ask a health service once; exit code 0 serving, 1 not, 2 unreached"},
    {"probe_ca", "FILE", "PEM of the authority that signed the probed server"},
    {"version", "", "print version and commit, then exit"},
    {"help", "", "print this, then exit"},
};

const OwnFlag* FindOwn(std::string_view name) {
  for (const OwnFlag& flag : kOwnFlags) {
    if (flag.flag == name) return &flag;
  }
  return nullptr;
}

std::string_view KeyOf(std::string_view name) {
  for (const Shorthand& shorthand : kShorthands) {
    if (shorthand.flag == name) return shorthand.key;
  }
  return "";
}

std::string UnknownFlag(const std::string& name) {
  std::string known;
  size_t best = 0;
  const auto consider = [&](std::string_view flag) {
    const size_t common = static_cast<size_t>(
        std::mismatch(flag.begin(), flag.end(), name.begin(), name.end()).first - flag.begin());
    if (common > best) {
      best = common;
      known = std::string(flag);
    }
  };
  for (const OwnFlag& flag : kOwnFlags) consider(flag.flag);
  for (const Shorthand& shorthand : kShorthands) consider(shorthand.flag);
  const std::string shown = name.substr(0, 200);
  // A setting's own key is no flag, but a likely slip.
  if (FindSetting(name) != nullptr) {
    return absl::StrFormat("unknown flag --%s; write --set %s=VALUE", shown, shown);
  }
  return best < 2 ? absl::StrFormat("unknown flag --%s; see --help", shown)
                  : absl::StrFormat("unknown flag --%s; did you mean --%s?", shown, known);
}

void ApplyOwn(const std::string& name, const std::string& value, CommandLine* line,
              std::vector<std::string>* problems) {
  using Action = CommandLine::Action;
  if (name == "config") line->config_file = value;
  if (name == "ready_file") line->ready_file = value;
  if (name == "probe_ca") line->probe_ca = value;
  if (name == "set") {
    const size_t equals = value.find('=');
    if (equals == std::string::npos || equals == 0) {
      problems->push_back(absl::StrFormat("--set %s: must be KEY=VALUE", value.substr(0, 200)));
    } else {
      line->overrides.emplace_back(value.substr(0, equals), value.substr(equals + 1));
    }
  }
  const Action before = line->action;
  if (name == "probe") {
    line->probe = value;
    line->action = Action::kProbe;
  }
  if (name == "check_config") line->action = Action::kCheckConfig;
  if (name == "print_config") line->action = Action::kPrintConfig;
  if (name == "version") line->action = Action::kVersion;
  if (name == "help") line->action = Action::kHelp;
  if (before != Action::kServe && before != line->action) {
    problems->push_back(absl::StrFormat("--%s cannot be combined with another action", name));
  }
}

}  // namespace

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments) {
  CommandLine line;
  std::vector<std::string> problems;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument == "-h") {
      ApplyOwn("help", "", &line, &problems);
      continue;
    }
    if (argument.size() < 3 || argument.compare(0, 2, "--") != 0) {
      problems.push_back(absl::StrFormat("unexpected argument '%s'", argument.substr(0, 200)));
      continue;
    }
    const size_t equals = argument.find('=');
    std::string name = argument.substr(2, equals == std::string::npos ? equals : equals - 2);
    std::replace(name.begin(), name.end(), '-', '_');
    const OwnFlag* own = FindOwn(name);
    const std::string_view key = KeyOf(name);
    if (own == nullptr && key.empty()) {
      problems.push_back(UnknownFlag(name));
      // Its value, if it has one, would only make a second complaint.
      if (equals == std::string::npos && i + 1 < arguments.size() &&
          arguments[i + 1].compare(0, 2, "--") != 0) {
        ++i;
      }
      continue;
    }
    std::string value;
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
      if (own != nullptr && own->value.empty()) {
        problems.push_back(absl::StrFormat("--%s takes no value", name));
        continue;
      }
    } else if (own == nullptr || !own->value.empty()) {
      if (i + 1 >= arguments.size()) {
        problems.push_back(absl::StrFormat("--%s needs a value", name));
        continue;
      }
      value = arguments[++i];
    }
    if (own != nullptr) {
      ApplyOwn(name, value, &line, &problems);
    } else {
      line.overrides.emplace_back(std::string(key), value);
    }
  }
  if (!line.probe_ca.empty() && line.action != CommandLine::Action::kProbe) {
    problems.push_back("--probe_ca goes with --probe");
  }
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
  return line;
}

std::string HelpText() {
  std::string out =
      "morphserve: serves a language model over gRPC.\n\n"
      "usage: morphserve --model PATH [--config FILE] [--set KEY=VALUE ...]\n\nflags\n";
  for (const OwnFlag& flag : kOwnFlags) {
    out += absl::StrFormat(
        "  --%-28s %s\n",
        absl::StrFormat("%s%s%s", flag.flag, flag.value.empty() ? "" : " ", flag.value), flag.help);
  }
  out += "\nshorthands for settings\n";
  for (const Shorthand& shorthand : kShorthands) {
    out += absl::StrFormat("  --%-28s %s\n", absl::StrFormat("%s VALUE", shorthand.flag),
                           shorthand.key);
  }
  out +=
      "\nsettings: --set and shorthands over the environment (MORPHSERVE_SECTION_NAME) over the "
      "file\n"
      "over the default. Sizes take KiB, MiB, GiB, TiB.\n";
  std::string_view section;
  for (const SettingField& field : SettingTable()) {
    const std::string_view now = field.key.substr(0, field.key.find('.'));
    if (now != section) out += "\n";
    section = now;
    out += absl::StrFormat("  %-32s %s", field.key, field.help);
    if (field.kind == SettingKind::kChoice) out += absl::StrFormat("; %s", field.words);
    if (!field.fallback.empty()) out += absl::StrFormat(" [%s]", field.fallback);
    out += "\n";
  }
  out +=
      "\nexamples\n"
      "  morphserve --model model.gguf\n"
      "  morphserve --model model.gguf --branches model.branches.safetensors\n"
      "  morphserve --model model.gguf --branches window:256 --set plans.active=full_layers=8\n"
      "  morphserve --config morphserve.yaml --set scheduler.sequences_max=16 --log-level debug\n"
      "  morphserve --model model.gguf --weights-dtype f32 --context-tokens 2048 --check-config\n"
      "  morphserve --probe=127.0.0.1:8001,readiness\n";
  return out;
}

}  // namespace morphserve
