#include "engine/text/json_reader.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"

namespace morphserve {

JsonValue::JsonValue() = default;
JsonValue::JsonValue(JsonValue&&) noexcept = default;
JsonValue& JsonValue::operator=(JsonValue&&) noexcept = default;
JsonValue::~JsonValue() = default;

std::optional<bool> JsonValue::boolean() const {
  const bool* value = std::get_if<bool>(&value_);
  return value == nullptr ? std::nullopt : std::optional<bool>(*value);
}

std::optional<int64_t> JsonValue::integer() const {
  const int64_t* value = std::get_if<int64_t>(&value_);
  return value == nullptr ? std::nullopt : std::optional<int64_t>(*value);
}

std::optional<double> JsonValue::number() const {
  if (const std::optional<int64_t> whole = integer()) return static_cast<double>(*whole);
  const double* value = std::get_if<double>(&value_);
  return value == nullptr ? std::nullopt : std::optional<double>(*value);
}

const JsonValue* JsonValue::Find(std::string_view key) const {
  const Object* members = object();
  if (members == nullptr) return nullptr;
  for (const Member& member : *members) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

// Receives the parser's events. Each handler returns false to stop; status_ then says why.
class JsonBuilder {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  explicit JsonBuilder(const JsonLimits& limits) : limits_(limits) {}

  bool null() { return Put(JsonValue()) != nullptr; }
  bool boolean(bool value) { return PutAny(value); }
  bool number_integer(number_integer_t value) { return PutAny(int64_t{value}); }
  bool number_unsigned(number_unsigned_t value) {
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) {
      return PutAny(static_cast<double>(value));
    }
    return PutAny(static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t&) { return PutAny(double{value}); }
  bool string(string_t& value) { return PutAny(std::move(value)); }
  bool binary(binary_t&) { return Stop("binary data"); }
  bool start_object(std::size_t) { return Open(JsonValue::Object()); }
  bool start_array(std::size_t) { return Open(JsonValue::Array()); }
  bool key(string_t& name) {
    std::get<JsonValue::Object>(open_.back()->value_).push_back({std::move(name), JsonValue()});
    return true;
  }
  bool end_object() {
    const auto& members = std::get<JsonValue::Object>(open_.back()->value_);
    absl::flat_hash_set<std::string_view> seen;
    seen.reserve(members.size());
    for (const JsonValue::Member& member : members) {
      if (!seen.insert(member.key).second) return Stop("an object has the same key twice");
    }
    open_.pop_back();
    return true;
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    status_ =
        absl::InvalidArgumentError(absl::StrFormat("not valid JSON at byte offset %d", position));
    return false;
  }

  const absl::Status& status() const { return status_; }
  JsonValue Take() { return std::move(root_); }

 private:
  bool Stop(std::string_view why) {
    status_ = absl::InvalidArgumentError(absl::StrFormat("JSON is refused: %s", why));
    return false;
  }

  // Places a value where the document is now. Pointers into parents stay good: a parent's vector
  // grows only while none of its children is open.
  JsonValue* Put(JsonValue value) {
    if (++values_ > limits_.values_max) {
      Stop(absl::StrFormat("more than %d values", limits_.values_max));
      return nullptr;
    }
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (auto* array = std::get_if<JsonValue::Array>(&open_.back()->value_)) {
      array->push_back(std::move(value));
      return &array->back();
    }
    JsonValue& place = std::get<JsonValue::Object>(open_.back()->value_).back().value;
    place = std::move(value);
    return &place;
  }

  template <typename T>
  bool PutAny(T value) {
    JsonValue made;
    made.value_ = std::move(value);
    return Put(std::move(made)) != nullptr;
  }

  template <typename T>
  bool Open(T container) {
    if (open_.size() >= limits_.depth_max) {
      return Stop(absl::StrFormat("nested deeper than %d", limits_.depth_max));
    }
    JsonValue made;
    made.value_ = std::move(container);
    JsonValue* place = Put(std::move(made));
    if (place != nullptr) open_.push_back(place);
    return place != nullptr;
  }

  const JsonLimits limits_;
  JsonValue root_;
  std::vector<JsonValue*> open_;
  size_t values_ = 0;
  absl::Status status_;
};

absl::StatusOr<JsonValue> ParseJson(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrFormat("JSON has %d bytes; limit is %d", text.size(), limits.bytes_max));
  }
  JsonBuilder builder(limits);
  const bool parsed = nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  if (!builder.status().ok()) return builder.status();
  if (!parsed) return absl::InvalidArgumentError("not valid JSON");
  return builder.Take();
}

}  // namespace morphserve
