#include "server/settings_load.h"

#include <unistd.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <set>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/sha256.h"
#include "server/settings.h"

extern char** environ;

namespace morphserve {
namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;
using Problems = std::vector<std::string>;

// Variables of the project's scripts, which share the prefix and mean nothing to the server.
constexpr const char* kScriptVariables[] = {"MORPHSERVE_CACHE_DIR", "MORPHSERVE_GOOGLEAPIS_DIR"};

std::string UnknownKey(const std::string& key, const std::string& where) {
  const std::string planned = PlannedSetting(key);
  if (!planned.empty()) return absl::StrFormat("%s (%s)", planned, where);
  const std::string nearest = NearestSetting(key);
  return nearest.empty() ? absl::StrFormat("unknown setting '%s' (%s)", key.substr(0, 200), where)
                         : absl::StrFormat("unknown setting '%s' (%s); did you mean %s?",
                                           key.substr(0, 200), where, nearest);
}

void Apply(const std::string& key, const std::string& value, const std::string& where,
           const std::string& origin, LoadedSettings* loaded, Problems* problems) {
  const SettingField* field = FindSetting(key);
  if (field == nullptr) {
    problems->push_back(UnknownKey(key, where));
    return;
  }
  const absl::Status status = SetSetting(*field, value, &loaded->config);
  if (!status.ok()) {
    problems->push_back(absl::StrFormat("%s (%s)", status.message(), where));
    return;
  }
  loaded->origins[key] = origin;
}

// Collects the leaves of YAML: sections of keys, some of which are maps of keys again. Anything
// else that is not a scalar is a problem.
void FlattenSection(const std::string& name, const YAML::Node& section, std::set<std::string>* seen,
                    Pairs* leaves, Problems* problems) {
  for (const auto& entry : section) {
    const std::string key = name + "." + (entry.first.IsScalar() ? entry.first.Scalar() : "?");
    if (entry.second.IsMap() && std::count(key.begin(), key.end(), '.') == 1) {
      FlattenSection(key, entry.second, seen, leaves, problems);
    } else if (!seen->insert(key).second) {
      problems->push_back(absl::StrFormat("config file: '%s' is given twice", key));
    } else if (entry.second.IsNull()) {
      problems->push_back(absl::StrFormat("config file: '%s' has no value", key));
    } else if (!entry.second.IsScalar()) {
      problems->push_back(absl::StrFormat("config file: '%s' must be a single value", key));
    } else {
      leaves->emplace_back(key, entry.second.Scalar());
    }
  }
}

void Flatten(const YAML::Node& root, Pairs* leaves, Problems* problems) {
  if (root.IsNull()) return;  // An empty file, or comments only.
  if (!root.IsMap()) {
    problems->push_back("config file: the top level must be a map of sections");
    return;
  }
  std::set<std::string> seen;
  for (const auto& section : root) {
    const std::string name = section.first.IsScalar() ? section.first.Scalar() : "?";
    if (section.second.IsNull()) continue;  // A section with all its lines commented out.
    if (!section.second.IsMap()) {
      problems->push_back(
          absl::StrFormat("config file: '%s' must be a section with keys below it", name));
      continue;
    }
    FlattenSection(name, section.second, &seen, leaves, problems);
  }
}

// The exceptions of yaml-cpp end here.
void ParseYaml(const std::string& text, Pairs* leaves, Problems* problems) {
  try {
    Flatten(YAML::Load(text), leaves, problems);
  } catch (const YAML::Exception& error) {
    problems->push_back(absl::StrFormat("config file: line %d, column %d: %s", error.mark.line + 1,
                                        error.mark.column + 1, error.msg));
  }
}

// Kubernetes gives every pod variables named after the services beside it; one called
// morphserve-grpc makes MORPHSERVE_GRPC_SERVICE_HOST. They are not settings.
bool IsServiceLink(const std::string& name) {
  if (name.find("_SERVICE_HOST") != std::string::npos) return true;
  if (name.find("_SERVICE_PORT") != std::string::npos) return true;
  const size_t port = name.rfind("_PORT");
  if (port == std::string::npos) return false;
  const std::string rest = name.substr(port + 5);
  return rest.empty() ||
         (rest.size() > 1 && rest[0] == '_' && std::isdigit(static_cast<unsigned char>(rest[1])));
}

void ApplyEnvironment(const Pairs& environment, LoadedSettings* loaded, Problems* problems) {
  constexpr std::string_view kPrefix = "MORPHSERVE_";
  std::set<std::string> sections;
  std::map<std::string, std::string> names;
  for (const SettingField& field : SettingTable()) {
    const std::string key(field.key);
    names[EnvironmentName(key)] = key;
    sections.insert(EnvironmentName(key.substr(0, key.find('.'))) + "_");
  }
  for (const auto& [name, value] : environment) {
    if (name.compare(0, kPrefix.size(), kPrefix) != 0 || IsServiceLink(name)) continue;
    const auto known = names.find(name);
    if (known != names.end()) {
      Apply(known->second, value, name, "environment", loaded, problems);
      continue;
    }
    if (std::find(std::begin(kScriptVariables), std::end(kScriptVariables), name) !=
        std::end(kScriptVariables)) {
      continue;
    }
    // A wrong name in a section of ours is a slip that must not pass; another name is said aloud.
    const size_t section_end = name.find('_', kPrefix.size());
    const bool ours =
        section_end != std::string::npos && sections.count(name.substr(0, section_end + 1)) != 0;
    std::string guess = name.substr(kPrefix.size());
    for (char& c : guess) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const size_t underscore = guess.find('_');
    if (underscore != std::string::npos) guess[underscore] = '.';
    if (ours || !PlannedSetting(guess).empty()) {
      problems->push_back(UnknownKey(guess, name));
    } else {
      loaded->warnings.push_back(absl::StrFormat("environment variable %s is not a setting", name));
    }
  }
}

std::string Quoted(const SettingField& field, const std::string& value) {
  const bool words = field.kind == SettingKind::kText || field.kind == SettingKind::kPath ||
                     field.kind == SettingKind::kAddress;
  if (!words) return value;
  std::string out = "\"";
  for (const char c : value) {
    if (static_cast<unsigned char>(c) < 0x20) {
      out += absl::StrFormat("\\x%02x", static_cast<unsigned char>(c));
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

}  // namespace

absl::StatusOr<LoadedSettings> LoadSettings(const SettingsSources& sources) {
  LoadedSettings loaded;
  Problems problems;
  Pairs leaves;
  if (!sources.yaml.empty()) ParseYaml(sources.yaml, &leaves, &problems);
  for (const auto& [key, value] : leaves) {
    Apply(key, value, "config file", "file", &loaded, &problems);
  }
  ApplyEnvironment(sources.environment, &loaded, &problems);
  for (const auto& [key, value] : sources.overrides) {
    Apply(key, value, "command line", "flag", &loaded, &problems);
  }
  if (!problems.empty()) return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
  return loaded;
}

std::vector<std::pair<std::string, std::string>> ProcessEnvironment() {
  Pairs pairs;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string line = *entry;
    const size_t equals = line.find('=');
    if (equals != std::string::npos) {
      pairs.emplace_back(line.substr(0, equals), line.substr(equals + 1));
    }
  }
  return pairs;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t bytes_max,
                                          const std::string& what) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) return absl::NotFoundError(absl::StrFormat("%s cannot be opened", what));
  std::string text(bytes_max + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad() || (stream.fail() && !stream.eof())) {
    return absl::NotFoundError(absl::StrFormat("%s cannot be read", what));
  }
  text.resize(static_cast<size_t>(stream.gcount()));
  if (text.size() > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has more than %d bytes", what, bytes_max));
  }
  return text;
}

std::string PrintSettings(const ServerConfig& config,
                          const std::map<std::string, std::string>* origins) {
  std::string out;
  std::string section;
  for (const SettingField& field : SettingTable()) {
    const std::string key(field.key);
    const size_t dot = key.find('.');
    if (key.substr(0, dot) != section) {
      section = key.substr(0, dot);
      out += section + ":\n";
    }
    out += absl::StrFormat("  %s: %s", key.substr(dot + 1),
                           Quoted(field, FormatSetting(field, config)));
    if (origins != nullptr) {
      const auto origin = origins->find(key);
      if (origin != origins->end()) out += "  # from " + origin->second;
    }
    out += "\n";
  }
  return out;
}

std::string SettingsDigest(const ServerConfig& config) {
  Sha256 hash;
  hash.Update(PrintSettings(config, nullptr));
  return HexDigest(hash.Finish()).substr(0, 16);
}

}  // namespace morphserve
