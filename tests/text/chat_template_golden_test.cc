// Whole chats through templates of the public families' kinds, byte for byte as transformers
// renders them: system prompts, tools, calls, results, reasoning, dates, control strings,
// continuations.
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "absl/time/time.h"
#include "engine/text/chat_template.h"
#include "nlohmann/json.hpp"

namespace morphserve {
namespace {

using Json = nlohmann::ordered_json;

std::string Folder() { return std::string(MORPHSERVE_SOURCE_DIR) + "/tests/golden/templates/"; }

std::string ReadSource(const std::string& name) {
  std::ifstream file(Folder() + "sources/" + name + ".jinja", std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string Field(const Json& object, const char* name) {
  return object.contains(name) ? object[name].get<std::string>() : "";
}

ChatMessage ToMessage(const Json& json) {
  ChatMessage message;
  message.role = Field(json, "role");
  message.content = Field(json, "content");
  message.name = Field(json, "name");
  message.reasoning = Field(json, "reasoning_content");
  message.tool_call_id = Field(json, "tool_call_id");
  if (json.contains("tool_calls")) {
    for (const Json& call : json["tool_calls"]) {
      message.tool_calls.push_back({Field(call, "id"), Field(call["function"], "name"),
                                    call["function"]["arguments"].dump()});
    }
  }
  return message;
}

ChatInput ToInput(const Json& json) {
  ChatInput input;
  input.now = absl::FromCivil(absl::CivilSecond(2024, 7, 4, 9, 5, 3), absl::UTCTimeZone());
  for (const Json& message : json["messages"]) input.messages.push_back(ToMessage(message));
  if (json.contains("tools")) {
    for (const Json& tool : json["tools"]) {
      const Json& function = tool["function"];
      input.tools.push_back({Field(function, "name"), Field(function, "description"),
                             function.contains("parameters") ? function["parameters"].dump() : ""});
    }
  }
  input.template_args_json = json["args"];
  input.add_generation_prompt = json.value("add_generation_prompt", true);
  input.continue_final_message = json.value("continue_final_message", false);
  return input;
}

TEST(ChatTemplateGolden, EveryChatRendersOrRaisesAsInTheReference) {
  std::ifstream file(Folder() + "chats.json");
  const Json golden = Json::parse(file);
  std::map<std::string, std::unique_ptr<ChatTemplate>> templates;
  ASSERT_GT(golden["cases"].size(), 250u);
  for (const Json& entry : golden["cases"]) {
    const std::string name = entry[0];
    SCOPED_TRACE(name + " / " + entry[1].get<std::string>());
    if (!templates.contains(name)) {
      auto parsed = ChatTemplate::Create(ReadSource(name), golden["bos"], golden["eos"]);
      ASSERT_TRUE(parsed.ok()) << parsed.status();
      templates[name] = *std::move(parsed);
    }
    const ChatInput input = ToInput(golden["inputs"][entry[1].get<std::string>()]);
    const auto rendered = templates[name]->Render(input, {});
    ASSERT_EQ(rendered.ok(), !entry[2].is_null()) << rendered.status();
    if (rendered.ok()) {
      EXPECT_EQ(rendered->text, entry[2].get<std::string>());
    }
  }
}

}  // namespace
}  // namespace morphserve
