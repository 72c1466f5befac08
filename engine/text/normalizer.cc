#include "engine/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/text/normalizer_unicode.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

constexpr size_t kAlwaysAllowedBytes = 1 << 20;

std::optional<UnicodeForm> FormOf(NormalizerStage::Kind kind) {
  switch (kind) {
    case NormalizerStage::Kind::kNfc: return UnicodeForm::kNfc;
    case NormalizerStage::Kind::kNfd: return UnicodeForm::kNfd;
    case NormalizerStage::Kind::kNfkc: return UnicodeForm::kNfkc;
    case NormalizerStage::Kind::kNfkd: return UnicodeForm::kNfkd;
    default: return std::nullopt;
  }
}

// Builds a text and its trust side by side.
class Builder {
 public:
  explicit Builder(const TrackedText& source) : source_(source) {
    out_.track = source.track;
    out_.text.reserve(source.text.size());
    if (source.track) out_.trusted.reserve(source.text.size());
  }

  // Bytes that stand for [begin, end) of the source: trusted when all of those are.
  void Put(std::string_view text, size_t begin, size_t end) {
    out_.text.append(text);
    if (!out_.track) return;
    const std::string_view origin = std::string_view(source_.trusted).substr(begin, end - begin);
    out_.trusted.append(text.size(), origin.find('\0') == std::string_view::npos ? '\1' : '\0');
  }
  void Copy(size_t begin, size_t end) {
    out_.text.append(source_.text, begin, end - begin);
    if (out_.track) out_.trusted.append(source_.trusted, begin, end - begin);
  }
  size_t size() const { return out_.text.size(); }
  std::string* text() { return &out_.text; }
  // After writing to text() directly.
  void MarkWritten(size_t begin, size_t end) {
    const size_t written = out_.text.size() - out_.trusted.size();
    const std::string_view origin = std::string_view(source_.trusted).substr(begin, end - begin);
    out_.trusted.append(written, origin.find('\0') == std::string_view::npos ? '\1' : '\0');
  }
  TrackedText Take() { return std::move(out_); }

 private:
  const TrackedText& source_;
  TrackedText out_;
};

void NormalizeForm(UnicodeForm form, TrackedText* text) {
  if (IsSurelyNormalized(form, text->text)) return;
  Builder out(*text);
  if (!text->track) {
    AppendNormalized(form, text->text, out.text());
    *text = out.Take();
    return;
  }
  // No composition or reordering reaches across the front of an ASCII character: the stretches
  // between two of them are normalised alone, so that trust stays as narrow as it can.
  const std::string_view source = text->text;
  for (size_t begin = 0; begin < source.size();) {
    size_t end = begin + 1;
    while (end < source.size() && static_cast<unsigned char>(source[end]) >= 0x80) ++end;
    AppendNormalized(form, source.substr(begin, end - begin), out.text());
    out.MarkWritten(begin, end);
    begin = end;
  }
  *text = out.Take();
}

absl::Status Replace(const NormalizerStage& stage, RegexScratch* scratch, size_t bytes_max,
                     TrackedText* text) {
  Builder out(*text);
  RegexMatches matches(*stage.pattern, text->text, scratch);
  size_t done = 0;
  while (matches.Next()) {
    if (matches.begin() == matches.end()) {
      return absl::InvalidArgumentError("a replacement's pattern matched no text");
    }
    out.Copy(done, matches.begin());
    out.Put(stage.content, matches.begin(), matches.end());
    done = matches.end();
    if (out.size() > bytes_max) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "normalising %d bytes of text gives more than %d bytes", text->text.size(), bytes_max));
    }
  }
  if (!matches.status().ok()) return matches.status();
  if (done == 0 && out.size() == 0) return absl::OkStatus();
  out.Copy(done, text->text.size());
  *text = out.Take();
  return absl::OkStatus();
}

void Strip(const NormalizerStage& stage, TrackedText* text) {
  const size_t left = stage.strip_left ? LeadingWhiteSpace(text->text) : 0;
  size_t right = text->text.size();
  if (stage.strip_right && left < right) right -= TrailingWhiteSpace(text->text);
  Builder out(*text);
  out.Copy(left, right);
  *text = out.Take();
}

void Lowercase(TrackedText* text) {
  Builder out(*text);
  std::string lower;
  const std::string_view source = text->text;
  for (size_t i = 0; i < source.size();) {
    size_t length = 0;
    const uint32_t c = DecodeUtf8(source.substr(i), &length);
    lower.clear();
    if (c == 0x130) {
      lower = "i\xCC\x87";  // The one character whose lower case is two.
    } else {
      AppendUtf8(static_cast<uint32_t>(utf8proc_tolower(static_cast<int32_t>(c))), &lower);
    }
    out.Put(lower, i, i + length);
    i += length;
  }
  *text = out.Take();
}

}  // namespace

Normalizer::Normalizer(std::vector<NormalizerStage> stages) : stages_(std::move(stages)) {}

bool Normalizer::LeavesAlone(std::string_view text) const {
  return std::all_of(stages_.begin(), stages_.end(), [text](const NormalizerStage& stage) {
    const std::optional<UnicodeForm> form = FormOf(stage.kind);
    return form.has_value() && IsSurelyNormalized(*form, text);
  });
}

absl::Status Normalizer::Apply(const NormalizerStage& stage, RegexScratch* scratch,
                               size_t bytes_max, TrackedText* text) const {
  if (const std::optional<UnicodeForm> form = FormOf(stage.kind); form.has_value()) {
    NormalizeForm(*form, text);
    return absl::OkStatus();
  }
  switch (stage.kind) {
    case NormalizerStage::Kind::kReplace: return Replace(stage, scratch, bytes_max, text);
    case NormalizerStage::Kind::kPrepend:
      if (!text->text.empty()) {
        text->text.insert(0, stage.content);
        if (text->track) text->trusted.insert(0, stage.content.size(), text->trusted[0]);
      }
      return absl::OkStatus();
    case NormalizerStage::Kind::kStrip: Strip(stage, text); return absl::OkStatus();
    default: Lowercase(text); return absl::OkStatus();
  }
}

absl::Status Normalizer::Normalize(RegexScratch* scratch, TrackedText* text) const {
  const size_t bytes_max = std::max(kAlwaysAllowedBytes, text->text.size() * kGrowthMax);
  for (const NormalizerStage& stage : stages_) {
    const absl::Status status = Apply(stage, scratch, bytes_max, text);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace morphserve
