// The flags that shape a generation, shared by chat, generate and bench. A flag that was not given
// leaves its field absent, so that the server's defaults hold.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "morphserve/v1/inference.pb.h"
#include "server/ctl/connection.h"

namespace CLI {
class App;
}

namespace morphserve::ctl {

struct GenerationFlags {
  std::optional<float> temperature, top_p, min_p;
  std::optional<float> presence_penalty, frequency_penalty, repetition_penalty;
  std::optional<uint32_t> top_k, n, max_tokens, min_tokens, logprobs;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::optional<int32_t> priority;
  std::string plan;     // As given; empty: the active one.
  uint32_t layers = 0;  // Of the model, once Prepare has asked.

  void Register(CLI::App* command);
  // Asks the server what --plan full means; other plans need no question. Comes before Fill.
  grpc::Status Prepare(const Connection& connection, const std::string& model);
  void Fill(v1::GenerationOptions* options) const;
};

}  // namespace morphserve::ctl
