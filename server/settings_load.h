// Merges the sources of settings into a ServerConfig: --set and flags over the environment over the
// file over the defaults. Everything that is wrong is reported at once; nothing is ignored.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/server_config.h"

namespace morphserve {

struct SettingsSources {
  std::string yaml = {};  // The configuration file's text; empty: none.
  // Only MORPHSERVE_... is looked at.
  std::vector<std::pair<std::string, std::string>> environment = {};
  std::vector<std::pair<std::string, std::string>> overrides = {};  // Key and value, in order.
};

struct LoadedSettings {
  ServerConfig config;
  std::map<std::string, std::string> origins;  // Key -> file | environment | flag; absent: default.
  std::vector<std::string> warnings;
};

// INVALID_ARGUMENT with one problem a line: unknown keys with the nearest known one, keys that are
// not built yet, malformed values, YAML that does not parse. Problems between settings are
// ValidateConfig's.
absl::StatusOr<LoadedSettings> LoadSettings(const SettingsSources& sources);

// The environment of this process. Reading it anywhere else is a defect.
std::vector<std::pair<std::string, std::string>> ProcessEnvironment();

// A file of at most `bytes_max` bytes. NOT_FOUND or INVALID_ARGUMENT, naming `what`, not the path.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t bytes_max,
                                          const std::string& what);

// All settings as a YAML file that LoadSettings reads back to the same values; with `origins` (may
// be null) each value that is not a default says where it came from.
std::string PrintSettings(const ServerConfig& config,
                          const std::map<std::string, std::string>* origins);
// Names the effective values: first 16 hex digits of the SHA-256 of PrintSettings.
std::string SettingsDigest(const ServerConfig& config);

}  // namespace morphserve
