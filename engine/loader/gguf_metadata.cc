#include <limits>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/gguf.h"

namespace morphserve {
namespace {

absl::Status WrongType(std::string_view key, const char* wanted) {
  return absl::InvalidArgumentError(absl::StrFormat("metadata key %s is not %s", key, wanted));
}

absl::StatusOr<const GgufValue*> Require(const GgufMetadata& metadata, std::string_view key) {
  const GgufValue* found = metadata.find(key);
  if (found == nullptr) {
    return absl::NotFoundError(absl::StrFormat("metadata key %s is missing", key));
  }
  return found;
}

// A pointer to the value as T; `wanted` is for the message.
template <typename T>
absl::StatusOr<const T*> RequireAs(const GgufMetadata& metadata, std::string_view key,
                                   const char* wanted) {
  MS_ASSIGN_OR_RETURN(const GgufValue* found, Require(metadata, key));
  const T* value = std::get_if<T>(&found->value);
  if (value == nullptr) return WrongType(key, wanted);
  return value;
}

}  // namespace

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

absl::StatusOr<int64_t> GgufMetadata::Integer(std::string_view key) const {
  MS_ASSIGN_OR_RETURN(const GgufValue* found, Require(*this, key));
  if (const auto* value = std::get_if<int64_t>(&found->value)) return *value;
  if (const auto* value = std::get_if<uint64_t>(&found->value)) {
    if (*value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return absl::InvalidArgumentError(
          absl::StrFormat("metadata key %s is %u, out of range", key, *value));
    }
    return static_cast<int64_t>(*value);
  }
  return WrongType(key, "an integer");
}

absl::StatusOr<double> GgufMetadata::Float(std::string_view key) const {
  MS_ASSIGN_OR_RETURN(const GgufValue* found, Require(*this, key));
  if (const auto* value = std::get_if<double>(&found->value)) return *value;
  if (const auto* value = std::get_if<int64_t>(&found->value)) return static_cast<double>(*value);
  if (const auto* value = std::get_if<uint64_t>(&found->value)) return static_cast<double>(*value);
  return WrongType(key, "a number");
}

absl::StatusOr<bool> GgufMetadata::Bool(std::string_view key) const {
  MS_ASSIGN_OR_RETURN(const bool* value, RequireAs<bool>(*this, key, "a boolean"));
  return *value;
}

absl::StatusOr<std::string> GgufMetadata::String(std::string_view key) const {
  MS_ASSIGN_OR_RETURN(const std::string* value, RequireAs<std::string>(*this, key, "a string"));
  return *value;
}

absl::StatusOr<const std::vector<std::string>*> GgufMetadata::Strings(std::string_view key) const {
  return RequireAs<GgufValue::Strings>(*this, key, "an array of strings");
}

absl::StatusOr<const std::vector<int64_t>*> GgufMetadata::Integers(std::string_view key) const {
  return RequireAs<GgufValue::Integers>(*this, key, "an array of integers");
}

absl::StatusOr<const std::vector<double>*> GgufMetadata::Floats(std::string_view key) const {
  return RequireAs<GgufValue::Floats>(*this, key, "an array of floats");
}

}  // namespace morphserve
