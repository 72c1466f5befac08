#include "engine/text/jinja_attribute.h"

#include <algorithm>
#include <string_view>

#include "engine/text/jinja_methods.h"
#include "engine/text/jinja_number.h"
#include "engine/text/jinja_ops.h"

namespace morphserve::jinja {
namespace {

// Calls `take(begin, end)` for each part of `text` between separators.
template <typename Take>
bool ForEachPart(std::string_view text, char separator, Take take) {
  for (size_t begin = 0;;) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    if (!take(begin, end)) return false;
    if (end == text.size()) return true;
    begin = end + 1;
  }
}

}  // namespace

bool AttributePath::Parse(Runtime& rt, const Value& attribute) {
  parts_ = {};
  if (attribute.is(Kind::kNone)) return true;
  std::vector<Value> parts;
  if (attribute.is_string()) {
    const Str& text = attribute.str();
    const bool ok = ForEachPart(text.view(), '.', [&](size_t begin, size_t end) {
      const std::string_view part = text.view().substr(begin, end - begin);
      Value value;
      bool too_large = false;
      const bool digits = !part.empty() && part.find_first_not_of("0123456789") == part.npos;
      if (const auto number = ParseInt(part, 10, &too_large); digits && number) {
        value = Value::Int(*number);
      } else if (!Substr(rt, text, begin, end, &value)) {
        return false;
      }
      parts.push_back(value);
      return rt.Charge();
    });
    if (!ok) return false;
  } else {
    parts.push_back(attribute);
  }
  const Value* kept = rt.arena().CopyArray(parts.data(), parts.size());
  if (kept == nullptr) return rt.FailMemory();
  parts_ = {kept, parts.size()};
  return true;
}

bool AttributePath::ParseMany(Runtime& rt, const Value* attribute,
                              std::vector<AttributePath>* out) {
  if (attribute == nullptr || !attribute->is_string()) {
    out->emplace_back();
    return attribute == nullptr || out->back().Parse(rt, *attribute);
  }
  const Str& text = attribute->str();
  return ForEachPart(text.view(), ',', [&](size_t begin, size_t end) {
    Value part;
    out->emplace_back();
    return Substr(rt, text, begin, end, &part) && out->back().Parse(rt, part);
  });
}

bool AttributePath::Get(Runtime& rt, const Value& item, const Value* otherwise, Value* out) const {
  Value value = item;
  for (const Value& part : parts_) {
    Value next;
    if (!rt.Charge() || !GetItem(rt, value, part, &next)) return false;
    if (next.is_undefined() && otherwise != nullptr && !otherwise->is(Kind::kNone)) {
      next = *otherwise;
    }
    value = next;
  }
  *out = value;
  return true;
}

bool IgnoreCase(Runtime& rt, Value* value) {
  if (!value->is_string()) return true;
  const Value text = *value;
  return ChangeCase(rt, text.str(), CaseForm::kLower, value);
}

}  // namespace morphserve::jinja
