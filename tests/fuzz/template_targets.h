// What the fuzzers of chat templates do with one input. Shared with the unit test that replays
// their corpora: the promise is a clean status, never an abort or an over-read, and for what
// renders, text that is UTF-8 with sorted, disjoint trusted ranges inside it.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "engine/text/chat_template.h"
#include "engine/text/jinja_unicode.h"

namespace morphserve::fuzz {

inline void RequireTemplate(bool condition) {
  if (!condition) std::abort();
}

// Cuts the front of `bytes` off, up to a zero byte.
inline std::string TakePart(std::string_view* bytes) {
  const size_t end = std::min(bytes->find('\0'), bytes->size());
  const std::string part(bytes->substr(0, end));
  bytes->remove_prefix(std::min(end + 1, bytes->size()));
  return part;
}

inline void RenderAndCheck(const ChatTemplate& chat_template, const ChatInput& input) {
  const auto rendered =
      chat_template.Render(input, {.steps_max = 20'000, .output_bytes_max = 64 << 10});
  if (!rendered.ok()) {
    RequireTemplate(!rendered.status().message().empty());
    RequireTemplate(!jinja::InvalidUtf8At(std::string(rendered.status().message())));
    return;
  }
  RequireTemplate(!jinja::InvalidUtf8At(rendered->text));
  size_t end = 0;
  for (const ByteRange& range : rendered->trusted) {
    RequireTemplate(range.begin >= end && range.begin < range.end);
    end = range.end;
  }
  RequireTemplate(end <= rendered->text.size());
}

inline ChatInput SampleInput() {
  ChatInput input;
  input.now = absl::FromUnixSeconds(1'720'083'903);
  for (const char* role : {"system", "user", "assistant", "tool"}) {
    ChatMessage message;
    message.role = role;
    message.content = "<b> na\xC3\xAFve \xF0\x9F\x98\x80 {{ x }} 12";
    input.messages.push_back(message);
  }
  input.messages[2].reasoning = "because";
  input.messages[2].tool_calls.push_back({"call00001", "f", R"({"a": [1, 2.5, {"b": null}]})"});
  input.messages[3].tool_call_id = "call00001";
  input.tools.push_back({"f", "does it", R"({"type": "object", "properties": {"a": {}}})"});
  input.template_args_json =
      R"({"l": [3, 1, 2], "s": "Hello, World", "d": {"a": 1, "b": [true]}, "n": 42, "f": 1.5})";
  return input;
}

// Any template over a fixed chat.
inline void FuzzTemplateSource(std::string_view source) {
  const auto chat_template = ChatTemplate::Create(source, "<s>", "</s>");
  if (!chat_template.ok()) {
    RequireTemplate(!chat_template.status().message().empty());
    return;
  }
  ChatInput input = SampleInput();
  RenderAndCheck(**chat_template, input);
  input.add_generation_prompt = false;
  input.continue_final_message = true;
  RenderAndCheck(**chat_template, input);
}

// A template that touches everything of the request in many ways, over any request: content, role,
// name, reasoning, arguments of a call, parameters of a tool, template arguments, and flags, with
// zero bytes between.
inline void FuzzTemplateInput(std::string_view bytes) {
  static const auto* const chat_template =
      ChatTemplate::Create(
          "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim | upper }}"
          "{{ m.content.split(',') | join('|') }}{{ m.content[::-1] }}{{ m.content[1:3] }}"
          "{{ m.content.title() }}{{ [m.content, m] }}{{ m | tojson(indent=2) }}"
          "{{ m.content | replace('a', m.role) | indent(2) }}{{ m.content.split() }}"
          "{{ m.content.strip(m.role) }}{{ m.content | int }}{{ m.content | float }}"
          "{{ m.content.splitlines() | map('length') | list }}"
          "{% for c in m.content %}{{ loop.cycle(c, '-') }}{% endfor %}"
          "{% for c in m.tool_calls %}{{ c.function.arguments | tojson(ensure_ascii=true) }}"
          "{% for k, v in c.function.arguments | dictsort %}{{ k }}={{ v }}{% endfor %}{% endfor %}"
          "{{ m.reasoning_content | default('none') | lower | e }}{% endfor %}"
          "{{ tools | tojson(sort_keys=true) }}{{ x | string | length }}{{ x }}{{ x == y }}"
          "{{ y | list if y is iterable }}{{ '%s' % (x,) }}{{ '{}'.format(y) }}"
          "{{ strftime_now(z) if z is string }}",
          "<s>", "</s>")
          .value()
          .release();
  ChatInput input = SampleInput();
  ChatMessage message;
  message.content = TakePart(&bytes);
  message.role = TakePart(&bytes);
  message.name = TakePart(&bytes);
  message.reasoning = TakePart(&bytes);
  const std::string arguments = TakePart(&bytes);
  if (!arguments.empty()) message.tool_calls.push_back({message.name, message.role, arguments});
  const std::string parameters = TakePart(&bytes);
  if (!parameters.empty()) input.tools.push_back({message.role, message.name, parameters});
  input.template_args_json = TakePart(&bytes);
  input.add_generation_prompt = bytes.empty() || bytes[0] % 2 == 0;
  input.continue_final_message = !bytes.empty() && bytes[0] % 4 == 1;
  input.messages.push_back(message);
  RenderAndCheck(*chat_template, input);
}

}  // namespace morphserve::fuzz
