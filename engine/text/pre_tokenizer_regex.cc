#include "engine/text/pre_tokenizer_regex.h"

#include <oniguruma.h>

#include <mutex>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

// The reference runs with the engine's default of 10,000,000 retries a match; the other two are
// unlimited there. A search restarts its match at every position, so its own limit bounds what one
// piece may cost; the stack (some 40 bytes an entry) bounds memory.
constexpr unsigned long kRetriesPerMatch = 10'000'000;
constexpr unsigned long kRetriesPerSearch = 20'000'000;
constexpr unsigned int kStackEntries = 5'000'000;

const OnigUChar* Bytes(std::string_view text) {
  return reinterpret_cast<const OnigUChar*>(text.data());
}

void InitialiseOnce() {
  static std::once_flag once;
  std::call_once(once, [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    MS_CHECK(onig_initialize(encodings, 1) == ONIG_NORMAL);
  });
}

}  // namespace

struct RegexScratch::Parts {
  OnigRegion* region = onig_region_new();
  OnigMatchParam* limits = onig_new_match_param();
};

RegexScratch::RegexScratch() : parts_(std::make_unique<Parts>()) {
  MS_CHECK(parts_->region != nullptr && parts_->limits != nullptr);
  MS_CHECK(onig_initialize_match_param(parts_->limits) == ONIG_NORMAL);
  MS_CHECK(onig_set_retry_limit_in_match_of_match_param(parts_->limits, kRetriesPerMatch) ==
           ONIG_NORMAL);
  MS_CHECK(onig_set_retry_limit_in_search_of_match_param(parts_->limits, kRetriesPerSearch) ==
           ONIG_NORMAL);
  MS_CHECK(onig_set_match_stack_limit_size_of_match_param(parts_->limits, kStackEntries) ==
           ONIG_NORMAL);
}

RegexScratch::~RegexScratch() {
  onig_region_free(parts_->region, /*free_self=*/1);
  onig_free_match_param(parts_->limits);
}

Regex::~Regex() { onig_free(static_cast<OnigRegex>(compiled_)); }

absl::StatusOr<std::shared_ptr<const Regex>> Regex::Create(std::string_view pattern,
                                                           std::string_view where) {
  InitialiseOnce();
  if (pattern.size() > kRegexPatternBytesMax) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: pattern has %d bytes; limit is %d", where, pattern.size(), kRegexPatternBytesMax));
  }
  if (FindInvalidUtf8(pattern) != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: pattern is not UTF-8", where));
  }
  OnigRegex compiled = nullptr;
  OnigErrorInfo info;
  const int code = onig_new(&compiled, Bytes(pattern), Bytes(pattern) + pattern.size(),
                            ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_ONIGURUMA, &info);
  if (code != ONIG_NORMAL) {
    OnigUChar text[ONIG_MAX_ERROR_MESSAGE_LEN] = {};
    onig_error_code_to_str(text, code, &info);
    return absl::InvalidArgumentError(absl::StrFormat("%s: pattern does not compile: %s", where,
                                                      reinterpret_cast<const char*>(text)));
  }
  return std::shared_ptr<const Regex>(new Regex(compiled));
}

absl::StatusOr<std::shared_ptr<const Regex>> Regex::CreateLiteral(std::string_view literal,
                                                                  std::string_view where) {
  constexpr std::string_view kMeta = "\\.+*?()|[]{}^$#&-~";
  std::string pattern;
  for (const char c : literal) {
    if (kMeta.find(c) != std::string_view::npos) pattern.push_back('\\');
    pattern.push_back(c);
  }
  return Create(pattern, where);
}

bool RegexMatches::Next() {
  const OnigUChar* const text = Bytes(text_);
  OnigRegion* const region = scratch_->parts_->region;
  while (status_.ok() && from_ <= text_.size()) {
    const int code = onig_search_with_param(static_cast<OnigRegex>(regex_.compiled_), text,
                                            text + text_.size(), text + from_, text + text_.size(),
                                            region, ONIG_OPTION_NONE, scratch_->parts_->limits);
    if (code == ONIG_MISMATCH) {
      from_ = text_.size() + 1;
      return false;
    }
    if (code < 0) {
      status_ = absl::InvalidArgumentError(
          absl::StrFormat("splitting %d bytes of text hit a limit of the pattern engine (error %d)",
                          text_.size(), code));
      return false;
    }
    const auto begin = static_cast<size_t>(region->beg[0]);
    const auto end = static_cast<size_t>(region->end[0]);
    if (begin < from_ || end < begin) {  // A pattern can do this with \K inside a look-ahead.
      status_ = absl::InvalidArgumentError("a pattern's match ends before it begins");
      return false;
    }
    if (begin == end && has_match_ && end == end_) {
      from_ += from_ < text_.size() ? Utf8Length(text_[from_]) : 1;
      continue;
    }
    begin_ = begin;
    end_ = end;
    from_ = end;
    has_match_ = true;
    return true;
  }
  return false;
}

}  // namespace morphserve
