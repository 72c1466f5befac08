#include "server/server_config.h"

#include <charconv>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "server/settings.h"

namespace morphserve {
namespace {

void CheckListeners(const ServerConfig& config, std::vector<std::string>* problems) {
  const struct {
    const char* key;
    const std::string& address;
    bool http;
  } listeners[] = {{"listen.inference", config.listen.inference, false},
                   {"listen.http", config.listen.http, true},
                   {"listen.admin", config.listen.admin, false}};
  const bool secured = !config.tls.cert.empty() && !config.auth.tokens_file.empty();
  for (size_t i = 0; i < std::size(listeners); ++i) {
    HostPort a;
    if (!ParseHostPort(listeners[i].address, &a)) {
      problems->push_back(
          absl::StrFormat("%s is '%s'; must be host:port", listeners[i].key, listeners[i].address));
      continue;
    }
    for (size_t j = 0; j < i; ++j) {
      HostPort b;
      if (ParseHostPort(listeners[j].address, &b) && a.port == b.port && a.port != 0) {
        problems->push_back(absl::StrFormat("%s and %s both use port %d", listeners[j].key,
                                            listeners[i].key, a.port));
      }
    }
    if (a.loopback || config.security.allow_insecure) continue;
    if (listeners[i].http) {
      if (config.security.allow_plain_http) continue;
      problems->push_back(absl::StrFormat(
          "listen.http is '%s', not loopback, and has no TLS; set security.allow_plain_http: true "
          "to open metrics and status to the network",
          listeners[i].address));
    } else if (!secured) {
      problems->push_back(absl::StrFormat(
          "%s is '%s', not loopback; needs tls.cert, tls.key and auth.tokens_file, or "
          "security.allow_insecure: true",
          listeners[i].key, listeners[i].address));
    }
  }
}

// Whether the plan exists, only the model can say.
void CheckActivePlan(const ServerConfig& config, std::vector<std::string>* problems) {
  constexpr std::string_view kBudget = "full_layers=";
  const std::string_view plan = config.plans.active;
  const bool budget =
      plan.substr(0, kBudget.size()) == kBudget && plan.size() > kBudget.size() &&
      plan.size() <= kBudget.size() + 4 &&
      plan.substr(kBudget.size()).find_first_not_of("0123456789") == std::string_view::npos;
  const bool letters = !plan.empty() && plan.find_first_not_of("FL") == std::string_view::npos;
  if (plan != "full" && !budget && !letters) {
    problems->push_back(absl::StrFormat(
        "plans.active is '%s'; must be full, full_layers=K, or one letter F or L a layer",
        plan.substr(0, 64)));
  } else if (config.model.branches.empty() && plan != "full") {
    problems->push_back(absl::StrFormat(
        "plans.active is '%s'; without model.branches every layer is full", plan.substr(0, 64)));
  }
}

void CheckAutopilot(const ServerConfig& config, std::vector<std::string>* problems) {
  const ServerConfig::Morph::Autopilot& autopilot = config.morph.autopilot;
  if (autopilot.k_max != 0 && autopilot.k_min > autopilot.k_max) {
    problems->push_back(
        absl::StrFormat("morph.autopilot.k_min is %d; must not exceed morph.autopilot.k_max, %d",
                        autopilot.k_min, autopilot.k_max));
  }
  if (!autopilot.enabled) return;
  if (autopilot.tpot_ms <= 0) {
    problems->push_back(
        "morph.autopilot.enabled is true; needs morph.autopilot.tpot_ms, which is unset");
  }
  if (config.model.branches.empty()) {
    problems->push_back(
        "morph.autopilot.enabled is true; without model.branches every layer is full");
  }
}

}  // namespace

ServerConfig::ServerConfig() {
  for (const SettingField& field : SettingTable()) {
    MS_CHECK(SetSetting(field, field.fallback, this).ok());
  }
}

bool ParseHostPort(const std::string& address, HostPort* out) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return false;
  std::string host = address.substr(0, colon);
  if (host.front() == '[') {
    if (host.size() < 3 || host.back() != ']') return false;
    host = host.substr(1, host.size() - 2);
    if (host.find_first_not_of("0123456789abcdefABCDEF:.") != std::string::npos) return false;
  } else {
    // A name or an IPv4 address; a bare v6 address would be ambiguous.
    for (const char c : host) {
      const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
      if (!letter && !(c >= '0' && c <= '9') && c != '.' && c != '-') return false;
    }
  }
  const char* first = address.data() + colon + 1;
  const char* last = address.data() + address.size();
  int port = 0;
  const auto [end, error] = std::from_chars(first, last, port);
  if (error != std::errc() || end != last || first == last || port < 0 || port > 65535) {
    return false;
  }
  bool digits_and_dots = host.compare(0, 4, "127.") == 0;
  for (const char c : host)
    digits_and_dots = digits_and_dots && (c == '.' || (c >= '0' && c <= '9'));
  // "127.example.com" is a name that anyone may own: only a literal counts.
  out->loopback = digits_and_dots || host == "localhost" || host == "::1";
  out->host = std::move(host);
  out->port = port;
  return true;
}

std::vector<std::string> ValidateConfig(const ServerConfig& config) {
  std::vector<std::string> problems;
  const auto need = [&problems](bool holds, std::string problem) {
    if (!holds) problems.push_back(std::move(problem));
  };
  need(!config.model.path.empty(), "model.path is not set; give --model PATH");
  CheckListeners(config, &problems);
  need(config.tls.cert.empty() == config.tls.key.empty(),
       "tls.cert and tls.key go together; only one is set");
  need(config.limits.deadline_default_s <= config.limits.deadline_max_s,
       absl::StrFormat("limits.deadline_default_s is %g; must not exceed limits.deadline_max_s, %g",
                       config.limits.deadline_default_s, config.limits.deadline_max_s));
  need(config.grpc.connection_age_grace_s >= config.limits.deadline_max_s,
       absl::StrFormat(
           "grpc.connection_age_grace_s is %d; must be at least limits.deadline_max_s, %g",
           config.grpc.connection_age_grace_s, config.limits.deadline_max_s));
  need(config.limits.prompt_bytes <= config.grpc.receive_bytes_max,
       absl::StrFormat("limits.prompt_bytes is %s; must not exceed grpc.receive_bytes_max, %s",
                       FormatBytes(config.limits.prompt_bytes),
                       FormatBytes(config.grpc.receive_bytes_max)));
  need(config.stream.outbox_bytes_max <= config.grpc.send_bytes_max,
       absl::StrFormat("stream.outbox_bytes_max is %s; must not exceed grpc.send_bytes_max, %s",
                       FormatBytes(config.stream.outbox_bytes_max),
                       FormatBytes(config.grpc.send_bytes_max)));
  const int32_t step_tokens = config.scheduler.step_tokens_max;  // 0: auto, which fits.
  need(step_tokens == 0 || config.scheduler.chunk_tokens_min <= step_tokens,
       absl::StrFormat(
           "scheduler.chunk_tokens_min is %d; must not exceed scheduler.step_tokens_max, %d",
           config.scheduler.chunk_tokens_min, step_tokens));
  need(step_tokens == 0 || config.scheduler.sequences_max <= step_tokens,
       absl::StrFormat(
           "scheduler.sequences_max is %d; must not exceed scheduler.step_tokens_max, %d",
           config.scheduler.sequences_max, step_tokens));
  CheckActivePlan(config, &problems);
  need(config.morph.rankings_file.empty() || !config.model.branches.empty(),
       "morph.rankings_file is set; without model.branches there are no layers to rank");
  need(config.morph.autopilot.target_file.empty() || !config.model.branches.empty(),
       "morph.autopilot.target_file is set; without model.branches there is nothing to morph");
  CheckAutopilot(config, &problems);
  need(config.model.weights_dtype != "f32" || config.cache.kv_dtype == "auto" ||
           config.cache.kv_dtype == "f32",
       absl::StrFormat("cache.kv_dtype is %s; the exact mode (model.weights_dtype f32) needs auto "
                       "or f32",
                       config.cache.kv_dtype));
  return problems;
}

EngineOptions ToEngineOptions(const ServerConfig& config) {
  EngineOptions options;
  const std::string& weights = config.model.weights_dtype;
  options.weights_dtype = weights == "bf16"  ? WeightsDType::kBF16
                          : weights == "f32" ? WeightsDType::kF32
                          : weights == "fp8" ? WeightsDType::kFp8
                                             : WeightsDType::kNative;
  const std::string& kv = config.cache.kv_dtype;
  options.kv_dtype = kv == "f32"    ? KvCacheDType::kF32
                     : kv == "f16"  ? KvCacheDType::kF16
                     : kv == "bf16" ? KvCacheDType::kBF16
                     : kv == "fp8"  ? KvCacheDType::kFp8
                                    : KvCacheDType::kAuto;
  options.device = config.device.kind == "cpu"    ? DeviceKind::kCpu
                   : config.device.kind == "cuda" ? DeviceKind::kCuda
                                                  : DeviceKind::kAuto;
  options.bf16_copies = config.device.bf16_copies == "on"    ? Bf16Copies::kOn
                        : config.device.bf16_copies == "off" ? Bf16Copies::kOff
                                                             : Bf16Copies::kAuto;
  options.threads = config.device.threads;
  options.context_tokens = config.limits.context_tokens;
  options.arena_bytes = config.cache.arena_bytes;
  options.sequences_max = config.scheduler.sequences_max;
  options.step_tokens_max = config.scheduler.step_tokens_max;
  options.step_ms_target = config.scheduler.step_ms_target;
  options.chunk_tokens_min = config.scheduler.chunk_tokens_min;
  options.growth_tokens = config.scheduler.growth_tokens;
  options.run_ahead = config.scheduler.run_ahead;
  options.starvation_s = config.scheduler.starvation_s;
  options.preemptions_max = config.scheduler.preemptions_max;
  options.deadline_admission = config.scheduler.deadline_admission == "certain";
  options.queue_requests_max = config.queue.requests_max;
  options.queue_tokens_max = config.queue.tokens_max;
  options.branches = config.model.branches;
  options.active_plan = config.plans.active;
  options.plans_table_max = config.plans.table_max;
  options.plans_history = config.plans.history;
  options.prefix_cache = config.cache.prefix;
  options.snapshot_share_max = config.cache.snapshot_share_max;
  options.snapshots_per_path = config.cache.snapshots_per_path;
  options.host_spill_bytes = config.cache.host_spill_bytes;
  options.guard_state_every_tokens = config.guard.state_every_tokens;
  options.guard_trips_max = config.guard.trips_max;
  options.guard_window_s = config.guard.window_s;
  options.latency_share_max = config.morph.latency_share_max;
  options.lab_bytes = config.morph.workspace_bytes;
  return options;
}

}  // namespace morphserve
