#include "engine/text/json_value.h"

#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace morphserve::jinja {
namespace {

// Builds values from the parser's events. Containers are kept on an explicit stack.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(Runtime& rt) : rt_(rt) {}

  const Value& root() const { return root_; }
  const std::string& error() const { return error_; }

  bool null() override { return Add(Value::None()); }
  bool boolean(bool value) override { return Add(Value::Bool(value)); }
  bool number_integer(number_integer_t value) override { return Add(Value::Int(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) return FailInteger();
    return Add(Value::Int(static_cast<int64_t>(value)));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    // The parser turns integers that are too large into doubles.
    if (text.find_first_of(".eE") == string_t::npos) return FailInteger();
    return Add(Value::Float(value));
  }
  bool string(string_t& value) override {
    Value text;
    return rt_.MakeText(value, false, &text) ? Add(text) : FailLimit();
  }
  bool binary(binary_t&) override { return Fail("binary value"); }
  bool start_object(std::size_t) override { return Open(true); }
  bool start_array(std::size_t) override { return Open(false); }
  bool key(string_t& value) override {
    return rt_.MakeText(value, false, &stack_.back().key) || FailLimit();
  }
  bool end_object() override {
    Dict* dict = stack_.back().dict;
    stack_.pop_back();
    return Add(Value::OfDict(dict));
  }
  bool end_array() override {
    Value list;
    if (!rt_.MakeList(stack_.back().items, &list)) return FailLimit();
    stack_.pop_back();
    return Add(list);
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrFormat("not valid json at byte %d", position));
  }

 private:
  struct Level {
    Dict* dict = nullptr;  // Null: an array.
    Value key;
    std::vector<Value> items;
  };

  bool Open(bool object) {
    if (stack_.size() >= static_cast<size_t>(kJsonDepthMax)) {
      return Fail(absl::StrFormat("nested deeper than %d levels", kJsonDepthMax));
    }
    Level level;
    if (object && (level.dict = rt_.MakeDict()) == nullptr) return FailLimit();
    stack_.push_back(std::move(level));
    return true;
  }
  bool Add(const Value& value) {
    if (!rt_.Charge(0)) return FailLimit();
    if (stack_.empty()) {
      root_ = value;
      return true;
    }
    Level& level = stack_.back();
    if (level.dict != nullptr) return rt_.SetItem(level.dict, level.key, value) || FailLimit();
    level.items.push_back(value);
    return true;
  }
  bool Fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
    return false;
  }
  bool FailInteger() { return Fail("integer does not fit in 64 bits"); }
  bool FailLimit() { return Fail("too large for the limits of a chat template"); }

  Runtime& rt_;
  std::vector<Level> stack_;
  Value root_;
  std::string error_;
};

}  // namespace

absl::Status ParseJson(Runtime& rt, std::string_view what, std::string_view json, Value* out) {
  Builder builder(rt);
  const bool ok = nlohmann::json::sax_parse(json.begin(), json.end(), &builder);
  if (!ok || !builder.error().empty()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: %s", what, builder.error().empty() ? "not valid json" : builder.error()));
  }
  *out = builder.root();
  return absl::OkStatus();
}

}  // namespace morphserve::jinja
