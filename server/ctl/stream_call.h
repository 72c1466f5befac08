// StreamCall runs one streaming generation and hands its events to the caller as they come, with
// the times that the benchmark's definitions need.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "morphserve/v1/inference.grpc.pb.h"
#include "server/ctl/connection.h"
#include "server/ctl/interrupt.h"

namespace morphserve::ctl {

// Times are seconds of the steady clock.
double SteadySeconds();

struct TokenMessage {
  double at = 0;
  int32_t tokens = 0;
};

struct StreamResult {
  grpc::Status status;
  double sent_at = 0;
  double ended_at = 0;
  std::vector<TokenMessage> messages;  // Those that carried tokens.
  v1::Started started;
  std::vector<v1::Finished> finished;
  v1::Done done;
  std::vector<std::string> texts;  // By choice.
  std::vector<std::vector<uint32_t>> token_ids;
};

// Exactly one of the requests. `on_delta` may be null.
StreamResult RunStream(const Connection& connection, Interrupt* interrupt,
                       const v1::ChatRequest* chat, const v1::GenerateRequest* generate,
                       const std::function<void(const v1::Delta&)>& on_delta);

}  // namespace morphserve::ctl
