// Tokenizers from GGUF metadata. The file names its splitter (tokenizer.ggml.pre) and carries no
// pattern, so the table below says what each name means; a name that is not in it is refused.
// Source: the GGUF specification of ggml; llama.cpp's vocabulary loader for the meaning of the
// names.

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/text/sentencepiece_bpe.h"
#include "engine/text/tokenizer_files.h"
#include "engine/text/tokenizer_json.h"
#include "engine/text/tokenizer_spec.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

constexpr std::string_view kPrefix = "tokenizer.ggml.";

// tokenizer.ggml.token_type.
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// What a name of tokenizer.ggml.pre stands for.
struct Family {
  std::string_view name;
  bool nfc;
  bool individual_digits;
  std::string_view pattern;  // Empty: ByteLevel's own.
  bool ignore_merges;
  bool add_bos;  // When the file does not say.
};

constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

constexpr std::array<Family, 6> kFamilies = {{
    {"smollm", false, true, "", false, false},
    {"gpt-2", false, false, "", false, false},
    {"qwen2", true, false, kQwen2Pattern, false, false},
    {"llama-bpe", false, false, kLlama3Pattern, true, true},
    {"llama3", false, false, kLlama3Pattern, true, true},
    {"llama-v3", false, false, kLlama3Pattern, true, true},
}};

std::string Key(std::string_view name) { return std::string(kPrefix) + std::string(name); }

absl::Status Refuse(std::string_view name, std::string_view problem) {
  return absl::InvalidArgumentError(absl::StrFormat("%s%s: %s", kPrefix, name, problem));
}

// An optional key: none when absent, an error when of another type.
absl::StatusOr<std::optional<bool>> OptionalBool(const GgufMetadata& metadata,
                                                 std::string_view name) {
  if (!metadata.contains(Key(name))) return std::optional<bool>();
  MS_ASSIGN_OR_RETURN(const bool value, metadata.Bool(Key(name)));
  return std::optional<bool>(value);
}

absl::StatusOr<std::optional<int32_t>> OptionalId(const GgufMetadata& metadata,
                                                  std::string_view name, size_t vocabulary) {
  if (!metadata.contains(Key(name))) return std::optional<int32_t>();
  MS_ASSIGN_OR_RETURN(const int64_t id, metadata.Integer(Key(name)));
  if (id < 0 || static_cast<uint64_t>(id) >= vocabulary) {
    return Refuse(name, absl::StrFormat("id %d is outside the vocabulary of %d", id, vocabulary));
  }
  return std::optional<int32_t>(static_cast<int32_t>(id));
}

absl::StatusOr<SpecialTokens> ReadSpecialIds(const GgufMetadata& metadata, size_t vocabulary) {
  SpecialTokens special;
  MS_ASSIGN_OR_RETURN(special.bos, OptionalId(metadata, "bos_token_id", vocabulary));
  MS_ASSIGN_OR_RETURN(special.eos, OptionalId(metadata, "eos_token_id", vocabulary));
  MS_ASSIGN_OR_RETURN(special.unknown, OptionalId(metadata, "unknown_token_id", vocabulary));
  MS_ASSIGN_OR_RETURN(special.padding, OptionalId(metadata, "padding_token_id", vocabulary));
  MS_ASSIGN_OR_RETURN(const auto eot, OptionalId(metadata, "eot_token_id", vocabulary));
  MS_ASSIGN_OR_RETURN(const auto eom, OptionalId(metadata, "eom_token_id", vocabulary));
  std::vector<int32_t>& ends = special.end_of_generation;
  for (const std::optional<int32_t>& id : {special.eos, eot, eom}) {
    if (id.has_value()) ends.push_back(*id);
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return special;
}

// Reads one file's metadata into a spec.
class GgufReader {
 public:
  GgufReader(const GgufMetadata& metadata, int32_t embedding_rows)
      : metadata_(metadata), embedding_rows_(embedding_rows) {}

  absl::StatusOr<TokenizerSpec> Read();

 private:
  absl::Status ReadTokens();
  absl::Status CheckToken(size_t id) const;
  absl::Status ReadTypes();
  absl::Status ReadByteLevel();
  absl::Status ReadMerges();
  absl::Status ReadSentencePiece();
  absl::Status ReadScores(std::vector<double>* scores);
  absl::Status FillByteIds();
  absl::Status ReadPostProcessor(bool add_bos_default);
  int64_t TypeOf(size_t id) const { return types_.empty() ? int64_t{kNormal} : types_[id]; }

  const GgufMetadata& metadata_;
  const int32_t embedding_rows_;
  TokenizerSpec spec_;
  std::vector<int64_t> types_;  // Empty: all normal.
};

absl::StatusOr<TokenizerSpec> GgufReader::Read() {
  MS_ASSIGN_OR_RETURN(const std::string model, metadata_.String(Key("model")));
  if (model != "gpt2" && model != "llama") {
    return Refuse("model", absl::StrFormat("\"%s\" is not supported; gpt2 and llama are", model));
  }
  MS_RETURN_IF_ERROR(ReadTokens());
  MS_RETURN_IF_ERROR(ReadTypes());
  MS_ASSIGN_OR_RETURN(spec_.special, ReadSpecialIds(metadata_, spec_.tokens.size()));
  MS_RETURN_IF_ERROR(model == "gpt2" ? ReadByteLevel() : ReadSentencePiece());
  return std::move(spec_);
}

absl::Status GgufReader::ReadTokens() {
  MS_ASSIGN_OR_RETURN(const std::vector<std::string>* tokens, metadata_.Strings(Key("tokens")));
  const auto limit = std::min<int64_t>(kVocabularyMax, std::max(embedding_rows_, 0));
  if (tokens->empty() || static_cast<int64_t>(tokens->size()) > limit) {
    return Refuse("tokens", absl::StrFormat("%d tokens; at least 1 and at most %d are possible",
                                            tokens->size(), limit));
  }
  spec_.tokens = *tokens;
  spec_.present.assign(tokens->size(), true);
  for (size_t id = 0; id < tokens->size(); ++id) MS_RETURN_IF_ERROR(CheckToken(id));
  return absl::OkStatus();
}

absl::Status GgufReader::CheckToken(size_t id) const {
  const std::string& text = spec_.tokens[id];
  if (text.size() > kTokenBytesMax) {
    return Refuse("tokens", absl::StrFormat("token %d has %d bytes; limit is %d", id, text.size(),
                                            kTokenBytesMax));
  }
  if (FindInvalidUtf8(text) != std::string_view::npos) {
    return Refuse("tokens", absl::StrFormat("token %d is not UTF-8", id));
  }
  return absl::OkStatus();
}

absl::Status GgufReader::ReadTypes() {
  if (metadata_.contains(Key("token_type"))) {
    MS_ASSIGN_OR_RETURN(const std::vector<int64_t>* types, metadata_.Integers(Key("token_type")));
    if (types->size() != spec_.tokens.size()) {
      return Refuse("token_type",
                    absl::StrFormat("%d types for %d tokens", types->size(), spec_.tokens.size()));
    }
    types_ = *types;
  }
  spec_.model.in_model.resize(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    const int64_t type = TypeOf(id);
    if (type < kNormal || type > kByte) {
      return Refuse("token_type", absl::StrFormat("token %d has the unknown type %d", id, type));
    }
    // Padding of the embedding: no text ever stands for it.
    if (type == kUnused) spec_.present[id] = false;
    spec_.model.in_model[id] = type == kNormal || type == kUserDefined;
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    AddedToken added;
    added.id = static_cast<int32_t>(id);
    added.content = spec_.tokens[id];
    added.special = type != kUserDefined;
    spec_.added.push_back(std::move(added));
  }
  return absl::OkStatus();
}

absl::Status GgufReader::ReadByteLevel() {
  MS_ASSIGN_OR_RETURN(const std::string name, metadata_.String(Key("pre")));
  const auto* family = std::find_if(kFamilies.begin(), kFamilies.end(),
                                    [&](const Family& entry) { return entry.name == name; });
  if (family == kFamilies.end()) {
    return Refuse("pre", absl::StrFormat("splitter \"%s\" is not known", name));
  }
  spec_.description = absl::StrFormat("byte-level BPE (%s)", name);
  if (family->nfc) spec_.normalizer.push_back({.kind = NormalizerStage::Kind::kNfc});
  if (family->individual_digits) {
    spec_.pre_tokenizer.push_back(
        {.kind = PreTokenizerStage::Kind::kDigits, .individual_digits = true});
  }
  const std::string_view pattern =
      family->pattern.empty() ? PreTokenizer::ByteLevelPattern() : family->pattern;
  MS_ASSIGN_OR_RETURN(auto regex, Regex::Create(pattern, Key("pre")));
  spec_.pre_tokenizer.push_back(
      {.kind = PreTokenizerStage::Kind::kSplit, .pattern = std::move(regex)});
  MS_ASSIGN_OR_RETURN(const auto space, OptionalBool(metadata_, "add_space_prefix"));
  if (space.value_or(false)) {
    return Refuse("add_space_prefix", "true is not supported with byte-level BPE");
  }
  spec_.decoder.byte_level = true;
  spec_.model.tokens = spec_.tokens;
  spec_.model.byte_level = true;
  spec_.model.ignore_merges = family->ignore_merges;
  MS_RETURN_IF_ERROR(ReadMerges());
  return ReadPostProcessor(family->add_bos);
}

absl::Status GgufReader::ReadMerges() {
  MS_ASSIGN_OR_RETURN(const std::vector<std::string>* merges, metadata_.Strings(Key("merges")));
  if (static_cast<int64_t>(merges->size()) > kVocabularyMax) {
    return Refuse("merges",
                  absl::StrFormat("%d merges; limit is %d", merges->size(), kVocabularyMax));
  }
  absl::flat_hash_map<std::string_view, int32_t> ids;
  ids.reserve(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    if (!spec_.model.in_model[id]) continue;
    if (!ids.emplace(spec_.tokens[id], static_cast<int32_t>(id)).second) {
      return Refuse("tokens", absl::StrFormat("token %d has the text of an earlier one", id));
    }
  }
  spec_.model.merges.reserve(merges->size());
  std::string joined;
  for (size_t rank = 0; rank < merges->size(); ++rank) {
    const std::string_view merge = (*merges)[rank];
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
      return Refuse("merges", absl::StrFormat("merge %d is not two tokens and a space", rank));
    }
    joined.assign(merge.substr(0, space)).append(merge.substr(space + 1));
    const auto left = ids.find(merge.substr(0, space));
    const auto right = ids.find(merge.substr(space + 1));
    const auto result = ids.find(joined);
    if (left == ids.end() || right == ids.end() || result == ids.end()) {
      return Refuse("merges", absl::StrFormat("merge %d names an unknown token", rank));
    }
    spec_.model.merges.push_back(
        {left->second, right->second, static_cast<int32_t>(rank), result->second});
  }
  return absl::OkStatus();
}

absl::Status GgufReader::ReadSentencePiece() {
  if (metadata_.contains(Key("precompiled_charsmap"))) {
    return Refuse("precompiled_charsmap", "a normaliser of its own is not supported");
  }
  MS_ASSIGN_OR_RETURN(const auto squeeze, OptionalBool(metadata_, "remove_extra_whitespaces"));
  if (squeeze.value_or(false)) {
    return Refuse("remove_extra_whitespaces", "removing white space is not supported");
  }
  spec_.description = "SentencePiece-type BPE (llama)";
  std::vector<double> scores;
  MS_RETURN_IF_ERROR(ReadScores(&scores));
  MS_ASSIGN_OR_RETURN(auto merges,
                      BuildSentencePieceMerges(spec_.tokens, spec_.model.in_model, scores));
  spec_.model.tokens = spec_.tokens;
  spec_.model.merges = std::move(merges.merges);
  spec_.model.characters_without_token = std::move(merges.characters_without_token);
  spec_.model.fallback_last = true;
  spec_.model.fuse_unknown = true;
  spec_.model.unknown = spec_.special.unknown;
  MS_RETURN_IF_ERROR(FillByteIds());

  MS_ASSIGN_OR_RETURN(const auto space, OptionalBool(metadata_, "add_space_prefix"));
  const bool add_space = space.value_or(true);
  constexpr std::string_view kWhere = "tokenizer.ggml.model";
  constexpr const char* kMetaspace = "\xE2\x96\x81";
  if (add_space) {
    spec_.normalizer.push_back({.kind = NormalizerStage::Kind::kPrepend, .content = kMetaspace});
  }
  MS_ASSIGN_OR_RETURN(auto blank, Regex::CreateLiteral(" ", kWhere));
  spec_.normalizer.push_back({.kind = NormalizerStage::Kind::kReplace,
                              .pattern = std::move(blank),
                              .content = kMetaspace});
  MS_ASSIGN_OR_RETURN(auto metaspace, Regex::CreateLiteral(kMetaspace, kWhere));
  spec_.decoder.replacements.push_back({std::move(metaspace), " "});
  spec_.decoder.byte_fallback = true;
  spec_.decoder.strip_leading_space = add_space;
  return ReadPostProcessor(/*add_bos_default=*/true);
}

absl::Status GgufReader::ReadScores(std::vector<double>* scores) {
  MS_ASSIGN_OR_RETURN(const std::vector<double>* values, metadata_.Floats(Key("scores")));
  if (values->size() != spec_.tokens.size()) {
    return Refuse("scores",
                  absl::StrFormat("%d scores for %d tokens", values->size(), spec_.tokens.size()));
  }
  *scores = *values;
  return absl::OkStatus();
}

// Byte tokens are those of type byte; each must be <0xHH>, and no two the same byte.
absl::Status GgufReader::FillByteIds() {
  std::vector<int32_t> byte_ids(256, -1);
  bool any = false;
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    if (TypeOf(id) != kByte) continue;
    int byte = 0;
    while (byte < 256 && spec_.tokens[id] != absl::StrFormat("<0x%02X>", byte)) ++byte;
    if (byte == 256 || byte_ids[static_cast<size_t>(byte)] >= 0) {
      return Refuse("tokens", absl::StrFormat("token %d is not a byte token of its own", id));
    }
    byte_ids[static_cast<size_t>(byte)] = static_cast<int32_t>(id);
    any = true;
  }
  if (any) spec_.model.byte_ids = std::move(byte_ids);
  return absl::OkStatus();
}

absl::Status GgufReader::ReadPostProcessor(bool add_bos_default) {
  MS_ASSIGN_OR_RETURN(const auto add_bos, OptionalBool(metadata_, "add_bos_token"));
  MS_ASSIGN_OR_RETURN(const auto add_eos, OptionalBool(metadata_, "add_eos_token"));
  const auto& special = spec_.special;
  if (add_bos.value_or(add_bos_default && special.bos.has_value())) {
    if (!special.bos.has_value()) return Refuse("add_bos_token", "there is no bos_token_id");
    spec_.post_processor.before.push_back(*special.bos);
  }
  if (add_eos.value_or(false)) {
    if (!special.eos.has_value()) return Refuse("add_eos_token", "there is no eos_token_id");
    spec_.post_processor.after.push_back(*special.eos);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerGguf(const GgufMetadata& metadata,
                                                             int32_t embedding_rows) {
  constexpr std::string_view kWholeFile = "tokenizer.huggingface.json";
  if (!metadata.contains(kWholeFile) && !metadata.contains(Key("model"))) {
    return absl::NotFoundError("the file carries no tokenizer");
  }
  if (!metadata.contains(kWholeFile)) {
    MS_ASSIGN_OR_RETURN(TokenizerSpec spec, GgufReader(metadata, embedding_rows).Read());
    return BuildTokenizer(std::move(spec));
  }
  MS_ASSIGN_OR_RETURN(const std::string json, metadata.String(kWholeFile));
  MS_ASSIGN_OR_RETURN(TokenizerSpec spec, ReadTokenizerJson(json, "", "", embedding_rows));
  MS_ASSIGN_OR_RETURN(spec.special, ReadSpecialIds(metadata, spec.tokens.size()));
  return BuildTokenizer(std::move(spec));
}

}  // namespace morphserve
