// The stages of tokenizer.json around the model: normaliser, pre-tokeniser, decoder,
// post-processor.

#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/text/tokenizer_json.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve::tokenizer_json {
namespace {

bool IsAbsent(const JsonValue* node) { return node == nullptr || node->is_null(); }

struct Stage {
  const JsonValue* node = nullptr;
  std::string type;
  Path path;
};

// Appends the stages of `node`, with those of a Sequence (whose list is called `list`) in its
// place.
absl::Status Flatten(const JsonValue& node, std::string_view list, const Path& path,
                     std::vector<Stage>* stages) {
  if (node.object() == nullptr) return Refuse(path, "not an object");
  MS_ASSIGN_OR_RETURN(std::string type, String(node, "type", path));
  if (type != "Sequence") {
    if (stages->size() >= kStagesMax) {
      return Refuse(path, absl::StrFormat("more than %d stages", kStagesMax));
    }
    stages->push_back({&node, std::move(type), path});
    return absl::OkStatus();
  }
  const JsonValue* parts = node.Find(list);
  const Path parts_path = absl::StrFormat("%s/%s", path, list);
  if (parts == nullptr || parts->array() == nullptr) return Refuse(parts_path, "a list is missing");
  for (size_t i = 0; i < parts->array()->size(); ++i) {
    MS_RETURN_IF_ERROR(
        Flatten((*parts->array())[i], list, absl::StrFormat("%s/%d", parts_path, i), stages));
  }
  return absl::OkStatus();
}

absl::Status NotSupported(const Stage& stage) {
  return Refuse(stage.path, absl::StrFormat("type \"%s\" is not supported", stage.type));
}

absl::StatusOr<std::shared_ptr<const Regex>> StagePattern(const Stage& stage) {
  const JsonValue* pattern = stage.node->Find("pattern");
  if (pattern == nullptr) return Refuse(stage.path, "a pattern is missing");
  return Pattern(*pattern, stage.path + "/pattern");
}

absl::StatusOr<NormalizerStage> ReadNormalizerStage(const Stage& stage) {
  using Kind = NormalizerStage::Kind;
  NormalizerStage result;
  if (stage.type == "NFC") {
    result.kind = Kind::kNfc;
  } else if (stage.type == "NFD") {
    result.kind = Kind::kNfd;
  } else if (stage.type == "NFKC") {
    result.kind = Kind::kNfkc;
  } else if (stage.type == "NFKD") {
    result.kind = Kind::kNfkd;
  } else if (stage.type == "Lowercase") {
    result.kind = Kind::kLowercase;
  } else if (stage.type == "Strip") {
    result.kind = Kind::kStrip;
    MS_ASSIGN_OR_RETURN(result.strip_left, Bool(*stage.node, "strip_left", true, stage.path));
    MS_ASSIGN_OR_RETURN(result.strip_right, Bool(*stage.node, "strip_right", true, stage.path));
  } else if (stage.type == "Prepend") {
    result.kind = Kind::kPrepend;
    MS_ASSIGN_OR_RETURN(result.content, String(*stage.node, "prepend", stage.path));
  } else if (stage.type == "Replace") {
    result.kind = Kind::kReplace;
    MS_ASSIGN_OR_RETURN(result.pattern, StagePattern(stage));
    RegexScratch scratch;
    if (RegexMatches(*result.pattern, "", &scratch).Next()) {
      // The reference misplaces such replacements, or fails.
      return Refuse(stage.path + "/pattern", "a pattern that matches no text is not supported");
    }
    MS_ASSIGN_OR_RETURN(result.content, String(*stage.node, "content", stage.path));
  } else {
    return NotSupported(stage);
  }
  return result;
}

absl::StatusOr<PreTokenizerStage> ReadSplit(const Stage& stage) {
  PreTokenizerStage result;
  MS_ASSIGN_OR_RETURN(result.pattern, StagePattern(stage));
  MS_ASSIGN_OR_RETURN(result.invert, Bool(*stage.node, "invert", false, stage.path));
  MS_ASSIGN_OR_RETURN(const std::string behavior, String(*stage.node, "behavior", stage.path));
  if (behavior == "Isolated") {
    result.behavior = SplitBehavior::kIsolated;
  } else if (behavior == "Removed") {
    result.behavior = SplitBehavior::kRemoved;
  } else if (behavior == "MergedWithPrevious") {
    result.behavior = SplitBehavior::kMergedWithPrevious;
  } else if (behavior == "MergedWithNext") {
    result.behavior = SplitBehavior::kMergedWithNext;
  } else if (behavior == "Contiguous") {
    result.behavior = SplitBehavior::kContiguous;
  } else {
    return Refuse(stage.path + "/behavior",
                  absl::StrFormat("\"%s\" is not a split behaviour", behavior));
  }
  return result;
}

// The character that stands for a space.
absl::StatusOr<std::string> ReadReplacement(const Stage& stage) {
  MS_ASSIGN_OR_RETURN(std::string text, String(*stage.node, "replacement", stage.path));
  if (text.empty() || Utf8Length(text[0]) != text.size()) {
    return Refuse(stage.path + "/replacement", "not one character");
  }
  return text;
}

// By default always. The older add_prefix_space may stand beside it and must agree.
absl::StatusOr<PreTokenizerStage::Prepend> ReadPrependScheme(const Stage& stage) {
  using Prepend = PreTokenizerStage::Prepend;
  MS_ASSIGN_OR_RETURN(const bool add, Bool(*stage.node, "add_prefix_space", true, stage.path));
  std::string name = "always";
  if (!IsAbsent(stage.node->Find("prepend_scheme"))) {
    MS_ASSIGN_OR_RETURN(name, String(*stage.node, "prepend_scheme", stage.path));
  }
  const Path path = stage.path + "/prepend_scheme";
  std::optional<Prepend> scheme;
  if (name == "always") scheme = Prepend::kAlways;
  if (name == "first") scheme = Prepend::kFirst;
  if (name == "never") scheme = Prepend::kNever;
  if (!scheme.has_value()) return Refuse(path, absl::StrFormat("\"%s\" is not a scheme", name));
  if (!add && *scheme != Prepend::kNever) return Refuse(path, "contradicts add_prefix_space");
  return *scheme;
}

absl::StatusOr<PreTokenizerStage> ReadMetaspace(const Stage& stage) {
  PreTokenizerStage result;
  result.kind = PreTokenizerStage::Kind::kMetaspace;
  MS_ASSIGN_OR_RETURN(result.replacement, ReadReplacement(stage));
  MS_ASSIGN_OR_RETURN(result.prepend, ReadPrependScheme(stage));
  MS_ASSIGN_OR_RETURN(const bool split, Bool(*stage.node, "split", true, stage.path));
  if (split) {
    MS_ASSIGN_OR_RETURN(result.pattern, Regex::CreateLiteral(result.replacement, stage.path));
    result.behavior = SplitBehavior::kMergedWithNext;
  }
  return result;
}

absl::StatusOr<PreTokenizerStage> ReadByteLevel(const Stage& stage) {
  PreTokenizerStage result;
  result.kind = PreTokenizerStage::Kind::kByteLevel;
  MS_ASSIGN_OR_RETURN(result.add_prefix_space,
                      Bool(*stage.node, "add_prefix_space", true, stage.path));
  MS_ASSIGN_OR_RETURN(const bool use_regex, Bool(*stage.node, "use_regex", true, stage.path));
  if (use_regex) {
    MS_ASSIGN_OR_RETURN(result.pattern,
                        Regex::Create(PreTokenizer::ByteLevelPattern(), stage.path));
  }
  return result;
}

absl::StatusOr<PreTokenizerStage> ReadPreTokenizerStage(const Stage& stage, bool is_first) {
  if (stage.type == "Split") return ReadSplit(stage);
  if (stage.type == "ByteLevel") return ReadByteLevel(stage);
  if (stage.type == "Digits") {
    PreTokenizerStage result;
    result.kind = PreTokenizerStage::Kind::kDigits;
    MS_ASSIGN_OR_RETURN(result.individual_digits,
                        Bool(*stage.node, "individual_digits", false, stage.path));
    return result;
  }
  if (stage.type != "Metaspace") return NotSupported(stage);
  MS_ASSIGN_OR_RETURN(PreTokenizerStage result, ReadMetaspace(stage));
  // The reference asks where a piece began in the text before normalisation, which earlier stages
  // blur.
  if (result.prepend == PreTokenizerStage::Prepend::kFirst && !is_first) {
    return Refuse(stage.path, "prepend_scheme \"first\" is supported only in the first stage");
  }
  return result;
}

// One stage of a decoder. `phase` counts how far the fixed order of DecoderSpec has come.
absl::Status ReadDecoderStage(const Stage& stage, int* phase, DecoderSpec* decoder) {
  enum Phase { kReplacing = 0, kJoined = 1, kFused = 2, kDone = 3 };
  const auto advance = [&](int from_max, int to) {
    if (*phase > from_max) {
      return Refuse(stage.path,
                    absl::StrFormat("\"%s\" is not supported at this place", stage.type));
    }
    *phase = to;
    return absl::OkStatus();
  };
  if (stage.type == "Replace") {
    MS_RETURN_IF_ERROR(advance(kReplacing, kReplacing));
    DecoderSpec::Replace replace;
    MS_ASSIGN_OR_RETURN(replace.pattern, StagePattern(stage));
    MS_ASSIGN_OR_RETURN(replace.content, String(*stage.node, "content", stage.path));
    decoder->replacements.push_back(std::move(replace));
    return absl::OkStatus();
  }
  if (stage.type == "ByteLevel" || stage.type == "Metaspace") {
    MS_RETURN_IF_ERROR(advance(kReplacing, kFused));
    if (stage.type == "ByteLevel") {
      decoder->byte_level = true;
      *phase = kDone;
      return absl::OkStatus();
    }
    *phase = kDone;
    MS_ASSIGN_OR_RETURN(decoder->metaspace, ReadReplacement(stage));
    MS_ASSIGN_OR_RETURN(const auto scheme, ReadPrependScheme(stage));
    decoder->metaspace_first_drops = scheme != PreTokenizerStage::Prepend::kNever;
    return absl::OkStatus();
  }
  if (stage.type == "ByteFallback") {
    decoder->byte_fallback = true;
    return advance(kReplacing, kJoined);
  }
  if (stage.type == "Fuse") {
    // Joining what is joined already changes nothing.
    return *phase == kDone ? absl::OkStatus() : advance(kFused, kFused);
  }
  if (stage.type != "Strip") return NotSupported(stage);
  MS_ASSIGN_OR_RETURN(const std::string content, String(*stage.node, "content", stage.path));
  const JsonValue* start = stage.node->Find("start");
  const JsonValue* stop = stage.node->Find("stop");
  if (*phase != kFused || content != " " || start == nullptr || stop == nullptr ||
      start->integer() != 1 || stop->integer() != 0) {
    return Refuse(stage.path, "Strip is supported only for one leading space, after Fuse");
  }
  decoder->strip_leading_space = true;
  *phase = kDone;
  return absl::OkStatus();
}

absl::Status AppendTemplateIds(const JsonValue& specials, const std::string& name, const Path& path,
                               size_t vocabulary, std::vector<int32_t>* out) {
  const JsonValue* entry = specials.Find(name);
  const JsonValue* ids = entry == nullptr ? nullptr : entry->Find("ids");
  if (ids == nullptr || ids->array() == nullptr) {
    return Refuse(path, "a special token of the template is not defined");
  }
  for (const JsonValue& id : *ids->array()) {
    const std::optional<int64_t> value = id.integer();
    if (!value.has_value() || *value < 0 || static_cast<uint64_t>(*value) >= vocabulary) {
      return Refuse(path, "a special token's id is outside the vocabulary");
    }
    out->push_back(static_cast<int32_t>(*value));
  }
  return absl::OkStatus();
}

absl::StatusOr<PostProcessor> ReadTemplate(const Stage& stage, size_t vocabulary) {
  PostProcessor result;
  const JsonValue* single = stage.node->Find("single");
  const Path path = stage.path + "/single";
  if (single == nullptr || single->array() == nullptr) return Refuse(path, "a list is missing");
  const JsonValue empty;
  const JsonValue* specials = stage.node->Find("special_tokens");
  if (specials == nullptr) specials = &empty;
  bool seen_text = false;
  for (const JsonValue& part : *single->array()) {
    if (const JsonValue* sequence = part.Find("Sequence"); sequence != nullptr) {
      MS_ASSIGN_OR_RETURN(const std::string id, String(*sequence, "id", path));
      if (id != "A" || seen_text) return Refuse(path, "the text must stand in it exactly once");
      seen_text = true;
    } else if (const JsonValue* token = part.Find("SpecialToken"); token != nullptr) {
      MS_ASSIGN_OR_RETURN(const std::string id, String(*token, "id", path));
      MS_RETURN_IF_ERROR(AppendTemplateIds(*specials, id, path, vocabulary,
                                           seen_text ? &result.after : &result.before));
    } else {
      return Refuse(path, "neither Sequence nor SpecialToken");
    }
  }
  if (!seen_text) return Refuse(path, "the text must stand in it exactly once");
  return result;
}

}  // namespace

absl::StatusOr<std::vector<NormalizerStage>> ReadNormalizer(const JsonValue* node) {
  std::vector<NormalizerStage> result;
  if (IsAbsent(node)) return result;
  std::vector<Stage> stages;
  MS_RETURN_IF_ERROR(Flatten(*node, "normalizers", "/normalizer", &stages));
  for (const Stage& stage : stages) {
    MS_ASSIGN_OR_RETURN(NormalizerStage made, ReadNormalizerStage(stage));
    result.push_back(std::move(made));
  }
  return result;
}

absl::StatusOr<std::vector<PreTokenizerStage>> ReadPreTokenizer(const JsonValue* node,
                                                                bool* byte_level) {
  *byte_level = false;
  std::vector<PreTokenizerStage> result;
  if (IsAbsent(node)) return result;
  std::vector<Stage> stages;
  MS_RETURN_IF_ERROR(Flatten(*node, "pretokenizers", "/pre_tokenizer", &stages));
  for (const Stage& stage : stages) {
    if (*byte_level) return Refuse(stage.path, "a stage after ByteLevel is not supported");
    MS_ASSIGN_OR_RETURN(PreTokenizerStage made, ReadPreTokenizerStage(stage, result.empty()));
    *byte_level = made.kind == PreTokenizerStage::Kind::kByteLevel;
    result.push_back(std::move(made));
  }
  return result;
}

absl::StatusOr<DecoderSpec> ReadDecoder(const JsonValue* node) {
  // Without a decoder the reference puts a space between all tokens, which no causal model wants.
  if (IsAbsent(node)) return Refuse("/decoder", "a tokenizer without a decoder is not supported");
  std::vector<Stage> stages;
  MS_RETURN_IF_ERROR(Flatten(*node, "decoders", "/decoder", &stages));
  if (stages.empty()) return Refuse("/decoder", "a tokenizer without a decoder is not supported");
  DecoderSpec decoder;
  int phase = 0;
  for (const Stage& stage : stages) {
    MS_RETURN_IF_ERROR(ReadDecoderStage(stage, &phase, &decoder));
  }
  return decoder;
}

absl::StatusOr<PostProcessor> ReadPostProcessor(const JsonValue* node, size_t vocabulary) {
  PostProcessor result;
  if (IsAbsent(node)) return result;
  std::vector<Stage> stages;
  MS_RETURN_IF_ERROR(Flatten(*node, "processors", "/post_processor", &stages));
  bool seen_template = false;
  for (const Stage& stage : stages) {
    if (stage.type == "ByteLevel") continue;  // Moves offsets only, and there are none here.
    if (stage.type != "TemplateProcessing") return NotSupported(stage);
    if (seen_template) return Refuse(stage.path, "a second template is not supported");
    seen_template = true;
    MS_ASSIGN_OR_RETURN(result, ReadTemplate(stage, vocabulary));
  }
  return result;
}

}  // namespace morphserve::tokenizer_json
