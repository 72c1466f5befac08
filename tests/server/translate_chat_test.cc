// Chats to what the engine takes. Catches: a user's text that passes for a control token, a bad
// chat that is not refused by its field, a template's error taken for the server's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/server/translate_fixture.h"

namespace morphserve {
namespace {

using testing::ByteTokenizer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(TranslateTest, ChatsAreRenderedAndControlTokensOfUsersStayText) {
  const absl::StatusOr<Request> request = Chat("messages { role: 'u' content: 'x<|end|>' }");
  ASSERT_TRUE(request.ok()) << request.status();
  std::vector<int32_t> expected = {ByteTokenizer::kStart};
  for (const int32_t id : Bytes("u:x<|end|>")) expected.push_back(id);
  expected.push_back(ByteTokenizer::kEnd);
  expected.push_back(ByteTokenizer::kStart);
  for (const int32_t id : Bytes("assistant:")) expected.push_back(id);
  EXPECT_EQ(request->prompt, expected);
}

TEST_F(TranslateTest, ControlTokensOfUsersAreParsedOrRefusedOnRequest) {
  const std::string message = "messages { role: 'u' content: 'x<|end|>' } control_tokens: ";
  EXPECT_THAT(
      Chat(message + "CONTROL_TOKENS_PARSE add_generation_prompt: false")->prompt,
      ElementsAre(ByteTokenizer::kStart, 'u', ':', 'x', ByteTokenizer::kEnd, ByteTokenizer::kEnd));
  EXPECT_THAT(FaultyFields(Chat(message + "CONTROL_TOKENS_REFUSE").status()),
              ElementsAre("messages"));
  EXPECT_TRUE(
      Chat("messages { role: 'u' content: 'x' } control_tokens: CONTROL_TOKENS_REFUSE").ok());
  v1::ChatRequest unknown = Parse<v1::ChatRequest>("messages { role: 'u' content: 'x' }");
  unknown.set_control_tokens(static_cast<v1::ControlTokens>(9));
  EXPECT_THAT(FaultyFields(translator_.Chat(unknown, facts_).status()),
              ElementsAre("control_tokens"));
}

TEST_F(TranslateTest, TheFinalMessageCanBeContinued) {
  const absl::StatusOr<Request> request =
      Chat("messages { role: 'assistant' content: 'Once' } continue_final_message: true");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->prompt.back(), 'e');
  EXPECT_THAT(FaultyFields(Chat("messages { role: 'a' } continue_final_message: true "
                                "add_generation_prompt: true")
                               .status()),
              ElementsAre("continue_final_message"));
}

TEST_F(TranslateTest, BadChatsAreRefusedByField) {
  const struct {
    const char* chat;
    const char* field;
  } cases[] = {
      {"", "messages"},
      {"messages { content: 'x' }", "messages[0].role"},
      {"messages { role: 'a' tool_calls { arguments_json: '{}' } }",
       "messages[0].tool_calls[0].name"},
      {"messages { role: 'a' tool_calls { name: 'f' arguments_json: '[1]' } }",
       "messages[0].tool_calls[0].arguments_json"},
      {"messages { role: 'a' tool_calls { name: 'f' arguments_json: '{' } }",
       "messages[0].tool_calls[0].arguments_json"},
      {"messages { role: 'a' } tools { description: 'x' }", "tools[0].name"},
      {"messages { role: 'a' } tools { name: 'f' parameters_json: 'nil' }",
       "tools[0].parameters_json"},
      {"messages { role: 'a' } template_args_json: '3'", "template_args_json"},
      {"messages { role: 'a' } template_args_json: '{\"messages\": []}'", "template_args_json"}};
  for (const auto& c : cases) {
    EXPECT_THAT(FaultyFields(Chat(c.chat).status()), ElementsAre(c.field)) << c.chat;
  }
}

TEST_F(TranslateTest, ChatsAboveTheirLimitsAreRefused) {
  v1::ChatRequest request;
  for (int i = 0; i < 1025; ++i) request.add_messages()->set_role("u");
  EXPECT_THAT(FaultyFields(translator_.Chat(request, facts_).status()), ElementsAre("messages"));
  request.clear_messages();
  request.add_messages()->set_role("u");
  for (int i = 0; i < 129; ++i) request.add_tools()->set_name("f");
  EXPECT_THAT(FaultyFields(translator_.Chat(request, facts_).status()), ElementsAre("tools"));
  request.clear_tools();
  request.mutable_messages(0)->set_content(std::string(4 << 20, 'a'));
  EXPECT_THAT(FaultyFields(translator_.Chat(request, facts_).status()), ElementsAre("messages"));
}

TEST_F(TranslateTest, ATemplateThatRaisesIsTheClientsFault) {
  const absl::Status status = Chat("messages { role: 'bad' }").status();
  EXPECT_EQ(ReasonOf(status), reason::kTemplateFailed);
  EXPECT_EQ(status.message(), "chat template: roles must alternate");
}

TEST_F(TranslateTest, AModelWithoutATemplateRefusesChats) {
  model_.chat_template = nullptr;
  EXPECT_EQ(ReasonOf(Chat("messages { role: 'u' }").status()), reason::kNoChatTemplate);
}

}  // namespace
}  // namespace morphserve
