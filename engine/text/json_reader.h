// JsonValue is a parsed JSON document of a model's files: strict JSON, bounded depth and size,
// members in the file's order, no duplicate keys. Thread rule: immutable after ParseJson. Source:
// RFC 8259 through nlohmann's SAX parser, which checks UTF-8 and does not recurse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace morphserve {

struct JsonLimits {
  size_t bytes_max = size_t{64} << 20;
  size_t depth_max = 64;
  size_t values_max = size_t{8} << 20;
};

class JsonValue {
 public:
  struct Member;
  using Array = std::vector<JsonValue>;
  using Object = std::vector<Member>;

  JsonValue();
  JsonValue(JsonValue&&) noexcept;
  JsonValue& operator=(JsonValue&&) noexcept;
  ~JsonValue();

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  // Each: null, or none, when the value is of another type.
  std::optional<bool> boolean() const;
  std::optional<int64_t> integer() const;  // Also none for integers beyond 64 bits.
  std::optional<double> number() const;    // Integers too.
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  std::string* string() { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }
  // The member of an object; null when it is absent or this is no object.
  const JsonValue* Find(std::string_view key) const;

 private:
  friend class JsonBuilder;
  std::variant<std::monostate, bool, int64_t, double, std::string, Array, Object> value_;
};

struct JsonValue::Member {
  std::string key;
  JsonValue value;
};

// INVALID_ARGUMENT with the byte offset or the broken limit.
absl::StatusOr<JsonValue> ParseJson(std::string_view text, const JsonLimits& limits);

}  // namespace morphserve
