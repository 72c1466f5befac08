// Methods of strings, dicts, lists and loops. Which names exist follows Python, so that `a.name`
// finds the method before a key of that name; what the sandbox of the reference forbids is hidden,
// and a method that exists in Python but not here fails when called. Any thread.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "engine/text/jinja_args.h"
#include "engine/text/jinja_runtime.h"
#include "engine/text/jinja_value.h"

namespace morphserve::jinja {

enum class MethodKind : uint8_t { kNone, kSafe, kHidden };

MethodKind FindMethod(const Value& object, std::string_view name);

[[nodiscard]] bool CallMethod(Runtime& rt, const Method& method, const Args& args, Value* out);

struct StringMethodEntry {
  std::string_view name;
  bool (*call)(Runtime& rt, const Str& self, const Args& args, Value* out);
};
extern const std::span<const StringMethodEntry> kStringMethods;

// String operations that filters share with methods. `chars` null: white space.
[[nodiscard]] bool Strip(Runtime& rt, const Str& text, const Str* chars, bool left, bool right,
                         Value* out);
[[nodiscard]] bool Replace(Runtime& rt, const Str& text, const Str& from, const Str& to,
                           int64_t count, bool markup, Value* out);
enum class CaseForm : uint8_t { kUpper, kLower, kTitle, kCapitalize };
[[nodiscard]] bool ChangeCase(Runtime& rt, const Str& text, CaseForm form, Value* out);
[[nodiscard]] bool Join(Runtime& rt, const Str& separator, std::span<const Value> items,
                        bool markup, Value* out);
// The lines, with or without their breaks.
[[nodiscard]] bool SplitLines(Runtime& rt, const Str& text, bool keep_ends,
                              std::vector<Value>* out);

}  // namespace morphserve::jinja
