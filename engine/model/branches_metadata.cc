// The JSON of a branches file's header. Every field is read, checked and bounded; one that is
// unknown, or that the kind has no use for, is refused by name.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/loader/json_text.h"
#include "engine/model/branches_file.h"
#include "engine/model/branches_lists.h"

namespace morphserve {
namespace {

using Json = nlohmann::json;

constexpr int32_t kFormat = 1;
constexpr int32_t kConvTapsMax = 8;  // Of kernels/recurrent_mixer.h.
constexpr double kL2Eps = 1e-6;      // Of kernels/recurrent_mixer.h.
constexpr size_t kTextBytesMax = size_t{8} << 20;
constexpr size_t kNameBytesMax = 256;

class Reader {
 public:
  Reader(const JsonObject& object, const ModelConfig& model) : object_(object), model_(model) {}

  absl::StatusOr<BranchesHeader> Read() {
    MS_RETURN_IF_ERROR(
        CheckKeys(object_, {"format", "base_id",  "base_name", "kind",      "parameterisation",
                            "heads",  "head_dim", "rank",      "gate_rank", "conv",
                            "window", "sinks",    "eps",       "norm_eps",  "scale",
                            "silu",   "rope",     "qk_norm",   "training",  "rankings",
                            "Q",      "quality"}));
    MS_ASSIGN_OR_RETURN(const int32_t format, object_.Int("format", std::nullopt));
    if (format != kFormat) {
      return object_.Refuse("format",
                            absl::StrFormat("version %d; %d is supported", format, kFormat));
    }
    MS_RETURN_IF_ERROR(ReadBase());
    MS_RETURN_IF_ERROR(ReadKind());
    MS_RETURN_IF_ERROR(ReadShapes());
    MS_RETURN_IF_ERROR(ReadArithmetic());
    MS_RETURN_IF_ERROR(object_.Object("training").status());  // Notes for people.
    MS_RETURN_IF_ERROR(ReadBranchesLists(object_, model_.layers, &header_));
    return std::move(header_);
  }

 private:
  BranchesConfig& config() { return header_.config; }

  absl::Status ReadBase() {
    MS_ASSIGN_OR_RETURN(header_.base_id, object_.String("base_id", ""));
    const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
    if (header_.base_id.size() != 2 * sizeof(Sha256Digest) ||
        !std::all_of(header_.base_id.begin(), header_.base_id.end(), hex)) {
      return object_.Refuse("base_id", "not a SHA-256 in 64 lower-case hex digits");
    }
    MS_ASSIGN_OR_RETURN(header_.base_name, object_.String("base_name", ""));
    const auto shown = [](char c) { return c >= ' ' && c <= '~'; };
    if (header_.base_name.size() > kNameBytesMax ||
        !std::all_of(header_.base_name.begin(), header_.base_name.end(), shown)) {
      return object_.Refuse("base_name", "not a printable name of at most 256 bytes");
    }
    return absl::OkStatus();
  }

  absl::Status ReadKind() {
    MS_ASSIGN_OR_RETURN(const std::string kind, object_.String("kind", ""));
    bool known = false;
    for (const BranchKind candidate : {BranchKind::kWindow, BranchKind::kLightning,
                                       BranchKind::kGatedDelta, BranchKind::kGatedDeltaWindow}) {
      if (kind != BranchKindName(candidate)) continue;
      config().kind = candidate;
      known = true;
    }
    if (!known) {
      return object_.Refuse(
          "kind", "unknown; window, lightning, gated_delta and gated_delta_window are supported");
    }
    if (!config().has_state()) return RefuseUnused("parameterisation");
    MS_ASSIGN_OR_RETURN(const std::string how, object_.String("parameterisation", ""));
    if (how != "shared" && how != "own") {
      return object_.Refuse("parameterisation", "neither shared nor own");
    }
    config().own = how == "own";
    return absl::OkStatus();
  }

  absl::Status ReadShapes() {
    BranchesConfig& c = config();
    MS_ASSIGN_OR_RETURN(c.heads, Equal("heads", model_.heads));
    MS_ASSIGN_OR_RETURN(c.head_dim, Equal("head_dim", model_.head_dim));
    const bool state = c.has_state();
    MS_ASSIGN_OR_RETURN(c.rank, Count("rank", state && !c.own, 1, kBranchRankMax));
    MS_ASSIGN_OR_RETURN(c.gate_rank, Count("gate_rank", state, 1, kBranchRankMax));
    MS_ASSIGN_OR_RETURN(c.conv_taps, Count("conv", state, 0, kConvTapsMax));
    if (c.conv_taps == 1) return object_.Refuse("conv", "1 tap is no convolution; 0 says none");
    MS_ASSIGN_OR_RETURN(c.window, Count("window", c.has_window(), 1, kBranchWindowMax));
    MS_ASSIGN_OR_RETURN(c.sinks, Count("sinks", c.has_window(), 0, c.window));
    return absl::OkStatus();
  }

  absl::Status ReadArithmetic() {
    BranchesConfig& c = config();
    if (!c.has_state()) {
      for (const char* key : {"eps", "norm_eps", "scale", "silu", "rope", "qk_norm"}) {
        MS_RETURN_IF_ERROR(RefuseUnused(key));
      }
      return absl::OkStatus();
    }
    const bool lightning = c.kind == BranchKind::kLightning;
    MS_ASSIGN_OR_RETURN(c.silu, object_.Bool("silu", !lightning));
    MS_ASSIGN_OR_RETURN(c.rope, object_.Bool("rope", true));
    MS_ASSIGN_OR_RETURN(const std::string norm,
                        object_.String("qk_norm", lightning ? "rms" : "l2"));
    if (norm == "none") {
      c.qk_norm = kernels::QkNorm::kNone;
    } else if (norm == "l2") {
      c.qk_norm = kernels::QkNorm::kL2;
    } else if (norm == "rms") {
      c.qk_norm = kernels::QkNorm::kRms;
    } else {
      return object_.Refuse("qk_norm", "none of none, l2 and rms");
    }
    MS_ASSIGN_OR_RETURN(c.norm_eps, Positive("norm_eps", 1e-12, 1));
    MS_ASSIGN_OR_RETURN(c.scale, Positive("scale", 1e-6, 1e6));
    return CheckQkEps();
  }

  // The kernel adds 1e-6 to a sum of squares and norm_eps to a mean; a file says what it needs.
  absl::Status CheckQkEps() {
    if (config().qk_norm == kernels::QkNorm::kNone) return RefuseUnused("eps");
    MS_ASSIGN_OR_RETURN(const double eps, object_.Number("eps", std::nullopt));
    const bool l2 = config().qk_norm == kernels::QkNorm::kL2;
    const double needed = l2 ? kL2Eps : static_cast<double>(config().norm_eps);
    if (static_cast<float>(eps) != static_cast<float>(needed)) {
      return object_.Refuse("eps", absl::StrFormat("%g; with this qk_norm %g is supported%s", eps,
                                                   needed, l2 ? "" : ", that is norm_eps"));
    }
    return absl::OkStatus();
  }

  absl::Status RefuseUnused(const char* key) {
    if (!object_.Has(key)) return absl::OkStatus();
    return object_.Refuse(
        key, absl::StrFormat("%s branches of this form have none", BranchKindName(config().kind)));
  }

  absl::StatusOr<int32_t> Equal(const char* key, int32_t of_base) {
    MS_ASSIGN_OR_RETURN(const int32_t value, object_.Int(key, std::nullopt));
    if (value != of_base) {
      return object_.Refuse(key, absl::StrFormat("%d; the base has %d", value, of_base));
    }
    return value;
  }

  // In [low, high] when `used`; else absent or 0.
  absl::StatusOr<int32_t> Count(const char* key, bool used, int32_t low, int32_t high) {
    MS_ASSIGN_OR_RETURN(const int32_t value,
                        object_.Int(key, used ? std::nullopt : std::optional<int32_t>(0)));
    if (!used) return value == 0 ? absl::StatusOr<int32_t>(0) : RefuseUnused(key);
    if (value < low || value > high) {
      return object_.Refuse(key, absl::StrFormat("%d; it may be %d to %d", value, low, high));
    }
    return value;
  }

  absl::StatusOr<float> Positive(const char* key, double low, double high) {
    MS_ASSIGN_OR_RETURN(const double value, object_.Number(key, std::nullopt));
    if (value < low || value > high) {
      return object_.Refuse(key, absl::StrFormat("%g; it may be %g to %g", value, low, high));
    }
    return static_cast<float>(value);
  }

  const JsonObject& object_;
  const ModelConfig& model_;
  BranchesHeader header_;
};

}  // namespace

absl::StatusOr<BranchesHeader> ParseBranchesMetadata(std::string_view text,
                                                     const ModelConfig& model) {
  if (text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "__metadata__.morphserve has %u bytes; the limit is %u", text.size(), kTextBytesMax));
  }
  MS_ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text, "__metadata__.morphserve"));
  const JsonObject object(json, "branches");
  return Reader(object, model).Read();
}

}  // namespace morphserve
