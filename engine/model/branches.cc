#include "engine/model/branches.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/model/branches_file.h"

namespace morphserve {
namespace {

constexpr std::string_view kWindowPrefix = "window:";
constexpr int32_t kDefaultSinks = 4;

std::optional<int32_t> ParseCount(std::string_view text) {
  int32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// "W" or "W:SINKS".
absl::StatusOr<BranchesHeader> OpenWindow(std::string_view source, const ModelConfig& model) {
  const std::string_view text = source.substr(kWindowPrefix.size());
  const size_t colon = text.find(':');
  const std::optional<int32_t> window = ParseCount(text.substr(0, colon));
  if (!window.has_value() || *window < 1 || *window > kBranchWindowMax) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "branches window:W or window:W:SINKS: W is no number from 1 to %d", kBranchWindowMax));
  }
  const bool said = colon != std::string_view::npos;
  const std::optional<int32_t> sinks =
      said ? ParseCount(text.substr(colon + 1)) : std::min(kDefaultSinks, *window);
  if (!sinks.has_value() || *sinks < 0 || *sinks > *window) {
    return absl::InvalidArgumentError(
        absl::StrFormat("branches window:W:SINKS: SINKS is no number from 0 to W, %d", *window));
  }
  BranchesHeader header;
  header.source = std::string(source);
  header.config = {.kind = BranchKind::kWindow,
                   .heads = model.heads,
                   .head_dim = model.head_dim,
                   .window = *window,
                   .sinks = *sinks};
  return header;
}

}  // namespace

const char* BranchKindName(BranchKind kind) {
  switch (kind) {
    case BranchKind::kWindow: return "window";
    case BranchKind::kLightning: return "lightning";
    case BranchKind::kGatedDelta: return "gated_delta";
    case BranchKind::kGatedDeltaWindow: return "gated_delta_window";
  }
  return "?";
}

DownColumns MakeDownColumns(const BranchesConfig& config) {
  DownColumns out;
  if (!config.has_state()) return out;
  const bool delta = config.kind != BranchKind::kLightning;
  const auto add = [&out](int32_t* first, int32_t width) {
    *first = out.width;
    out.width += width;
  };
  add(&out.q, config.rank);  // 0 with own projections.
  add(&out.k, config.rank);
  add(&out.v, config.rank);
  add(&out.gate, config.gate_rank);
  add(&out.a, delta ? config.heads : 0);
  add(&out.b, delta ? config.heads : 0);
  add(&out.window, config.has_window() ? config.heads : 0);
  out.stride = (out.width + 7) / 8 * 8;
  return out;
}

kernels::SlotShape MakeSlotShape(const BranchesConfig& config, const ModelConfig& model,
                                 KvDType dtype) {
  return {.heads = config.has_state() ? config.heads : 0,
          .head_dim = config.head_dim,
          .conv_taps = config.conv_taps,
          .kv_heads = config.has_window() ? model.kv_heads : 0,
          .window = config.window,
          .sinks = config.sinks,
          // A state that is written over and over, or a window of few rows, is not worth e4m3.
          .dtype = dtype == KvDType::kE4m3 ? KvDType::kBF16 : dtype};
}

absl::StatusOr<BranchesHeader> OpenBranches(std::string_view source, const ModelConfig& model) {
  if (source.starts_with(kWindowPrefix)) return OpenWindow(source, model);
  MS_ASSIGN_OR_RETURN(const std::unique_ptr<FileReader> file, OpenFile(std::string(source)));
  MS_ASSIGN_OR_RETURN(BranchesFile parsed, ReadBranchesFile(*file, source, model));
  MS_RETURN_IF_ERROR(file->CheckUnchanged());
  return std::move(parsed.header);
}

}  // namespace morphserve
