// The command line: what to do, and settings that rank with --set. Every flag is accepted with -
// and _, as --flag value and --flag=value.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace morphserve {

struct CommandLine {
  enum class Action { kServe, kCheckConfig, kPrintConfig, kVersion, kHelp, kProbe };
  Action action = Action::kServe;
  std::string config_file;
  std::string ready_file;
  std::string probe;  // ADDR[,SERVICE].
  std::string probe_ca;
  std::vector<std::pair<std::string, std::string>> overrides;  // Setting and value, in order.
};

// INVALID_ARGUMENT with one problem a line; an unknown flag names the nearest known one.
absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments);

// What --help prints: usage, flags, every setting with default and meaning, examples.
std::string HelpText();

}  // namespace morphserve
