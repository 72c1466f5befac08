// JSON files of a checkpoint, parsed with their limits, and typed access that names the path of
// what is wrong. Thread rule: immutable after Parse.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace morphserve {

// INVALID_ARGUMENT names `what` when the text is no JSON object, repeats a key, or nests deeper
// than 32.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view text, std::string_view what);

// A view of one JSON object. Null members count as absent. Errors name "what.key".
class JsonObject {
 public:
  // `object` must be an object and outlive the view.
  JsonObject(const nlohmann::json& object, std::string what);

  bool Has(std::string_view key) const { return Find(key) != nullptr; }
  const nlohmann::json* Find(std::string_view key) const;

  // The member, `otherwise` when absent, INVALID_ARGUMENT when of another type or out of range.
  absl::StatusOr<int32_t> Int(std::string_view key, std::optional<int32_t> otherwise) const;
  absl::StatusOr<double> Number(std::string_view key, std::optional<double> otherwise) const;
  absl::StatusOr<bool> Bool(std::string_view key, bool otherwise) const;
  absl::StatusOr<std::string> String(std::string_view key, std::string otherwise) const;
  absl::StatusOr<std::vector<std::string>> Strings(std::string_view key) const;
  absl::StatusOr<std::optional<JsonObject>> Object(std::string_view key) const;

  const nlohmann::json& json() const { return object_; }
  const std::string& what() const { return what_; }
  // INVALID_ARGUMENT "what.key: why".
  absl::Status Refuse(std::string_view key, std::string_view why) const;

 private:
  const nlohmann::json& object_;
  std::string what_;
};

}  // namespace morphserve
