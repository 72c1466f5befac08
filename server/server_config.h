// ServerConfig is every setting of the process, typed, after file, environment and flags were
// merged. The table that names, bounds and explains each one is settings.cc; a member here without
// a row there does not exist for a user. Plain values, constant once the server runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine_options.h"

namespace morphserve {

struct ServerConfig {
  struct Model {
    std::string path;           // GGUF file or Hugging Face folder. Empty only for --print_config.
    std::string name;           // Empty: the checkpoint's own.
    std::string weights_dtype;  // native | bf16 | f32 | fp8.
    std::string branches;       // Branches file, or window:W[:SINKS]. Empty: dense.
  } model;

  struct Device {
    std::string kind;         // auto | cpu | cuda.
    std::string bf16_copies;  // auto | on | off.
    int32_t threads = 0;      // 0: what the machine and its cgroup give.
  } device;

  struct Listen {
    std::string inference;
    std::string http;
    std::string admin;
  } listen;

  struct Grpc {
    int64_t receive_bytes_max = 0;
    int64_t send_bytes_max = 0;
    int32_t streams_per_connection_max = 0;
    int32_t connection_age_s = 0;
    int32_t connection_age_grace_s = 0;
    int32_t keepalive_time_s = 0;
    int32_t keepalive_timeout_s = 0;
    int32_t client_ping_min_s = 0;
    int32_t ping_strikes = 0;
    bool reflection = true;
  } grpc;

  // What one request may ask for; checked before tokenising or rendering.
  struct Limits {
    int32_t context_tokens = 0;  // 0: the model's own.
    int64_t prompt_bytes = 0;
    int32_t messages = 0;
    int32_t tools = 0;
    int32_t n = 0;
    int32_t stop_strings = 0;
    int32_t stop_string_bytes = 0;
    int32_t stop_token_ids = 0;
    int32_t logit_bias = 0;
    int32_t allowed_token_ids = 0;  // Bounds banned_token_ids as well.
    int32_t logprobs = 0;
    int32_t snapshot_marks = 0;
    int64_t template_steps = 0;
    int64_t template_bytes = 0;
    double deadline_default_s = 0;
    double deadline_max_s = 0;
  } limits;

  struct Queue {
    int32_t requests_max = 0;
    int64_t tokens_max = 0;
  } queue;

  struct Scheduler {
    int32_t sequences_max = 0;
    int32_t step_tokens_max = 0;
    double step_ms_target = 0;
    int32_t chunk_tokens_min = 0;
    int32_t growth_tokens = 0;
    bool run_ahead = true;
    double starvation_s = 0;
    int32_t preemptions_max = 0;
    std::string deadline_admission;  // off | certain.
  } scheduler;

  struct Stream {
    int64_t outbox_bytes_max = 0;
    double write_stall_s = 0;
  } stream;

  struct Cache {
    int64_t arena_bytes = 0;  // 0: auto.
    std::string kv_dtype;     // auto | f32 | f16 | bf16 | fp8.
    bool prefix = true;
    double snapshot_share_max = 0;
    int32_t snapshots_per_path = 0;
    int64_t host_spill_bytes = 0;
  } cache;

  struct Plans {
    std::string active;  // full | full_layers=K | one letter F or L a layer.
    int32_t table_max = 0;
    int32_t history = 0;
  } plans;

  struct Morph {
    int32_t canary_prompts = 0;
    double kl_max = 0;
    double watch_s = 0;
    double latency_share_max = 0;
    std::string cost_cache;
    std::string rankings_file;
    int64_t workspace_bytes = 0;
    int32_t reselect_tokens = 0;  // 0: auto.
    int32_t reselect_samples = 0;
    int32_t reselect_steps = 0;
    int32_t reselect_seed = 0;
    std::string reselect_text;
    struct Autopilot {
      bool enabled = false;
      double tpot_ms = 0;  // 0: unset.
      double percentile = 0;
      int32_t k_min = 0;
      int32_t k_max = 0;  // 0: all layers.
      double window_s = 0;
      double cool_down_s = 0;
      double hysteresis = 0;
      double quality_min = 0;
      int32_t samples_min = 0;
      std::string target_file;
    } autopilot;
  } morph;

  struct Guard {
    int32_t state_every_tokens = 0;
    int32_t trips_max = 0;
    double window_s = 0;
  } guard;

  struct Health {
    double stall_s = 0;
  } health;

  struct Drain {
    double withdraw_s = 0;
    double timeout_s = 0;
  } drain;

  struct Tls {
    std::string cert;
    std::string key;
  } tls;

  struct Auth {
    std::string tokens_file;
  } auth;

  struct Security {
    bool allow_insecure = false;
    bool allow_plain_http = false;
  } security;

  struct Log {
    std::string level;
    std::string format;
  } log;

  ServerConfig();  // Every member at the default of the table.
};

// Problems between settings (ranges of single values are checked when they are set), each naming
// its keys. Empty: the configuration can be served. Reads no file.
std::vector<std::string> ValidateConfig(const ServerConfig& config);

// The engine's share of the settings. `config` must have passed ValidateConfig.
EngineOptions ToEngineOptions(const ServerConfig& config);

struct HostPort {
  std::string host;  // Without brackets.
  int port = 0;
  bool loopback = false;
};
// "host:port" or "[v6]:port"; false when `address` is neither. Names are not resolved; "localhost"
// counts as loopback.
bool ParseHostPort(const std::string& address, HostPort* out);

}  // namespace morphserve
