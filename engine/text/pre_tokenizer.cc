#include "engine/text/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/base/status_macros.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

// Joins stretches as the behaviour says; afterwards is_match means: leave it out.
template <typename Stretch>
void ApplyBehavior(SplitBehavior behavior, std::vector<Stretch>* stretches) {
  if (behavior == SplitBehavior::kRemoved) return;
  const bool backwards = behavior == SplitBehavior::kMergedWithNext;
  if (backwards) std::reverse(stretches->begin(), stretches->end());
  size_t kept = 0;
  bool previous_match = false;
  for (const Stretch& stretch : *stretches) {
    const bool joins =
        behavior == SplitBehavior::kContiguous
            ? stretch.is_match == previous_match
            : behavior != SplitBehavior::kIsolated && stretch.is_match && !previous_match;
    previous_match = stretch.is_match;
    if (joins && kept > 0) {
      Stretch& last = (*stretches)[kept - 1];
      (backwards ? last.begin : last.end) = backwards ? stretch.begin : stretch.end;
    } else {
      (*stretches)[kept++] = {stretch.begin, stretch.end, false};
    }
  }
  stretches->resize(kept);
  if (backwards) std::reverse(stretches->begin(), stretches->end());
}

}  // namespace

PreTokenizer::PreTokenizer(std::vector<PreTokenizerStage> stages) : stages_(std::move(stages)) {}

std::string_view PreTokenizer::ByteLevelPattern() {
  return R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
}

absl::Status PreTokenizer::Split(std::string_view text, bool at_text_start, RegexScratch* regex,
                                 PreTokenizerScratch* scratch, Sink sink) const {
  scratch->stages_.resize(stages_.size());
  scratch->regex_ = regex;
  return Run(0, text, at_text_start, scratch, sink);
}

absl::Status PreTokenizer::Run(size_t stage, std::string_view text, bool at_start,
                               PreTokenizerScratch* scratch, Sink sink) const {
  if (text.empty()) return absl::OkStatus();
  if (stage == stages_.size()) {
    sink(text);
    return absl::OkStatus();
  }
  const PreTokenizerStage& here = stages_[stage];
  if (here.kind == PreTokenizerStage::Kind::kDigits) {
    return RunDigits(stage, text, at_start, scratch, sink);
  }
  text = AddSpaces(here, text, at_start, &scratch->stages_[stage].text);
  if (here.pattern == nullptr) return Run(stage + 1, text, at_start, scratch, sink);
  if (here.behavior == SplitBehavior::kIsolated) {
    return RunIsolated(stage, text, at_start, scratch, sink);
  }
  return RunPattern(stage, text, at_start, scratch, sink);
}

std::string_view PreTokenizer::AddSpaces(const PreTokenizerStage& stage, std::string_view text,
                                         bool at_start, std::string* buffer) const {
  if (stage.kind == PreTokenizerStage::Kind::kByteLevel) {
    if (!stage.add_prefix_space || text[0] == ' ') return text;
    buffer->assign(1, ' ');
    buffer->append(text);
    return *buffer;
  }
  if (stage.kind != PreTokenizerStage::Kind::kMetaspace) return text;
  const bool starts_with_space = text[0] == ' ' || text.starts_with(stage.replacement);
  const bool wanted = stage.prepend == PreTokenizerStage::Prepend::kAlways ||
                      (stage.prepend == PreTokenizerStage::Prepend::kFirst && at_start);
  buffer->clear();
  if (wanted && !starts_with_space) buffer->append(stage.replacement);
  for (const char c : text) {
    if (c == ' ') {
      buffer->append(stage.replacement);
    } else {
      buffer->push_back(c);
    }
  }
  return *buffer;
}

// The common case needs no list: each match, and what lies between matches, is a piece.
absl::Status PreTokenizer::RunIsolated(size_t stage, std::string_view text, bool at_start,
                                       PreTokenizerScratch* scratch, Sink sink) const {
  RegexMatches matches(*stages_[stage].pattern, text, scratch->regex_);
  size_t done = 0;
  const auto emit = [&](size_t end) {
    const size_t begin = std::exchange(done, end);
    return Run(stage + 1, text.substr(begin, end - begin), at_start && begin == 0, scratch, sink);
  };
  while (matches.Next()) {
    MS_RETURN_IF_ERROR(emit(matches.begin()));
    MS_RETURN_IF_ERROR(emit(matches.end()));
  }
  MS_RETURN_IF_ERROR(matches.status());
  return emit(text.size());
}

absl::Status PreTokenizer::RunPattern(size_t stage, std::string_view text, bool at_start,
                                      PreTokenizerScratch* scratch, Sink sink) const {
  const PreTokenizerStage& here = stages_[stage];
  auto& stretches = scratch->stages_[stage].stretches;
  stretches.clear();
  RegexMatches matches(*here.pattern, text, scratch->regex_);
  size_t done = 0;
  while (matches.Next()) {
    if (done != matches.begin()) stretches.push_back({done, matches.begin(), here.invert});
    stretches.push_back({matches.begin(), matches.end(), !here.invert});
    done = matches.end();
  }
  MS_RETURN_IF_ERROR(matches.status());
  if (done != text.size()) stretches.push_back({done, text.size(), here.invert});
  ApplyBehavior(here.behavior, &stretches);
  for (const auto& stretch : stretches) {
    if (stretch.is_match) continue;
    MS_RETURN_IF_ERROR(Run(stage + 1, text.substr(stretch.begin, stretch.end - stretch.begin),
                           at_start && stretch.begin == 0, scratch, sink));
  }
  return absl::OkStatus();
}

absl::Status PreTokenizer::RunDigits(size_t stage, std::string_view text, bool at_start,
                                     PreTokenizerScratch* scratch, Sink sink) const {
  const bool individual = stages_[stage].individual_digits;
  size_t begin = 0;
  bool in_digits = false;
  for (size_t i = 0; i < text.size();) {
    size_t length = 0;
    const bool digit = IsNumeric(DecodeUtf8(text.substr(i), &length));
    if (i > begin && (digit != in_digits || (digit && individual))) {
      MS_RETURN_IF_ERROR(
          Run(stage + 1, text.substr(begin, i - begin), at_start && begin == 0, scratch, sink));
      begin = i;
    }
    in_digits = digit;
    i += length;
  }
  return Run(stage + 1, text.substr(begin), at_start && begin == 0, scratch, sink);
}

}  // namespace morphserve
