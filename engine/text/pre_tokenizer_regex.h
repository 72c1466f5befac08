// Regex is an Oniguruma pattern over UTF-8, compiled as the reference tokenizer library compiles
// its patterns, with limits on what one match may cost. Patterns come from model files, subjects
// from clients. Thread rule: Regex is immutable and shared; RegexScratch belongs to one thread at a
// time. Source: Oniguruma doc/API and doc/RE.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace morphserve {

inline constexpr size_t kRegexPatternBytesMax = 16 << 10;

// Space for one search: the region and the limits, which Oniguruma does not let threads share.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class RegexMatches;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

class Regex {
 public:
  // INVALID_ARGUMENT when the pattern is too long or does not compile; the message starts with
  // `where`.
  static absl::StatusOr<std::shared_ptr<const Regex>> Create(std::string_view pattern,
                                                             std::string_view where);
  // The pattern that matches exactly `literal`.
  static absl::StatusOr<std::shared_ptr<const Regex>> CreateLiteral(std::string_view literal,
                                                                    std::string_view where);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

 private:
  friend class RegexMatches;
  explicit Regex(void* compiled) : compiled_(compiled) {}
  void* compiled_;  // regex_t*, kept out of this header.
};

// Walks the successive matches of `regex` in `text` (well-formed UTF-8, outlives this): each search
// starts where the last match ended; an empty match directly after a match is not accepted.
class RegexMatches {
 public:
  RegexMatches(const Regex& regex, std::string_view text, RegexScratch* scratch)
      : regex_(regex), text_(text), scratch_(scratch) {}

  // True: a match, in begin() and end(). False: none is left, or an error: see status().
  bool Next();
  size_t begin() const { return begin_; }
  size_t end() const { return end_; }
  // INVALID_ARGUMENT when a limit was hit.
  const absl::Status& status() const { return status_; }

 private:
  const Regex& regex_;
  std::string_view text_;
  RegexScratch* scratch_;
  size_t from_ = 0;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool has_match_ = false;  // end_ is the end of a match.
  absl::Status status_;
};

}  // namespace morphserve
