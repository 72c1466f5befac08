#include "engine/loader/checkpoint_folder.h"

#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/checkpoint_tensors.h"
#include "engine/loader/config_json.h"
#include "engine/loader/file_tensor_source.h"
#include "engine/loader/fp8_scales.h"
#include "engine/loader/json_text.h"
#include "engine/loader/safetensors.h"
#include "engine/text/tokenizer_files.h"

namespace morphserve {
namespace {

using Json = nlohmann::json;

constexpr int64_t kConfigBytesMax = int64_t{4} << 20;
constexpr int64_t kTokenizerBytesMax = int64_t{64} << 20;
constexpr int64_t kTemplateBytesMax = int64_t{1} << 20;

// The text of a file of the folder; nothing when there is none.
absl::StatusOr<std::optional<std::string>> ReadOptional(const std::string& folder,
                                                        std::string_view name, int64_t bytes_max) {
  absl::StatusOr<std::string> text =
      ReadWholeFile(absl::StrFormat("%s/%s", folder, name), bytes_max);
  if (absl::IsNotFound(text.status())) return std::optional<std::string>();
  MS_RETURN_IF_ERROR(text.status());
  return std::optional<std::string>(*std::move(text));
}

// The same, parsed; an empty object when there is none.
absl::StatusOr<Json> ReadOptionalJson(const std::string& folder, std::string_view name) {
  MS_ASSIGN_OR_RETURN(const std::optional<std::string> text,
                      ReadOptional(folder, name, kConfigBytesMax));
  if (!text.has_value()) return Json::object();
  return ParseJsonObject(*text, name);
}

absl::Status ReadFloat(const JsonObject& json, std::string_view key, std::optional<float>* out) {
  if (!json.Has(key)) return absl::OkStatus();
  MS_ASSIGN_OR_RETURN(const double value, json.Number(key, std::nullopt));
  if (value < 0 || value > 1e6) return json.Refuse(key, "out of range");
  *out = static_cast<float>(value);
  return absl::OkStatus();
}

absl::StatusOr<GenerationDefaults> ReadGeneration(const JsonObject& json) {
  GenerationDefaults out;
  MS_RETURN_IF_ERROR(ReadFloat(json, "temperature", &out.temperature));
  MS_RETURN_IF_ERROR(ReadFloat(json, "top_p", &out.top_p));
  MS_RETURN_IF_ERROR(ReadFloat(json, "min_p", &out.min_p));
  MS_RETURN_IF_ERROR(ReadFloat(json, "repetition_penalty", &out.repetition_penalty));
  if (json.Has("top_k")) {
    MS_ASSIGN_OR_RETURN(out.top_k, json.Int("top_k", std::nullopt));
    if (*out.top_k < 0) return json.Refuse("top_k", "out of range");
  }
  return out;
}

// A special token is a string, or an object whose "content" is.
absl::StatusOr<std::string> SpecialToken(const Json& file, const std::string& what,
                                         std::string_view key) {
  const JsonObject json(file, what);
  const Json* found = json.Find(key);
  if (found == nullptr) return "";
  if (!found->is_object()) return json.String(key, "");
  MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> token, json.Object(key));
  return token->String("content", "");
}

// tokenizer_config.json holds one template, or a list of named ones.
absl::StatusOr<std::string> TemplateOf(const JsonObject& config) {
  const Json* found = config.Find("chat_template");
  if (found == nullptr || found->is_string()) return config.String("chat_template", "");
  if (!found->is_array()) return config.Refuse("chat_template", "neither a string nor a list");
  for (const Json& entry : *found) {
    if (!entry.is_object()) return config.Refuse("chat_template", "an entry is not an object");
    const JsonObject named(entry, "tokenizer_config.json.chat_template");
    MS_ASSIGN_OR_RETURN(const std::string name, named.String("name", ""));
    if (name == "default") return named.String("template", "");
  }
  return "";
}

// The end tokens of config.json stand in where generation_config.json names none, as in the
// reference.
std::string GenerationText(const Json& generation, const Json& config) {
  Json merged = generation;
  const auto stated = merged.find("eos_token_id");
  if ((stated == merged.end() || stated->is_null()) && config.contains("eos_token_id")) {
    merged["eos_token_id"] = config["eos_token_id"];
  }
  return merged.empty() ? "" : merged.dump();
}

absl::Status ReadText(const std::string& folder, const Json& config, const Json& generation,
                      Checkpoint* out) {
  MS_ASSIGN_OR_RETURN(const std::optional<std::string> tokenizer,
                      ReadOptional(folder, "tokenizer.json", kTokenizerBytesMax));
  MS_ASSIGN_OR_RETURN(const std::optional<std::string> settings,
                      ReadOptional(folder, "tokenizer_config.json", kConfigBytesMax));
  Json settings_json = Json::object();
  if (settings.has_value()) {
    MS_ASSIGN_OR_RETURN(settings_json, ParseJsonObject(*settings, "tokenizer_config.json"));
  }
  if (tokenizer.has_value()) {
    MS_ASSIGN_OR_RETURN(out->tokenizer,
                        LoadTokenizerJson(*tokenizer, settings.value_or(""),
                                          GenerationText(generation, config), out->config.vocab));
  } else {
    for (const char* other : {"tokenizer.model", "vocab.json", "vocab.txt"}) {
      if (OpenFile(absl::StrCat(folder, "/", other)).ok()) {
        return absl::InvalidArgumentError(
            absl::StrFormat("%s without tokenizer.json is not supported", other));
      }
    }
  }
  MS_ASSIGN_OR_RETURN(const Json map, ReadOptionalJson(folder, "special_tokens_map.json"));
  for (const auto& [key, token] :
       {std::pair("bos_token", &out->bos_token), std::pair("eos_token", &out->eos_token)}) {
    MS_ASSIGN_OR_RETURN(*token, SpecialToken(settings_json, "tokenizer_config.json", key));
    if (!token->empty()) continue;
    MS_ASSIGN_OR_RETURN(*token, SpecialToken(map, "special_tokens_map.json", key));
  }
  MS_ASSIGN_OR_RETURN(std::optional<std::string> file,
                      ReadOptional(folder, "chat_template.jinja", kTemplateBytesMax));
  if (file.has_value()) {
    out->chat_template = *std::move(file);
    return absl::OkStatus();
  }
  MS_ASSIGN_OR_RETURN(out->chat_template,
                      TemplateOf(JsonObject(settings_json, "tokenizer_config.json")));
  return absl::OkStatus();
}

const TensorInfo* FindTensor(const std::vector<TensorInfo>& tensors, std::string_view name) {
  for (const TensorInfo& tensor : tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

// Gives the tensors their canonical names, and the head its due: the reference uses a head that is
// stored even if the configuration ties it, and a tied head may be stored in place of the
// embedding.
absl::Status Canonicalise(std::vector<TensorInfo>* tensors, ModelConfig* config) {
  std::vector<TensorInfo> out;
  for (TensorInfo& tensor : *tensors) {
    if (IsHarmlessTensor(tensor.name)) continue;
    std::string name = CanonicalName(tensor.name);
    if (name.empty()) {
      return absl::InvalidArgumentError(absl::StrFormat("tensor %s has no place in a %s network",
                                                        tensor.name,
                                                        ArchitectureName(config->architecture)));
    }
    tensor.name = std::move(name);
    out.push_back(std::move(tensor));
  }
  if (config->tied_head && FindTensor(out, "output.weight") != nullptr) {
    if (FindTensor(out, "token_embd.weight") != nullptr) {
      config->tied_head = false;
    } else {
      for (TensorInfo& tensor : out) {
        if (tensor.name == "output.weight") tensor.name = "token_embd.weight";
      }
    }
  }
  *tensors = std::move(out);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Checkpoint> OpenFolderCheckpoint(const std::string& folder,
                                                const std::string& name) {
  MS_ASSIGN_OR_RETURN(const std::string text,
                      ReadWholeFile(folder + "/config.json", kConfigBytesMax));
  MS_ASSIGN_OR_RETURN(const Json config, ParseJsonObject(text, "config.json"));
  Checkpoint out;
  out.name = name;
  MS_ASSIGN_OR_RETURN(out.config, ConfigFromJson(JsonObject(config, "config.json")));
  MS_ASSIGN_OR_RETURN(const Fp8Config fp8, Fp8ConfigFromJson(JsonObject(config, "config.json")));
  MS_ASSIGN_OR_RETURN(SafetensorsFiles weights, OpenSafetensorsFolder(folder));
  MS_RETURN_IF_ERROR(AttachScales(fp8, &weights.tensors));
  MS_RETURN_IF_ERROR(Canonicalise(&weights.tensors, &out.config));
  MS_RETURN_IF_ERROR(CheckTensors(out.config, weights.tensors));

  MS_ASSIGN_OR_RETURN(const Json generation, ReadOptionalJson(folder, "generation_config.json"));
  MS_ASSIGN_OR_RETURN(out.generation,
                      ReadGeneration(JsonObject(generation, "generation_config.json")));
  MS_RETURN_IF_ERROR(ReadText(folder, config, generation, &out));
  out.tensors =
      std::make_unique<FileTensorSource>(std::move(weights.files), std::move(weights.tensors));
  MS_RETURN_IF_ERROR(out.tensors->CheckUnchanged());
  return out;
}

}  // namespace morphserve
