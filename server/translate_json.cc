#include "server/translate_json.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace morphserve {
namespace {

// Sees every token and keeps only what the checks need. Returning false stops the parser.
class Checker final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Checker(std::vector<std::string>* keys) : keys_(keys) {}

  bool null() override { return Value(); }
  bool boolean(bool) override { return Value(); }
  bool number_integer(number_integer_t) override { return Value(); }
  bool number_unsigned(number_unsigned_t) override { return Value(); }
  bool number_float(number_float_t, const string_t&) override { return Value(); }
  bool string(string_t&) override { return Value(); }
  bool binary(binary_t&) override { return Value(); }
  bool start_object(std::size_t) override { return Enter(true); }
  bool start_array(std::size_t) override { return Enter(false); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& name) override {
    if (depth_ == 1 && keys_ != nullptr) keys_->push_back(name);
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    // The library's text quotes the input, which is not ours to repeat.
    problem_ = absl::StrFormat("is not valid JSON at byte %d", position);
    return false;
  }

  const std::string& problem() const { return problem_; }

 private:
  bool Value() {
    if (depth_ == 0) problem_ = "must be a JSON object";
    return problem_.empty();
  }
  bool Enter(bool object) {
    if (depth_ == 0 && !object) problem_ = "must be a JSON object";
    if (++depth_ > kJsonDepthMax) {
      problem_ = absl::StrFormat("nests JSON deeper than %d", kJsonDepthMax);
    }
    return problem_.empty();
  }
  bool Leave() {
    --depth_;
    return true;
  }

  std::vector<std::string>* const keys_;
  int depth_ = 0;
  std::string problem_;
};

}  // namespace

absl::Status CheckJsonObject(std::string_view text, std::vector<std::string>* keys) {
  Checker checker(keys);
  if (nlohmann::json::sax_parse(text.begin(), text.end(), &checker)) return absl::OkStatus();
  return absl::InvalidArgumentError(checker.problem().empty() ? "is not valid JSON"
                                                              : checker.problem());
}

}  // namespace morphserve
