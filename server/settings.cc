#include "server/settings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <vector>

#include "absl/strings/str_format.h"

namespace morphserve {
namespace {

constexpr double kKiB = 1024;
constexpr double kMiB = 1024 * kKiB;
constexpr double kGiB = 1024 * kMiB;
constexpr double kTiB = 1024 * kGiB;
constexpr double kDay = 86400;
using Kind = SettingKind;

#define MS_AT(member) [](ServerConfig& c) -> SettingTarget { return &c.member; }

constexpr SettingField kTable[] = {
    {"model.path", Kind::kPath, "", 0, 0, "", "GGUF file, or Hugging Face folder with safetensors",
     MS_AT(model.path)},
    {"model.name", Kind::kText, "", 0, 0, "",
     "name that requests use; empty: the one in the model's files", MS_AT(model.name)},
    {"model.weights_dtype", Kind::kChoice, "native", 0, 0, "native|bf16|f32|fp8",
     "arithmetic of the weights; f32 is the exact mode, its KV in f32 too; fp8 rounds the layers' "
     "floats to e4m3",
     MS_AT(model.weights_dtype)},
    {"model.branches", Kind::kPath, "", 0, 0, "",
     "linear branches: a branches file, or window:W[:SINKS]; unset: every layer is full",
     MS_AT(model.branches)},
    {"device.kind", Kind::kChoice, "auto", 0, 0, "auto|cpu|cuda",
     "where the model runs; auto: a CUDA device if there is one, else the CPU", MS_AT(device.kind)},
    {"device.bf16_copies", Kind::kChoice, "auto", 0, 0, "auto|on|off",
     "on a device, keep quantised weights once more as bf16, for steps of more than 16 rows; auto: "
     "if that takes a tenth of its memory or less",
     MS_AT(device.bf16_copies)},
    {"device.threads", Kind::kCount, "auto", 0, 1024, "auto",
     "worker threads; auto: physical cores within affinity and CPU quota", MS_AT(device.threads)},
    {"listen.inference", Kind::kAddress, "127.0.0.1:8001", 0, 0, "",
     "gRPC: inference, models, health, reflection", MS_AT(listen.inference)},
    {"listen.http", Kind::kAddress, "127.0.0.1:8002", 0, 0, "",
     "HTTP: /metrics, /statusz, /livez, /readyz", MS_AT(listen.http)},
    {"listen.admin", Kind::kAddress, "127.0.0.1:8003", 0, 0, "",
     "gRPC: admin, layer plans, health, reflection", MS_AT(listen.admin)},
    {"grpc.receive_bytes_max", Kind::kBytes, "8MiB", kKiB, kGiB, "",
     "largest message taken from a client", MS_AT(grpc.receive_bytes_max)},
    {"grpc.send_bytes_max", Kind::kBytes, "16MiB", kKiB, kGiB, "",
     "largest message sent to a client", MS_AT(grpc.send_bytes_max)},
    {"grpc.streams_per_connection_max", Kind::kCount, "1024", 1, 1e6, "",
     "calls at a time on one connection", MS_AT(grpc.streams_per_connection_max)},
    {"grpc.connection_age_s", Kind::kCount, "1800", 1, 30 * kDay, "",
     "a connection is asked to go after this; spreads load behind balancers",
     MS_AT(grpc.connection_age_s)},
    {"grpc.connection_age_grace_s", Kind::kCount, "3600", 1, 30 * kDay, "",
     "what its calls then have left; at least limits.deadline_max_s",
     MS_AT(grpc.connection_age_grace_s)},
    {"grpc.keepalive_time_s", Kind::kCount, "60", 1, kDay, "",
     "silence after which a peer is pinged", MS_AT(grpc.keepalive_time_s)},
    {"grpc.keepalive_timeout_s", Kind::kCount, "20", 1, kDay, "",
     "wait for its answer before the connection is closed", MS_AT(grpc.keepalive_timeout_s)},
    {"grpc.client_ping_min_s", Kind::kCount, "10", 1, kDay, "",
     "least time between pings of a client", MS_AT(grpc.client_ping_min_s)},
    {"grpc.ping_strikes", Kind::kCount, "2", 0, 1000, "",
     "pings sooner than that before the connection is closed; 0: any number",
     MS_AT(grpc.ping_strikes)},
    {"grpc.reflection", Kind::kBool, "true", 0, 0, "", "describe the services to whoever connects",
     MS_AT(grpc.reflection)},
    {"limits.context_tokens", Kind::kCount, "model", 0, 16777216, "model",
     "prompt and completion together; model: what the model was made for",
     MS_AT(limits.context_tokens)},
    {"limits.prompt_bytes", Kind::kBytes, "4MiB", 1, kGiB, "",
     "text of one request, all messages, before tokenising", MS_AT(limits.prompt_bytes)},
    {"limits.messages", Kind::kCount, "1024", 1, 1e6, "", "messages of a chat",
     MS_AT(limits.messages)},
    {"limits.tools", Kind::kCount, "128", 0, 1e5, "", "tools of a chat", MS_AT(limits.tools)},
    {"limits.n", Kind::kCount, "8", 1, 256, "", "completions of one prompt", MS_AT(limits.n)},
    {"limits.stop_strings", Kind::kCount, "16", 0, 1024, "", "stop strings of a request",
     MS_AT(limits.stop_strings)},
    {"limits.stop_string_bytes", Kind::kCount, "256", 1, 65536, "", "length of a stop string",
     MS_AT(limits.stop_string_bytes)},
    {"limits.stop_token_ids", Kind::kCount, "64", 0, 65536, "", "stop ids of a request",
     MS_AT(limits.stop_token_ids)},
    {"limits.logit_bias", Kind::kCount, "1024", 0, 1e6, "", "biased ids of a request",
     MS_AT(limits.logit_bias)},
    {"limits.allowed_token_ids", Kind::kCount, "4096", 0, 1e6, "",
     "allowed ids of a request; the same number of banned ones", MS_AT(limits.allowed_token_ids)},
    {"limits.logprobs", Kind::kCount, "20", 0, 1000, "", "most likely tokens listed per token",
     MS_AT(limits.logprobs)},
    {"limits.snapshot_marks", Kind::kCount, "8", 0, 1024, "",
     "places of a prompt that a request may ask to be kept", MS_AT(limits.snapshot_marks)},
    {"limits.template_steps", Kind::kCount, "2000000", 1000, 1e9, "",
     "work of one chat template evaluation", MS_AT(limits.template_steps)},
    {"limits.template_bytes", Kind::kBytes, "4MiB", kKiB, kGiB, "",
     "output of one chat template evaluation", MS_AT(limits.template_bytes)},
    {"limits.deadline_default_s", Kind::kNumber, "600", 0.001, 30 * kDay, "",
     "for calls that bring no deadline", MS_AT(limits.deadline_default_s)},
    {"limits.deadline_max_s", Kind::kNumber, "3600", 0.001, 30 * kDay, "",
     "later deadlines are brought forward to this", MS_AT(limits.deadline_max_s)},
    {"queue.requests_max", Kind::kCount, "1024", 1, 1e6, "", "requests that may wait",
     MS_AT(queue.requests_max)},
    {"queue.tokens_max", Kind::kCount, "1000000", 1, 1e9, "", "their prompt tokens in all",
     MS_AT(queue.tokens_max)},
    {"scheduler.sequences_max", Kind::kCount, "auto", 1, 4096, "auto",
     "sequences that run at a time; auto: 32, on a device 256", MS_AT(scheduler.sequences_max)},
    {"scheduler.step_tokens_max", Kind::kCount, "auto", 16, 65536, "auto",
     "tokens of one step; auto: 256, on a device 2048", MS_AT(scheduler.step_tokens_max)},
    {"scheduler.step_ms_target", Kind::kNumber, "auto", 1, 60000, "auto",
     "time that prefill chunks are cut to; auto: 150, on a device 50",
     MS_AT(scheduler.step_ms_target)},
    {"scheduler.chunk_tokens_min", Kind::kCount, "64", 1, 65536, "",
     "least prefill progress of a step", MS_AT(scheduler.chunk_tokens_min)},
    {"scheduler.growth_tokens", Kind::kCount, "128", 0, 65536, "",
     "room kept for running sequences when one is admitted", MS_AT(scheduler.growth_tokens)},
    {"scheduler.run_ahead", Kind::kBool, "true", 0, 0, "",
     "on a device, begin a decode step before the tokens of the one before it are read",
     MS_AT(scheduler.run_ahead)},
    {"scheduler.starvation_s", Kind::kNumber, "30", 0.1, kDay, "",
     "a request that waited this long is served first", MS_AT(scheduler.starvation_s)},
    {"scheduler.preemptions_max", Kind::kCount, "8", 0, 1000, "",
     "preemptions of a sequence after which it is no victim", MS_AT(scheduler.preemptions_max)},
    {"scheduler.deadline_admission", Kind::kChoice, "certain", 0, 0, "off|certain",
     "certain: refuse what cannot meet its deadline even on an idle server",
     MS_AT(scheduler.deadline_admission)},
    {"stream.outbox_bytes_max", Kind::kBytes, "256KiB", kKiB, kGiB, "",
     "text that may wait for a slow reader before its request ends",
     MS_AT(stream.outbox_bytes_max)},
    {"stream.write_stall_s", Kind::kNumber, "30", 0.1, kDay, "",
     "time without a completed write before its request ends", MS_AT(stream.write_stall_s)},
    {"cache.arena_bytes", Kind::kBytes, "auto", kMiB, kTiB, "auto",
     "memory for KV and states; auto: a quarter of the memory, at most 4GiB; what a device has "
     "left",
     MS_AT(cache.arena_bytes)},
    {"cache.kv_dtype", Kind::kChoice, "auto", 0, 0, "auto|f32|f16|bf16|fp8",
     "KV element; auto: f16, on a device bf16, f32 with model.weights_dtype f32; fp8 (e4m3, scale "
     "1) needs a CUDA device",
     MS_AT(cache.kv_dtype)},
    {"cache.prefix", Kind::kBool, "true", 0, 0, "",
     "keep what was computed for prompts and answers, for those that begin alike",
     MS_AT(cache.prefix)},
    {"cache.snapshot_share_max", Kind::kNumber, "0.5", 0, 1, "",
     "share of the arena that kept states may take", MS_AT(cache.snapshot_share_max)},
    {"cache.snapshots_per_path", Kind::kCount, "8", 1, 1024, "",
     "states kept along one conversation", MS_AT(cache.snapshots_per_path)},
    {"cache.host_spill_bytes", Kind::kBytes, "0", 0, kTiB, "",
     "memory outside the arena for what preempted sequences hold; 0: they are computed again",
     MS_AT(cache.host_spill_bytes)},
    {"plans.active", Kind::kText, "full", 0, 0, "",
     "plan at the start: full, full_layers=K, or one letter F or L a layer", MS_AT(plans.active)},
    {"plans.table_max", Kind::kCount, "64", 8, 4096, "", "layer plans known at a time",
     MS_AT(plans.table_max)},
    {"plans.history", Kind::kCount, "16", 2, 1024, "", "past plans remembered per pointer",
     MS_AT(plans.history)},
    {"morph.canary_prompts", Kind::kCount, "8", 0, 8, "",
     "probe prompts that a plan answers before it serves; 0: none", MS_AT(morph.canary_prompts)},
    {"morph.kl_max", Kind::kNumber, "0.1", 0, 100, "",
     "divergence from the all-full plan that a canary passes, nats a token", MS_AT(morph.kl_max)},
    {"morph.watch_s", Kind::kNumber, "60", 0, kDay, "", "how long a plan is watched after a switch",
     MS_AT(morph.watch_s)},
    {"morph.latency_share_max", Kind::kNumber, "0.1", 0.01, 1, "",
     "share of a step's time that a morph's work may add to it", MS_AT(morph.latency_share_max)},
    {"morph.cost_cache", Kind::kPath, "", 0, 0, "",
     "file that keeps measured costs over restarts; unset: measured at the first need",
     MS_AT(morph.cost_cache)},
    {"morph.rankings_file", Kind::kPath, "", 0, 0, "",
     "file that keeps what was selected here over restarts; unset: kept until the server ends; "
     "progress beside it, in FILE.SELECTOR.part",
     MS_AT(morph.rankings_file)},
    {"morph.workspace_bytes", Kind::kBytes, "1GiB", kMiB, kTiB, "",
     "memory that selecting layers anew may take beside everything else while it runs",
     MS_AT(morph.workspace_bytes)},
    {"morph.reselect_tokens", Kind::kCount, "auto", 0, 1 << 20, "auto",
     "length of its calibration texts; auto: 1024, or the context limit where that is less",
     MS_AT(morph.reselect_tokens)},
    {"morph.reselect_samples", Kind::kCount, "4", 1, 1024, "", "number of its calibration texts",
     MS_AT(morph.reselect_samples)},
    {"morph.reselect_steps", Kind::kCount, "150", 1, 1e5, "",
     "steps of its search over gates, which only selector flashmorph makes",
     MS_AT(morph.reselect_steps)},
    {"morph.reselect_seed", Kind::kCount, "0", 0, 1e9, "",
     "of its texts; the next free one where the branches file has a ranking of that name",
     MS_AT(morph.reselect_seed)},
    {"morph.reselect_text", Kind::kPath, "", 0, 0, "",
     "UTF-8 text to hide its passkeys in, like what is served; unset: a built-in one",
     MS_AT(morph.reselect_text)},
    {"morph.autopilot.enabled", Kind::kBool, "false", 0, 0, "",
     "morph by itself towards a standing target; the next ones say which",
     MS_AT(morph.autopilot.enabled)},
    {"morph.autopilot.tpot_ms", Kind::kNumber, "unset", 0, 1e7, "unset",
     "time between two tokens of a request that it keeps", MS_AT(morph.autopilot.tpot_ms)},
    {"morph.autopilot.percentile", Kind::kNumber, "95", 50, 99.9, "", "of the measured times",
     MS_AT(morph.autopilot.percentile)},
    {"morph.autopilot.k_min", Kind::kCount, "0", 0, 4096, "", "fewest full layers it morphs to",
     MS_AT(morph.autopilot.k_min)},
    {"morph.autopilot.k_max", Kind::kCount, "layers", 0, 4096, "layers",
     "most full layers it morphs to; layers: all", MS_AT(morph.autopilot.k_max)},
    {"morph.autopilot.window_s", Kind::kNumber, "60", 1, 3600, "", "time over which it measures",
     MS_AT(morph.autopilot.window_s)},
    {"morph.autopilot.cool_down_s", Kind::kNumber, "300", 1, kDay, "",
     "it waits so long after each morph, an operator's too; longer after failures",
     MS_AT(morph.autopilot.cool_down_s)},
    {"morph.autopilot.hysteresis", Kind::kNumber, "0.1", 0.01, 0.5, "",
     "share of the target that it lets times be above, and predictions must be below",
     MS_AT(morph.autopilot.hysteresis)},
    {"morph.autopilot.quality_min", Kind::kNumber, "0.95", 0, 2, "",
     "least stored quality of a plan it morphs to; 0: any, known or not",
     MS_AT(morph.autopilot.quality_min)},
    {"morph.autopilot.samples_min", Kind::kCount, "200", 1, 1e6, "",
     "times between tokens that the window must hold before it acts",
     MS_AT(morph.autopilot.samples_min)},
    {"morph.autopilot.target_file", Kind::kPath, "", 0, 0, "",
     "file that keeps a target set while serving over restarts, where it takes the place of the "
     "settings above; unset: it holds until the server ends",
     MS_AT(morph.autopilot.target_file)},
    {"guard.state_every_tokens", Kind::kCount, "256", 0, 1e6, "",
     "states are searched for values that are not finite this often; 0: only before they are kept",
     MS_AT(guard.state_every_tokens)},
    {"guard.trips_max", Kind::kCount, "3", 1, 1e6, "",
     "trips on one plan within guard.window_s that bar it from new use", MS_AT(guard.trips_max)},
    {"guard.window_s", Kind::kNumber, "300", 0.1, kDay, "", "time over which trips are counted",
     MS_AT(guard.window_s)},
    {"health.stall_s", Kind::kNumber, "30", 0.1, kDay, "",
     "a step older than this, with work to do, ends liveness", MS_AT(health.stall_s)},
    {"drain.withdraw_s", Kind::kNumber, "10", 0, 3600, "",
     "still serving after readiness went, so that balancers notice", MS_AT(drain.withdraw_s)},
    {"drain.timeout_s", Kind::kNumber, "120", 0, kDay, "", "what running requests then have left",
     MS_AT(drain.timeout_s)},
    {"tls.cert", Kind::kPath, "", 0, 0, "", "PEM certificate chain of both gRPC listeners",
     MS_AT(tls.cert)},
    {"tls.key", Kind::kPath, "", 0, 0, "", "its PEM private key", MS_AT(tls.key)},
    {"auth.tokens_file", Kind::kPath, "", 0, 0, "",
     "YAML list of {sha256, scopes, tenant, priority_max}; unset: no credentials are asked for",
     MS_AT(auth.tokens_file)},
    {"security.allow_insecure", Kind::kBool, "false", 0, 0, "",
     "let listeners leave loopback without TLS and tokens", MS_AT(security.allow_insecure)},
    {"security.allow_plain_http", Kind::kBool, "false", 0, 0, "",
     "let only listen.http leave loopback, which has neither", MS_AT(security.allow_plain_http)},
    {"log.level", Kind::kChoice, "info", 0, 0, "debug|info|warning|error", "least level written",
     MS_AT(log.level)},
    {"log.format", Kind::kChoice, "text", 0, 0, "text|json", "form of a line", MS_AT(log.format)},
};
#undef MS_AT

// Keys of the design that a later release builds. Whoever sets one must know that it does nothing
// yet.
constexpr std::string_view kPlanned[] = {
    "tenant.running_max",  "tenant.waiting_max", "tenant.tokens_per_minute", "tenant.weight",
    "cache.page_tokens",   "cache.grid_tokens",  "cache.state_dtype",        "cache.isolation",
    "plans.quality_floor", "plans.state_file",   "plans.live_max",           "tls.client_ca",
};

absl::Status Refused(const SettingField& field, std::string_view text, const std::string& allowed) {
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is '%s'; must be %s", field.key, text, allowed));
}

std::string Plain(double value) {
  return value == std::floor(value) && std::fabs(value) < 9e15 ? absl::StrFormat("%.0f", value)
                                                               : absl::StrFormat("%g", value);
}

std::string RangeText(const SettingField& field) {
  std::string range;
  if (field.kind == Kind::kBytes) {
    range = absl::StrFormat("%s to %s (suffixes KiB, MiB, GiB, TiB)",
                            FormatBytes(static_cast<int64_t>(field.min)),
                            FormatBytes(static_cast<int64_t>(field.max)));
  } else {
    range =
        absl::StrFormat("%s %s to %s", field.kind == Kind::kCount ? "a whole number" : "a number",
                        Plain(field.min), Plain(field.max));
  }
  if (!field.words.empty()) range = absl::StrFormat("%s, or '%s'", range, field.words);
  return range;
}

// The number in `text`, or false when it is none or out of the field's range.
bool ParseNumber(const SettingField& field, std::string_view text, double* value) {
  if (!field.words.empty() && text == field.words) {
    *value = 0;
    return true;
  }
  if (field.kind == Kind::kBytes) {
    int64_t bytes = 0;
    if (!ParseBytes(text, &bytes)) return false;
    *value = static_cast<double>(bytes);
  } else {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
    if (error != std::errc() || end != text.data() + text.size()) return false;
    if (!std::isfinite(*value)) return false;
    if (field.kind == Kind::kCount && *value != std::floor(*value)) return false;
  }
  return *value >= field.min && *value <= field.max;
}

absl::Status SetWord(const SettingField& field, std::string_view text, std::string* out) {
  if (text.find('\0') != std::string_view::npos || text.size() > 4096) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has %d bytes or a zero byte; limit is 4096", field.key, text.size()));
  }
  if (field.kind == Kind::kChoice) {
    std::string_view rest = field.words;
    bool known = false;
    while (!known && !rest.empty()) {
      const size_t bar = std::min(rest.find('|'), rest.size());
      known = rest.substr(0, bar) == text;
      rest.remove_prefix(std::min(bar + 1, rest.size()));
    }
    if (!known) return Refused(field, text, absl::StrFormat("one of %s", field.words));
  }
  HostPort parsed;
  if (field.kind == Kind::kAddress && !ParseHostPort(std::string(text), &parsed)) {
    return Refused(field, text, "host:port or [v6]:port, port 0 to 65535");
  }
  *out = std::string(text);
  return absl::OkStatus();
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

}  // namespace

std::span<const SettingField> SettingTable() { return kTable; }

const SettingField* FindSetting(std::string_view key) {
  for (const SettingField& field : kTable) {
    if (field.key == key) return &field;
  }
  return nullptr;
}

std::string PlannedSetting(std::string_view key) {
  if (std::find(std::begin(kPlanned), std::end(kPlanned), key) == std::end(kPlanned)) return "";
  return absl::StrFormat("setting %s is planned, not built yet", key);
}

std::string NearestSetting(std::string_view key) {
  constexpr size_t kKeyBytesMax = 256;  // The distance is quadratic.
  if (key.size() > kKeyBytesMax) return "";
  std::string_view best;
  size_t best_distance = key.size() / 2 + 1;
  for (const SettingField& field : kTable) {
    const size_t dot = field.key.find('.');
    // A forgotten or wrong section is as common a slip as a misspelled name.
    const size_t distance =
        std::min(EditDistance(key, field.key), EditDistance(key, field.key.substr(dot + 1)) + 1);
    if (distance < best_distance) {
      best_distance = distance;
      best = field.key;
    }
  }
  return std::string(best);
}

absl::Status SetSetting(const SettingField& field, std::string_view text, ServerConfig* config) {
  const SettingTarget target = field.target(*config);
  if (std::string* const* word = std::get_if<std::string*>(&target)) {
    return SetWord(field, text, *word);
  }
  if (bool* const* flag = std::get_if<bool*>(&target)) {
    if (text != "true" && text != "false") return Refused(field, text, "true or false");
    **flag = text == "true";
    return absl::OkStatus();
  }
  double value = 0;
  if (!ParseNumber(field, text, &value)) return Refused(field, text, RangeText(field));
  if (int32_t* const* narrow = std::get_if<int32_t*>(&target)) {
    **narrow = static_cast<int32_t>(value);
  } else if (int64_t* const* wide = std::get_if<int64_t*>(&target)) {
    **wide = static_cast<int64_t>(value);
  } else {
    *std::get<double*>(target) = value;
  }
  return absl::OkStatus();
}

std::string FormatSetting(const SettingField& field, const ServerConfig& config) {
  ServerConfig copy = config;
  const SettingTarget target = field.target(copy);
  if (std::string* const* word = std::get_if<std::string*>(&target)) return **word;
  if (bool* const* flag = std::get_if<bool*>(&target)) return **flag ? "true" : "false";
  double value = 0;
  if (int32_t* const* narrow = std::get_if<int32_t*>(&target)) {
    value = **narrow;
  } else if (int64_t* const* wide = std::get_if<int64_t*>(&target)) {
    value = static_cast<double>(**wide);
  } else {
    value = *std::get<double*>(target);
  }
  if (value == 0 && !field.words.empty()) return std::string(field.words);
  if (field.kind == Kind::kBytes) return FormatBytes(static_cast<int64_t>(value));
  return Plain(value);
}

std::string EnvironmentName(std::string_view key) {
  std::string name = "MORPHSERVE_";
  for (const char c : key) {
    name += c == '.' ? '_' : (c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c);
  }
  return name;
}

bool ParseBytes(std::string_view text, int64_t* bytes) {
  constexpr std::array<std::string_view, 4> kSuffixes = {"KiB", "MiB", "GiB", "TiB"};
  double scale = 1;
  double step = kKiB;
  for (const std::string_view suffix : kSuffixes) {
    if (text.size() > suffix.size() && text.substr(text.size() - suffix.size()) == suffix) {
      text.remove_suffix(suffix.size());
      scale = step;
      break;
    }
    step *= kKiB;
  }
  double value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc() || end != text.data() + text.size()) return false;
  value *= scale;
  if (!(value >= 0) || value > 9007199254740992.0 || value != std::floor(value)) return false;
  *bytes = static_cast<int64_t>(value);
  return true;
}

std::string FormatBytes(int64_t bytes) {
  constexpr std::array<const char*, 4> kSuffixes = {"TiB", "GiB", "MiB", "KiB"};
  int64_t unit = int64_t{1} << 40;
  for (const char* suffix : kSuffixes) {
    if (bytes >= unit && bytes % unit == 0) return absl::StrFormat("%d%s", bytes / unit, suffix);
    unit >>= 10;
  }
  return absl::StrFormat("%d", bytes);
}

}  // namespace morphserve
