// Runtime is what one rendering may use up and what became of it: the arena, the step budget, the
// byte limit of any one string, and the first error. Everything that works on values takes it.
// Functions that can fail return false after Fail; the caller unwinds without further effect.
// Thread rule: one rendering, one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/text/jinja_arena.h"
#include "engine/text/jinja_value.h"
#include "engine/text/tokenizer.h"

namespace morphserve::jinja {

class Runtime {
 public:
  struct Options {
    int64_t steps_max = 0;
    int64_t text_bytes_max = 0;  // Of the output and of any string on the way to it.
    absl::Time now;
  };

  explicit Runtime(const Options& options);

  Arena& arena() { return arena_; }
  int64_t text_bytes_max() const { return text_bytes_max_; }
  absl::Time now() const { return now_; }
  int64_t* steps_left() { return &steps_left_; }

  // Takes `steps` from the budget; false (failed) when it is used up.
  [[nodiscard]] bool Charge(int64_t steps = 1) {
    steps_left_ -= steps;
    return steps_left_ >= 0 || FailSteps();
  }
  // Copying or scanning `bytes` costs a step per 64 of them.
  [[nodiscard]] bool ChargeBytes(size_t bytes) { return Charge(static_cast<int64_t>(bytes / 64)); }

  // Both keep the first error only, and return false. Fail prefixes the line of the template.
  bool Fail(std::string message);
  bool FailMemory() { return Fail("values take more memory than the limit"); }
  bool FailLimit(size_t bytes);
  // The template called raise_exception.
  bool Raise(std::string_view text);
  bool failed() const { return error_.has_value(); }
  absl::Status status() const;

  void set_line(int line) { line_ = line; }
  int line() const { return line_; }

  // Value makers; false at the memory limit.
  [[nodiscard]] bool MakeText(std::string_view text, bool trusted, Value* out);  // Copies.
  [[nodiscard]] bool MakeStr(const Str& str, Value* out);                        // Borrows bytes.
  [[nodiscard]] bool MakeList(std::span<const Value> items, Value* out);         // Copies.
  [[nodiscard]] bool MakeTuple(std::span<const Value> items, Value* out);
  [[nodiscard]] bool MakeUndefined(std::string_view name, const char* owner, Value* out);
  [[nodiscard]] Dict* MakeDict();  // Null after FailMemory.
  [[nodiscard]] bool SetItem(Dict* dict, const Value& key, const Value& value);

  // Fails with the message of a value that must be defined.
  bool FailUndefined(const Value& value);

 private:
  bool FailSteps();

  Arena arena_;
  const int64_t steps_max_;
  const int64_t text_bytes_max_;
  const absl::Time now_;
  int64_t steps_left_;
  int line_ = 0;
  std::optional<std::string> error_;
};

// Builds a string together with its provenance. Past the byte limit it fails the runtime and
// ignores what follows, so only Finish needs a look.
class TextBuilder {
 public:
  explicit TextBuilder(Runtime& rt) : rt_(rt) {}

  void Append(std::string_view text, bool trusted);
  void Append(const Str& text) { AppendSlice(text, 0, text.size); }
  void AppendSlice(const Str& text, uint32_t begin, uint32_t end);
  // `text` stands for the byte of `source` at `offset` and inherits its provenance.
  void AppendFor(std::string_view text, const Str& source, uint32_t offset);

  size_t size() const { return bytes_.size(); }
  std::string_view view() const { return bytes_; }
  void Clear();
  // Copies into the arena. False when the runtime has failed, here or before.
  [[nodiscard]] bool Finish(Value* out, bool markup = false);
  // The bytes and trusted ranges; leaves the builder empty.
  std::string Release(std::vector<ByteRange>* trusted);

 private:
  void Mark(size_t begin, size_t end);

  Runtime& rt_;
  std::string bytes_;
  std::vector<TrustRun> runs_;
};

// The part [begin, end) of a string: borrowed bytes, provenance cut to it. False at the memory
// limit.
[[nodiscard]] bool Substr(Runtime& rt, const Str& text, size_t begin, size_t end, Value* out);

// a + b for plain strings; reuses the room behind `a` where it can.
[[nodiscard]] bool Concat(Runtime& rt, const Str& a, const Str& b, bool markup, Value* out);

// True when the byte at `offset` is trusted.
bool TrustedAt(const Str& text, uint32_t offset);

}  // namespace morphserve::jinja
