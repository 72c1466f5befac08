// The vocabulary of tokenizer.json: the model, the added tokens, and what the two config files say
// about them.

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/text/tokenizer_byte_alphabet.h"
#include "engine/text/tokenizer_json.h"

namespace morphserve::tokenizer_json {
namespace {

using TokenIds = absl::flat_hash_map<std::string_view, int32_t>;

absl::Status ReadVocabulary(const JsonValue& node, int64_t ids_max, TokenizerSpec* spec) {
  const Path path = "/model/vocab";
  const JsonValue* vocabulary = node.Find("vocab");
  if (vocabulary == nullptr || vocabulary->object() == nullptr || vocabulary->object()->empty()) {
    return Refuse(path, "an object of tokens is missing");
  }
  int64_t last = -1;
  for (const JsonValue::Member& member : *vocabulary->object()) {
    const std::optional<int64_t> id = member.value.integer();
    if (!id.has_value() || *id < 0 || *id >= ids_max) {
      return Refuse(
          path,
          absl::StrFormat("an id is not a number below %d, the rows of the embedding", ids_max));
    }
    if (member.key.size() > kTokenBytesMax) {
      return Refuse(path, absl::StrFormat("token %d has %d bytes; limit is %d", *id,
                                          member.key.size(), kTokenBytesMax));
    }
    last = std::max(last, *id);
  }
  spec->tokens.resize(static_cast<size_t>(last) + 1);
  spec->present.resize(spec->tokens.size());
  for (const JsonValue::Member& member : *vocabulary->object()) {
    const auto id = static_cast<size_t>(*member.value.integer());
    if (spec->present[id]) return Refuse(path, absl::StrFormat("id %d is used twice", id));
    spec->present[id] = true;
    spec->tokens[id] = member.key;
  }
  return absl::OkStatus();
}

// A merge is "a b" or ["a", "b"].
std::optional<std::pair<std::string_view, std::string_view>> ParseMerge(const JsonValue& merge) {
  if (const std::string* text = merge.string(); text != nullptr) {
    const std::string_view view = *text;
    const size_t space = view.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    if (view.find(' ', space + 1) != std::string_view::npos) return std::nullopt;
    return std::pair(view.substr(0, space), view.substr(space + 1));
  }
  const JsonValue::Array* pair = merge.array();
  if (pair == nullptr || pair->size() != 2) return std::nullopt;
  const std::string* left = (*pair)[0].string();
  const std::string* right = (*pair)[1].string();
  if (left == nullptr || right == nullptr) return std::nullopt;
  return std::pair<std::string_view, std::string_view>(*left, *right);
}

absl::Status ReadMerges(const JsonValue& node, const TokenIds& ids, BpeSpec* model) {
  const JsonValue* merges = node.Find("merges");
  if (merges == nullptr || merges->array() == nullptr) {
    return Refuse("/model/merges", "a list is missing");
  }
  if (static_cast<int64_t>(merges->array()->size()) > kVocabularyMax) {
    return Refuse("/model/merges", absl::StrFormat("%d merges; limit is %d",
                                                   merges->array()->size(), kVocabularyMax));
  }
  model->merges.reserve(merges->array()->size());
  std::string joined;
  for (size_t i = 0; i < merges->array()->size(); ++i) {
    const JsonValue& entry = (*merges->array())[i];
    const auto refuse = [i](std::string_view problem) {
      return Refuse(absl::StrFormat("/model/merges/%d", i), problem);
    };
    // Old files open with a line of their version.
    if (entry.string() != nullptr && entry.string()->starts_with("#version")) continue;
    const auto merge = ParseMerge(entry);
    if (!merge.has_value()) return refuse("not two tokens");
    const size_t prefix = model->continuing_prefix.size();
    if (merge->second.size() < prefix) return refuse("the right token lacks the prefix");
    joined.assign(merge->first).append(merge->second.substr(prefix));
    const auto left = ids.find(merge->first);
    const auto right = ids.find(merge->second);
    const auto result = ids.find(joined);
    if (left == ids.end() || right == ids.end() || result == ids.end()) {
      return refuse("a token of it is not in the vocabulary");
    }
    model->merges.push_back(
        {left->second, right->second, static_cast<int32_t>(model->merges.size()), result->second});
  }
  return absl::OkStatus();
}

bool CoversAllBytes(const TokenIds& ids) {
  for (int byte = 0; byte < 256; ++byte) {
    const auto c = static_cast<char>(byte);
    if (!ids.contains(ToByteAlphabet(std::string_view(&c, 1)))) return false;
  }
  return true;
}

absl::Status ReadUnknown(const JsonValue& node, const TokenIds& ids, BpeSpec* model) {
  const JsonValue* unknown = node.Find("unk_token");
  if (unknown == nullptr || unknown->is_null()) return absl::OkStatus();
  if (unknown->string() == nullptr) return Refuse("/model/unk_token", "not a string");
  if (const auto it = ids.find(*unknown->string()); it != ids.end()) {
    model->unknown = it->second;
    return absl::OkStatus();
  }
  // The reference fails when it needs it; a byte-level model with all bytes never does.
  if (model->byte_level && CoversAllBytes(ids)) return absl::OkStatus();
  return Refuse("/model/unk_token", "it is not in the vocabulary");
}

// An optional string, empty by default.
absl::StatusOr<std::string> Affix(const JsonValue& node, std::string_view key) {
  const JsonValue* value = node.Find(key);
  if (value == nullptr || value->is_null()) return std::string();
  return String(node, key, "/model");
}

bool SameFlags(const AddedToken& a, const AddedToken& b) {
  return a.single_word == b.single_word && a.lstrip == b.lstrip && a.rstrip == b.rstrip &&
         a.normalized == b.normalized && a.special == b.special;
}

absl::StatusOr<AddedToken> ReadAddedToken(const JsonValue& node, bool all_flags, const Path& path) {
  AddedToken token;
  MS_ASSIGN_OR_RETURN(token.content, String(node, "content", path));
  if (token.content.size() > kTokenBytesMax) {
    return Refuse(path, absl::StrFormat("its text has %d bytes; limit is %d", token.content.size(),
                                        kTokenBytesMax));
  }
  for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized", "special"}) {
    if (all_flags && node.Find(flag) == nullptr) {
      return Refuse(path, absl::StrFormat("%s is missing", flag));
    }
  }
  MS_ASSIGN_OR_RETURN(token.special, Bool(node, "special", false, path));
  MS_ASSIGN_OR_RETURN(token.single_word, Bool(node, "single_word", false, path));
  MS_ASSIGN_OR_RETURN(token.lstrip, Bool(node, "lstrip", false, path));
  MS_ASSIGN_OR_RETURN(token.rstrip, Bool(node, "rstrip", false, path));
  MS_ASSIGN_OR_RETURN(token.normalized, Bool(node, "normalized", !token.special, path));
  return token;
}

// Places added tokens one by one, with the ids that the reference gives them.
class AddedTokenPlacer {
 public:
  AddedTokenPlacer(int64_t ids_max, TokenizerSpec* spec) : ids_max_(ids_max), spec_(spec) {
    // The model keeps its own copy of the texts, so that these may grow.
    model_size_ = static_cast<int64_t>(
        std::count(spec->model.in_model.begin(), spec->model.in_model.end(), true));
    for (size_t id = 0; id < spec->model.in_model.size(); ++id) {
      if (spec->model.in_model[id]) ids_.emplace(spec->model.tokens[id], static_cast<int32_t>(id));
    }
    for (size_t i = 0; i < spec->added.size(); ++i) Remember(i);
  }

  const AddedToken* FindAdded(const std::string& content) const {
    const auto it = added_.find(content);
    return it == added_.end() ? nullptr : &spec_->added[it->second];
  }
  void SetFlags(const std::string& content, AddedToken token) {
    token.id = spec_->added[added_.at(content)].id;
    spec_->added[added_.at(content)] = std::move(token);
  }
  // The id that a token of this text has or would get.
  int64_t IdOf(const std::string& content) const {
    if (const auto it = added_.find(content); it != added_.end()) {
      return spec_->added[it->second].id;
    }
    if (const auto it = ids_.find(content); it != ids_.end()) return it->second;
    return last_id_ >= model_size_ ? last_id_ + 1 : model_size_;
  }
  bool Fits(int64_t id) const { return id < ids_max_; }
  void Add(AddedToken token) {
    token.id = static_cast<int32_t>(IdOf(token.content));
    const auto id = static_cast<size_t>(token.id);
    if (id >= spec_->tokens.size()) {
      spec_->tokens.resize(id + 1);
      spec_->present.resize(id + 1);
    }
    spec_->tokens[id] = token.content;
    spec_->present[id] = true;
    spec_->added.push_back(std::move(token));
    Remember(spec_->added.size() - 1);
  }

 private:
  void Remember(size_t index) {
    added_.emplace(spec_->added[index].content, index);
    last_id_ = std::max<int64_t>(last_id_, spec_->added[index].id);
  }

  const int64_t ids_max_;
  TokenizerSpec* spec_;
  int64_t model_size_ = 0;
  int64_t last_id_ = -1;
  absl::flat_hash_map<std::string, int32_t> ids_;   // Of the model.
  absl::flat_hash_map<std::string, size_t> added_;  // Into spec_->added.
};

// Adds `token` under `id`, or checks that it is there already.
absl::Status Place(AddedToken token, int64_t id, bool may_change_flags, const Path& path,
                   AddedTokenPlacer* placer) {
  if (token.content.empty()) return absl::OkStatus();
  const int64_t expected = placer->IdOf(token.content);
  if (id != expected) {
    return Refuse(path,
                  absl::StrFormat("its id is %d, but the vocabulary gives it %d", id, expected));
  }
  if (!placer->Fits(id)) {
    return Refuse(path, absl::StrFormat("its id %d is not a row of the embedding", id));
  }
  const AddedToken* known = placer->FindAdded(token.content);
  if (known == nullptr) {
    placer->Add(std::move(token));
  } else if (!SameFlags(*known, token)) {
    if (!may_change_flags || known->normalized != token.normalized) {
      return Refuse(path, "it is there twice, with different flags");
    }
    placer->SetFlags(token.content, token);
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokensDecoder(const JsonValue& config, AddedTokenPlacer* placer) {
  const JsonValue* decoder = config.Find("added_tokens_decoder");
  if (decoder == nullptr || decoder->object() == nullptr) return absl::OkStatus();
  std::vector<std::pair<int64_t, AddedToken>> tokens;
  for (const JsonValue::Member& member : *decoder->object()) {
    const Path path = absl::StrFormat("(tokenizer_config.json) /added_tokens_decoder/%s",
                                      member.key.substr(0, 20));
    int64_t id = -1;
    const char* const end = member.key.data() + member.key.size();
    const auto [stop, error] = std::from_chars(member.key.data(), end, id);
    if (error != std::errc() || stop != end || id < 0) return Refuse(path, "not an id");
    MS_ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(member.value, false, path));
    tokens.emplace_back(id, std::move(token));
  }
  std::stable_sort(tokens.begin(), tokens.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& [id, token] : tokens) {
    const Path path = absl::StrFormat("(tokenizer_config.json) /added_tokens_decoder/%d", id);
    MS_RETURN_IF_ERROR(Place(std::move(token), id, /*may_change_flags=*/true, path, placer));
  }
  return absl::OkStatus();
}

// A special token named in tokenizer_config.json: a string or {"content": ...}. It becomes an added
// token if it is none yet; one that would get an id past the embedding stays out, since no model
// can take it.
absl::StatusOr<std::optional<int32_t>> NamedToken(const JsonValue& config, std::string_view key,
                                                  AddedTokenPlacer* placer) {
  const JsonValue* node = config.Find(key);
  if (node == nullptr || node->is_null()) return std::optional<int32_t>();
  AddedToken token;
  if (node->string() != nullptr) {
    token.content = *node->string();
    token.special = true;
  } else {
    MS_ASSIGN_OR_RETURN(
        token, ReadAddedToken(*node, false, absl::StrFormat("(tokenizer_config.json) /%s", key)));
  }
  if (token.content.empty()) return std::optional<int32_t>();
  const int64_t id = placer->IdOf(token.content);
  if (!placer->Fits(id)) return std::optional<int32_t>();
  if (placer->FindAdded(token.content) == nullptr) {
    token.special = true;
    token.normalized = false;
    placer->Add(std::move(token));
  }
  return std::optional<int32_t>(static_cast<int32_t>(id));
}

// eos_token_id of generation_config.json: one id or a list.
absl::Status ReadEnds(const JsonValue& generation, size_t vocabulary, SpecialTokens* special) {
  std::vector<int32_t>& ends = special->end_of_generation;
  const auto add = [&](const JsonValue& value) -> absl::Status {
    const std::optional<int64_t> id = value.integer();
    if (!id.has_value() || *id < 0 || static_cast<uint64_t>(*id) >= vocabulary) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "generation_config.json /eos_token_id: an id is outside the vocabulary of %d",
          vocabulary));
    }
    ends.push_back(static_cast<int32_t>(*id));
    return absl::OkStatus();
  };
  if (const JsonValue* node = generation.Find("eos_token_id");
      node != nullptr && !node->is_null()) {
    if (node->array() == nullptr) {
      MS_RETURN_IF_ERROR(add(*node));
    } else {
      for (const JsonValue& value : *node->array()) MS_RETURN_IF_ERROR(add(value));
    }
  }
  if (special->eos.has_value()) {
    ends.push_back(*special->eos);
  } else if (!ends.empty()) {
    special->eos = ends.front();
  }
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadModel(const JsonValue* node, int64_t ids_max, TokenizerSpec* spec) {
  if (node == nullptr || node->object() == nullptr) return Refuse("/model", "an object is missing");
  MS_ASSIGN_OR_RETURN(const std::string type, String(*node, "type", "/model"));
  if (type != "BPE") {
    return Refuse("/model", absl::StrFormat("type \"%s\" is not supported; BPE is", type));
  }
  if (const JsonValue* dropout = node->Find("dropout");
      dropout != nullptr && !dropout->is_null() && dropout->number() != 0.0) {
    return Refuse("/model/dropout", "random merges are not supported");
  }
  BpeSpec& model = spec->model;
  MS_ASSIGN_OR_RETURN(model.continuing_prefix, Affix(*node, "continuing_subword_prefix"));
  MS_ASSIGN_OR_RETURN(model.word_suffix, Affix(*node, "end_of_word_suffix"));
  MS_ASSIGN_OR_RETURN(model.ignore_merges, Bool(*node, "ignore_merges", false, "/model"));
  MS_ASSIGN_OR_RETURN(model.fuse_unknown, Bool(*node, "fuse_unk", false, "/model"));
  MS_ASSIGN_OR_RETURN(const bool byte_fallback, Bool(*node, "byte_fallback", false, "/model"));
  MS_RETURN_IF_ERROR(ReadVocabulary(*node, ids_max, spec));
  model.tokens = spec->tokens;
  model.in_model = spec->present;
  TokenIds ids;
  ids.reserve(model.tokens.size());
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    if (model.in_model[id]) ids.emplace(model.tokens[id], static_cast<int32_t>(id));
  }
  MS_RETURN_IF_ERROR(ReadMerges(*node, ids, &model));
  MS_RETURN_IF_ERROR(ReadUnknown(*node, ids, &model));
  if (!byte_fallback) return absl::OkStatus();
  model.byte_ids.assign(256, -1);
  for (int byte = 0; byte < 256; ++byte) {
    const auto it = ids.find(std::string_view(absl::StrFormat("<0x%02X>", byte)));
    if (it != ids.end()) model.byte_ids[static_cast<size_t>(byte)] = it->second;
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const JsonValue* node, int64_t ids_max, TokenizerSpec* spec) {
  if (node == nullptr || node->is_null()) return absl::OkStatus();
  if (node->array() == nullptr) return Refuse("/added_tokens", "not a list");
  AddedTokenPlacer placer(ids_max, spec);
  for (size_t i = 0; i < node->array()->size(); ++i) {
    const JsonValue& entry = (*node->array())[i];
    const Path path = absl::StrFormat("/added_tokens/%d", i);
    MS_ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(entry, /*all_flags=*/true, path));
    const JsonValue* id = entry.Find("id");
    if (id == nullptr || !id->integer().has_value()) return Refuse(path, "its id is missing");
    MS_RETURN_IF_ERROR(
        Place(std::move(token), *id->integer(), /*may_change_flags=*/false, path, &placer));
  }
  return absl::OkStatus();
}

absl::Status ReadConfigs(const JsonValue* config, const JsonValue* generation, int64_t ids_max,
                         TokenizerSpec* spec) {
  AddedTokenPlacer placer(ids_max, spec);
  MS_RETURN_IF_ERROR(ReadAddedTokensDecoder(*config, &placer));
  SpecialTokens& special = spec->special;
  MS_ASSIGN_OR_RETURN(special.bos, NamedToken(*config, "bos_token", &placer));
  MS_ASSIGN_OR_RETURN(special.eos, NamedToken(*config, "eos_token", &placer));
  MS_ASSIGN_OR_RETURN(special.unknown, NamedToken(*config, "unk_token", &placer));
  MS_ASSIGN_OR_RETURN(special.padding, NamedToken(*config, "pad_token", &placer));
  return ReadEnds(*generation, spec->tokens.size(), &special);
}

}  // namespace morphserve::tokenizer_json
