#include "engine/text/jinja_args.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace morphserve::jinja {

bool BoundArgs::Bind(Runtime& rt, std::string_view callee, const Args& args,
                     std::initializer_list<std::string_view> names, size_t required) {
  if (args.positional.size() > names.size()) {
    return rt.Fail(absl::StrFormat("%s takes at most %d arguments, got %d", callee, names.size(),
                                   args.positional.size()));
  }
  for (size_t i = 0; i < args.positional.size(); ++i) values_[i] = &args.positional[i];
  for (const NamedValue& argument : args.named) {
    const auto* found = std::find(names.begin(), names.end(), argument.name);
    if (found == names.end()) {
      return rt.Fail(absl::StrFormat("%s got an unexpected argument '%s'", callee, argument.name));
    }
    const size_t i = static_cast<size_t>(found - names.begin());
    if (values_[i] != nullptr) {
      return rt.Fail(absl::StrFormat("%s got two values for argument '%s'", callee, *found));
    }
    values_[i] = &argument.value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (values_[i] == nullptr) {
      return rt.Fail(absl::StrFormat("%s misses argument '%s'", callee, names.begin()[i]));
    }
  }
  return true;
}

bool NoNamed(Runtime& rt, std::string_view callee, const Args& args) {
  return args.named.empty() || rt.Fail(absl::StrFormat("%s takes no named arguments", callee));
}

bool WantInt(Runtime& rt, std::string_view callee, const Value& value, int64_t* out) {
  if (!value.is_integral()) {
    return rt.Fail(absl::StrFormat("%s wants an integer, got '%s'", callee, TypeName(value)));
  }
  *out = value.integer();
  return true;
}

bool WantString(Runtime& rt, std::string_view callee, const Value& value) {
  if (value.is_string()) return true;
  return rt.Fail(absl::StrFormat("%s wants a string, got '%s'", callee, TypeName(value)));
}

}  // namespace morphserve::jinja
