#include "engine/loader/json_text.h"

#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"

namespace morphserve {
namespace {

using Json = nlohmann::json;

constexpr size_t kDepthMax = 32;

// The parser itself needs no stack, but destroying and printing a value does.
bool NestsTooDeep(std::string_view text) {
  size_t depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kDepthMax) return true;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return false;
}

// Keys come from the file; only printable ones go into messages.
std::string Shown(std::string_view key) {
  std::string out;
  for (const char c : key.substr(0, 128)) out.push_back(c >= ' ' && c <= '~' ? c : '?');
  return out;
}

}  // namespace

absl::StatusOr<Json> ParseJsonObject(std::string_view text, std::string_view what) {
  if (NestsTooDeep(text)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s nests deeper than %u levels", what, kDepthMax));
  }
  // Of two equal keys the parser silently keeps the last: two readers of a file could disagree.
  std::vector<std::set<std::string>> keys;
  std::string repeated;
  const auto watch = [&](int, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && repeated.empty() && !keys.empty() &&
        !keys.back().insert(value.get_ref<const std::string&>()).second) {
      repeated = Shown(value.get_ref<const std::string&>());
      if (repeated.empty()) repeated = "(empty)";
    }
    return true;
  };
  Json json = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is not a JSON object", what));
  }
  if (!repeated.empty()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s.%s appears twice", what, repeated));
  }
  return json;
}

JsonObject::JsonObject(const Json& object, std::string what)
    : object_(object), what_(std::move(what)) {
  MS_CHECK(object.is_object());
}

const Json* JsonObject::Find(std::string_view key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status JsonObject::Refuse(std::string_view key, std::string_view why) const {
  return absl::InvalidArgumentError(absl::StrFormat("%s.%s: %s", what_, Shown(key), why));
}

absl::StatusOr<int32_t> JsonObject::Int(std::string_view key,
                                        std::optional<int32_t> otherwise) const {
  const Json* found = Find(key);
  if (found == nullptr) {
    if (otherwise.has_value()) return *otherwise;
    return Refuse(key, "missing");
  }
  if (found->is_number_unsigned()) {
    const auto value = found->get<uint64_t>();
    if (value <= static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
      return static_cast<int32_t>(value);
    }
  } else if (found->is_number_integer()) {
    const auto value = found->get<int64_t>();
    if (value >= std::numeric_limits<int32_t>::min()) return static_cast<int32_t>(value);
  } else {
    return Refuse(key, "not an integer");
  }
  return Refuse(key, "out of range");
}

absl::StatusOr<double> JsonObject::Number(std::string_view key,
                                          std::optional<double> otherwise) const {
  const Json* found = Find(key);
  if (found == nullptr) {
    if (otherwise.has_value()) return *otherwise;
    return Refuse(key, "missing");
  }
  if (!found->is_number()) return Refuse(key, "not a number");
  const auto value = found->get<double>();
  if (!std::isfinite(value)) return Refuse(key, "out of range");
  return value;
}

absl::StatusOr<bool> JsonObject::Bool(std::string_view key, bool otherwise) const {
  const Json* found = Find(key);
  if (found == nullptr) return otherwise;
  if (!found->is_boolean()) return Refuse(key, "not a boolean");
  return found->get<bool>();
}

absl::StatusOr<std::string> JsonObject::String(std::string_view key, std::string otherwise) const {
  const Json* found = Find(key);
  if (found == nullptr) return otherwise;
  if (!found->is_string()) return Refuse(key, "not a string");
  return found->get<std::string>();
}

absl::StatusOr<std::vector<std::string>> JsonObject::Strings(std::string_view key) const {
  const Json* found = Find(key);
  std::vector<std::string> out;
  if (found == nullptr) return out;
  if (!found->is_array()) return Refuse(key, "not an array");
  for (const Json& item : *found) {
    if (!item.is_string()) return Refuse(key, "not an array of strings");
    out.push_back(item.get<std::string>());
  }
  return out;
}

absl::StatusOr<std::optional<JsonObject>> JsonObject::Object(std::string_view key) const {
  const Json* found = Find(key);
  if (found == nullptr) return std::optional<JsonObject>();
  if (!found->is_object()) return Refuse(key, "not an object");
  return std::optional<JsonObject>(std::in_place, *found, absl::StrFormat("%s.%s", what_, key));
}

}  // namespace morphserve
