// The figures of `morphctl bench`, by the definitions of the operator's manual:
//   TTFT  request sent to the first message that carries a token
//   E2EL  request sent to the last message
//   TPOT  (E2EL - TTFT) / (completion tokens - 1), per request with at least two tokens
//   ITL   gap between token messages; a gap before a message of m tokens counts as m samples of gap
//   / m goodput  requests per second that met every stated objective; refused, failed and late ones
//   did not
// Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "server/ctl/stream_call.h"

namespace morphserve::ctl {

struct Summary {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0;
};
Summary Summarize(std::vector<double> samples);

struct Objectives {
  std::optional<double> ttft_ms, tpot_ms, e2el_ms;
};

// What one request of the load did.
struct Outcome {
  bool ok = false;
  std::string error;  // Reason or code, when not ok.
  double sent_at = 0;
  double ended_at = 0;
  std::string plan;  // "p-... 8F/22L"; empty when it did not start.
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;
  int64_t completion_tokens = 0;
  std::vector<TokenMessage> messages;
};
Outcome ToOutcome(const StreamResult& result);

struct BenchReport {
  int64_t requests = 0, ok = 0, failed = 0;
  double window_s =
      0;  // First request sent to the last that was sent before the tail: see Measure.
  double requests_per_s = 0, output_tokens_per_s = 0, total_tokens_per_s = 0;
  double goodput_per_s = 0;
  bool has_objectives = false;
  double cached_share = 0;     // Of the prompt tokens.
  double coalesced_share = 0;  // Token messages that carried several tokens.
  Summary ttft_ms, tpot_ms, itl_ms, e2el_ms;
  std::vector<std::pair<std::string, int64_t>> plans;  // Requests that ran on each.
  std::vector<std::pair<std::string, int64_t>> errors;
};

// `ramp` requests at the start and the end of the load (by time sent) are left out of the figures.
BenchReport Measure(std::vector<Outcome> outcomes, const Objectives& objectives, int64_t ramp);

std::string ToText(const BenchReport& report);
std::string ToJson(const BenchReport& report);

}  // namespace morphserve::ctl
