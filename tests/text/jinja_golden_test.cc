// Small templates against the reference: one file of expressions and statements, each with what the
// reference's environment printed, or the fact that it raised. Catches any departure from Python's
// or Jinja's rules. The file says which versions it was made with.
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "absl/time/time.h"
#include "engine/text/chat_template.h"
#include "nlohmann/json.hpp"

namespace morphserve {
namespace {

// The clock of the golden files: 2024-07-04 09:05:03.000042.
absl::Time GoldenNow() {
  return absl::FromCivil(absl::CivilSecond(2024, 7, 4, 9, 5, 3), absl::UTCTimeZone()) +
         absl::Microseconds(42);
}

nlohmann::ordered_json Load(const std::string& name) {
  std::ifstream file(std::string(MORPHSERVE_SOURCE_DIR) + "/tests/golden/templates/" + name);
  return nlohmann::ordered_json::parse(file);
}

TEST(JinjaGolden, EveryExpressionPrintsOrRaisesAsInTheReference) {
  const auto golden = Load("expressions.json");
  ASSERT_GT(golden["cases"].size(), 1000u);
  int raised = 0;
  for (const auto& entry : golden["cases"]) {
    const std::string source = entry[0];
    SCOPED_TRACE(source);
    ChatInput input;
    input.template_args_json = golden["context"];
    input.now = GoldenNow();
    auto parsed = ChatTemplate::Create(source, golden["bos"], golden["eos"]);
    if (!parsed.ok()) {
      EXPECT_TRUE(entry[1].is_null()) << "refused: " << parsed.status() << "\nwanted: " << entry[1];
      ++raised;
      continue;
    }
    // What the template is given as messages is an empty list in the reference too.
    const auto rendered = (*parsed)->Render(input, {});
    if (entry[1].is_null()) {
      EXPECT_FALSE(rendered.ok()) << "printed: " << rendered->text;
      ++raised;
    } else {
      EXPECT_TRUE(rendered.ok()) << rendered.status() << "\nwanted: " << entry[1];
      if (rendered.ok()) {
        EXPECT_EQ(rendered->text, entry[1].get<std::string>());
      }
    }
  }
  EXPECT_GT(raised, 200);
}

TEST(JinjaGolden, WhatIsOutsideTheSubsetIsRefusedAndNotGuessed) {
  const auto golden = Load("expressions.json");
  for (const auto& entry : golden["refused"]) {
    SCOPED_TRACE(entry);
    ChatInput input;
    input.template_args_json = golden["context"];
    auto parsed = ChatTemplate::Create(entry.get<std::string>(), "", "");
    if (parsed.ok()) {
      EXPECT_FALSE((*parsed)->Render(input, {}).ok());
    }
  }
}

}  // namespace
}  // namespace morphserve
