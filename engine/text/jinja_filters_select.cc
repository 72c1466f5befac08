// map, select, reject, selectattr, rejectattr: lazy, as in the reference, down to errors that only
// come up when the first item is asked for.
#include "absl/strings/str_format.h"
#include "engine/text/jinja_attribute.h"
#include "engine/text/jinja_library.h"
#include "engine/text/jinja_ops.h"

namespace morphserve::jinja {
namespace {

class MappedItems final : public Generator {
 public:
  MappedItems(const Value& input, const Args& args) : input_(input), args_(args) {}

  bool Next(Runtime& rt, Value* out, bool* done) override {
    *done = true;
    if (!Truthy(input_)) return true;
    if (source_ == nullptr && !(Prepare(rt) && Iterate(rt, input_, &source_))) return false;
    Value item;
    if (!source_->Next(rt, &item, done)) return false;
    if (*done) return true;
    if (!by_filter_) return path_.Get(rt, item, default_, out);
    if (filter_ == nullptr) return rt.Fail("map by a filter that does not exist");
    return filter_->apply(rt, item, args_, out);
  }

 private:
  bool Prepare(Runtime& rt) {
    if (!args_.positional.empty()) {
      by_filter_ = true;
      const Value& name = args_.positional[0];
      if (name.is_string()) filter_ = FindFilter(name.text());
      args_.positional = args_.positional.subspan(1);
      return true;
    }
    const Value* attribute = nullptr;
    for (const NamedValue& argument : args_.named) {
      if (argument.name == "attribute") attribute = &argument.value;
      if (argument.name == "default") default_ = &argument.value;
    }
    if (attribute == nullptr) return rt.Fail("map wants a filter or an attribute");
    for (const NamedValue& argument : args_.named) {
      if (argument.name != "attribute" && argument.name != "default") {
        return rt.Fail(absl::StrFormat("map got an unexpected argument '%s'", argument.name));
      }
    }
    return path_.Parse(rt, *attribute);
  }

  Value input_;
  Args args_;
  Generator* source_ = nullptr;
  bool by_filter_ = false;
  const FilterEntry* filter_ = nullptr;
  AttributePath path_;
  const Value* default_ = nullptr;
};

class SelectedItems final : public Generator {
 public:
  SelectedItems(const Value& input, const Args& args, bool by_attribute, bool wanted)
      : input_(input), args_(args), by_attribute_(by_attribute), wanted_(wanted) {}

  bool Next(Runtime& rt, Value* out, bool* done) override {
    *done = true;
    if (!Truthy(input_)) return true;
    if (source_ == nullptr && !(Prepare(rt) && Iterate(rt, input_, &source_))) return false;
    while (true) {
      if (!source_->Next(rt, out, done)) return false;
      if (*done) return true;
      Value subject;
      bool verdict = false;
      if (!path_.Get(rt, *out, nullptr, &subject) || !Judge(rt, subject, &verdict)) return false;
      if (verdict == wanted_) return true;
    }
  }

 private:
  bool Prepare(Runtime& rt) {
    if (by_attribute_) {
      if (args_.positional.empty()) return rt.Fail("missing parameter for the attribute name");
      if (!path_.Parse(rt, args_.positional[0])) return false;
      args_.positional = args_.positional.subspan(1);
    }
    by_test_ = !args_.positional.empty();
    if (!by_test_) return true;
    const Value& name = args_.positional[0];
    if (name.is_string()) test_ = FindTest(name.text());
    args_.positional = args_.positional.subspan(1);
    return true;
  }

  bool Judge(Runtime& rt, const Value& subject, bool* verdict) const {
    if (!by_test_) {
      *verdict = Truthy(subject);
      return true;
    }
    if (test_ == nullptr) return rt.Fail("selection by a test that does not exist");
    return test_->apply(rt, subject, args_, verdict);
  }

  Value input_;
  Args args_;
  bool by_attribute_;
  bool wanted_;
  bool by_test_ = false;
  Generator* source_ = nullptr;
  const TestEntry* test_ = nullptr;
  AttributePath path_;
};

bool Map(Runtime& rt, const Value& input, const Args& args, Value* out) {
  MappedItems* items = rt.arena().New<MappedItems>(input, args);
  if (items == nullptr) return rt.FailMemory();
  *out = Value::OfGenerator(items);
  return true;
}

template <bool kByAttribute, bool kWanted>
bool Select(Runtime& rt, const Value& input, const Args& args, Value* out) {
  SelectedItems* items = rt.arena().New<SelectedItems>(input, args, kByAttribute, kWanted);
  if (items == nullptr) return rt.FailMemory();
  *out = Value::OfGenerator(items);
  return true;
}

constexpr FilterEntry kEntries[] = {
    {"map", Map},
    {"select", Select<false, true>},
    {"reject", Select<false, false>},
    {"selectattr", Select<true, true>},
    {"rejectattr", Select<true, false>},
};

}  // namespace

const std::span<const FilterEntry> kSelectFilters = kEntries;

}  // namespace morphserve::jinja
