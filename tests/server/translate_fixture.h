// What tests of the translation share: a model that needs none, and requests written as text.
#pragma once

#include <google/protobuf/text_format.h>
#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "server/errors.h"
#include "server/translate.h"
#include "tests/server/service_fakes.h"

namespace morphserve {

// The fields that a status complains about.
inline std::vector<std::string> FaultyFields(const absl::Status& status) {
  google::rpc::Status rich;
  google::rpc::BadRequest faults;
  EXPECT_TRUE(rich.ParseFromString(ToGrpcStatus(status).error_details()));
  for (const auto& detail : rich.details()) detail.UnpackTo(&faults);
  std::vector<std::string> fields;
  for (const auto& violation : faults.field_violations()) fields.push_back(violation.field());
  return fields;
}

template <typename T>
T Parse(const std::string& text) {
  T message;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

// A prompt of so many letters.
inline std::string TextOf(size_t letters) {
  return absl::StrFormat("text: '%s'", std::string(letters, 'a'));
}

class TranslateTest : public ::testing::Test {
 protected:
  TranslateTest() {
    model_.engine = &engine_;
    model_.chat_template = &chat_template_;
    model_.name = "tiny";
    facts_.tenant = "team";
    facts_.received = absl::FromUnixSeconds(1'700'000'000);
  }

  absl::StatusOr<Request> Generate(const std::string& text) const {
    return translator_.Generate(Parse<v1::GenerateRequest>(text), facts_);
  }
  absl::StatusOr<Request> Options(const std::string& options) const {
    return Generate("text: 'abc' options { " + options + " }");
  }
  absl::StatusOr<Request> Chat(const std::string& text) const {
    return translator_.Chat(Parse<v1::ChatRequest>(text), facts_);
  }
  // The tokens of a text as the byte tokenizer reads it.
  std::vector<int32_t> Bytes(const std::string& text) const {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
    return ids;
  }

  testing::ByteTokenizer tokenizer_;
  testing::SimpleTemplate chat_template_;
  testing::FakeEngine engine_{&tokenizer_};
  ServedModel model_;
  const ServerConfig config_;
  CallFacts facts_;
  Translator translator_{&model_, &config_};
};

}  // namespace morphserve
