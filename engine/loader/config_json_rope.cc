#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/config_json.h"

namespace morphserve {
namespace {

using Scaling = RopeConfig::Scaling;

constexpr double kThetaDefault = 10000;

constexpr std::array<std::string_view, 14> kKeysRead = {"type",
                                                        "rope_type",
                                                        "rope_theta",
                                                        "factor",
                                                        "beta_fast",
                                                        "low_freq_factor",
                                                        "high_freq_factor",
                                                        "original_max_position_embeddings",
                                                        "beta_slow",
                                                        "mscale",
                                                        "mscale_all_dim",
                                                        "attention_factor",
                                                        "truncate",
                                                        "partial_rotary_factor"};

absl::Status CheckKeys(const JsonObject& rope) {
  for (const auto& [key, value] : rope.json().items()) {
    const bool known = std::find(kKeysRead.begin(), kKeysRead.end(), key) != kKeysRead.end();
    // "finetuned" tells how the model was trained; the arithmetic is the same.
    if (known || value.is_null() || key == "finetuned") continue;
    return rope.Refuse(key, "not supported");
  }
  return absl::OkStatus();
}

absl::StatusOr<Scaling> ReadType(const JsonObject& rope) {
  MS_ASSIGN_OR_RETURN(const std::string old_type, rope.String("type", "default"));
  MS_ASSIGN_OR_RETURN(const std::string type, rope.String("rope_type", old_type));
  if (type == "default") return Scaling::kNone;
  if (type == "linear") return Scaling::kLinear;
  if (type == "llama3") return Scaling::kLlama3;
  if (type == "yarn") return Scaling::kYarn;
  return rope.Refuse("rope_type",
                     absl::StrFormat("%s is not supported; default, linear, llama3 and yarn are",
                                     type.size() <= 32 ? type : "this"));
}

// A number whose zero means "take the default", as `value or default` does in Python.
absl::StatusOr<double> NumberOrDefault(const JsonObject& rope, std::string_view key,
                                       double otherwise) {
  MS_ASSIGN_OR_RETURN(const double value, rope.Number(key, otherwise));
  return value == 0 ? otherwise : value;
}

double Mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

absl::Status ReadYarn(const JsonObject& json, int32_t context, RopeConfig* rope) {
  MS_ASSIGN_OR_RETURN(rope->factor, json.Number("factor", context / rope->original_context));
  MS_ASSIGN_OR_RETURN(rope->beta_fast, NumberOrDefault(json, "beta_fast", 32));
  MS_ASSIGN_OR_RETURN(rope->beta_slow, NumberOrDefault(json, "beta_slow", 1));
  MS_ASSIGN_OR_RETURN(rope->truncate, json.Bool("truncate", true));
  if (json.Has("attention_factor")) {
    MS_ASSIGN_OR_RETURN(rope->attention_factor, json.Number("attention_factor", 1));
    if (rope->attention_factor <= 0) {
      return json.Refuse("attention_factor", "a positive number is needed");
    }
    return absl::OkStatus();
  }
  MS_ASSIGN_OR_RETURN(const double mscale, json.Number("mscale", 0));
  MS_ASSIGN_OR_RETURN(const double all_dim, json.Number("mscale_all_dim", 0));
  if (mscale != 0 && all_dim != 0) {
    rope->attention_factor = Mscale(rope->factor, mscale) / Mscale(rope->factor, all_dim);
    if (!std::isfinite(rope->attention_factor) || rope->attention_factor <= 0) {
      return json.Refuse("mscale", "out of range");
    }
  }
  return absl::OkStatus();
}

absl::Status ReadScaling(const JsonObject& config, const JsonObject& json, int32_t context,
                         RopeConfig* rope) {
  MS_RETURN_IF_ERROR(CheckKeys(json));
  MS_ASSIGN_OR_RETURN(rope->theta, json.Number("rope_theta", rope->theta));
  MS_ASSIGN_OR_RETURN(const double partial, json.Number("partial_rotary_factor", 1));
  // The reference's four architectures ignore it, or fail on it, depending on the scaling.
  if (partial != 1) return json.Refuse("partial_rotary_factor", "only 1 is supported");
  MS_ASSIGN_OR_RETURN(rope->scaling, ReadType(json));
  if (rope->scaling == Scaling::kNone) return absl::OkStatus();
  // The member outside wins over the one inside.
  MS_ASSIGN_OR_RETURN(const double inside,
                      json.Number("original_max_position_embeddings", context));
  MS_ASSIGN_OR_RETURN(rope->original_context,
                      config.Number("original_max_position_embeddings", inside));
  if (rope->original_context <= 0) {
    return json.Refuse("original_max_position_embeddings", "a positive number is needed");
  }
  if (rope->scaling == Scaling::kYarn) return ReadYarn(json, context, rope);
  MS_ASSIGN_OR_RETURN(rope->factor, json.Number("factor", std::nullopt));
  if (rope->scaling == Scaling::kLlama3) {
    MS_ASSIGN_OR_RETURN(rope->low_freq_factor, json.Number("low_freq_factor", std::nullopt));
    MS_ASSIGN_OR_RETURN(rope->high_freq_factor, json.Number("high_freq_factor", std::nullopt));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RopeConfig> RopeFromJson(const JsonObject& config, int32_t head_dim,
                                        int32_t context) {
  RopeConfig rope;
  rope.rotary_dim = head_dim;
  MS_ASSIGN_OR_RETURN(rope.theta, config.Number("rope_theta", kThetaDefault));
  MS_ASSIGN_OR_RETURN(const double partial, config.Number("partial_rotary_factor", 1));
  if (partial != 1) return config.Refuse("partial_rotary_factor", "only 1 is supported");
  // An empty rope_scaling counts as absent; otherwise it wins over rope_parameters.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    MS_ASSIGN_OR_RETURN(const std::optional<JsonObject> json, config.Object(key));
    if (!json.has_value() || json->json().empty()) continue;
    MS_RETURN_IF_ERROR(ReadScaling(config, *json, context, &rope));
    break;
  }
  return rope;
}

}  // namespace morphserve
