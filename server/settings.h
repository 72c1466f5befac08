// The table of settings: one row per key with its default, range and help. The YAML file, --set,
// the environment, --print_config, --help and the manual are all made from it. Thread rule:
// immutable, any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "absl/status/status.h"
#include "server/server_config.h"

namespace morphserve {

enum class SettingKind : uint8_t {
  kText,
  kPath,
  kAddress,
  kChoice,
  kBool,
  kCount,
  kBytes,
  kNumber
};

using SettingTarget = std::variant<std::string*, bool*, int32_t*, int64_t*, double*>;

struct SettingField {
  std::string_view key;  // "section.name".
  SettingKind kind;
  std::string_view fallback;  // The default, as a user would write it.
  double min;                 // Of numbers and sizes.
  double max;
  std::string_view words;  // kChoice: "a|b|c". Numbers: the word that stands for 0, or empty.
  std::string_view help;
  SettingTarget (*target)(ServerConfig& config);
};

std::span<const SettingField> SettingTable();
const SettingField* FindSetting(std::string_view key);  // Null: not in the table.

// The reason when `key` is designed but not part of this release; empty otherwise.
std::string PlannedSetting(std::string_view key);
// The known key closest to `key`; empty when none is close.
std::string NearestSetting(std::string_view key);

// Parses `text` into the field's member. INVALID_ARGUMENT names key, value and what is allowed.
absl::Status SetSetting(const SettingField& field, std::string_view text, ServerConfig* config);
// The value in the form SetSetting reads.
std::string FormatSetting(const SettingField& field, const ServerConfig& config);

// MORPHSERVE_SECTION_NAME.
std::string EnvironmentName(std::string_view key);

// Bytes with an optional suffix KiB, MiB, GiB or TiB. False when malformed or above 2^53.
bool ParseBytes(std::string_view text, int64_t* bytes);
std::string FormatBytes(int64_t bytes);  // 8MiB where exact, else plain bytes.

}  // namespace morphserve
