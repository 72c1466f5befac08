// Translator turns the messages of the inference service into what the engine takes, and checks
// every field on the way: ranges, limits, token ids, JSON, what this release lacks. It is the only
// reader of requests. Failures are those of the error catalogue (errors.h); all faults of a request
// come together. Thread rule: immutable, any thread. Text work is done here, so it runs on the text
// pool.
#pragma once

#include <morphserve/v1/inference.pb.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/request.h"
#include "server/faults.h"
#include "server/serving_state.h"

namespace morphserve {

// What is known of a call beside its message.
struct CallFacts {
  std::string tenant;
  int32_t priority_max = 100;
  std::string header_request_id;  // x-request-id; empty: absent.
  absl::Time received;
  absl::Time deadline = absl::InfiniteFuture();  // The client's; infinite: it has none.
};

// The request id of a call: the field, else the header, else a new one. FIELD_INVALID.
absl::StatusOr<std::string> ChooseRequestId(const v1::GenerationOptions& options,
                                            const CallFacts& facts);

// FEATURE_UNAVAILABLE when the message, or one inside it, has a field that this build does not
// know.
absl::Status CheckKnownFields(const google::protobuf::Message& message);

class Translator {
 public:
  // Both outlive this.
  Translator(const ServedModel* model, const ServerConfig* config)
      : model_(model), limits_(&config->limits), prefix_cache_(config->cache.prefix) {}

  // Everything but the id, which ChooseRequestId gives.
  absl::StatusOr<Request> Generate(const v1::GenerateRequest& request,
                                   const CallFacts& facts) const;
  absl::StatusOr<Request> Chat(const v1::ChatRequest& request, const CallFacts& facts) const;

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                absl::Time now) const;
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request) const;
  // With a plan: waits for the end of a step.
  absl::StatusOr<v1::CountTokensResponse> CountTokens(const v1::CountTokensRequest& request,
                                                      const CallFacts& facts) const;

  // OK when `name` is empty or the served model's. NOT_FOUND (MODEL_NOT_FOUND).
  absl::Status CheckModel(std::string_view name) const;

 private:
  const Tokenizer* tokenizer() const { return model_->engine->tokenizer(); }
  absl::Status NeedTokenizer() const;
  absl::Status NeedChatTemplate() const;
  // What both generating calls do before the prompt is tokens.
  absl::Status Options(const v1::GenerationOptions& options, const CallFacts& facts,
                       Request* request, FaultList* faults) const;
  absl::Status Prompt(const v1::GenerateRequest& request, std::vector<int32_t>* prompt) const;
  // Once the prompt is tokens: what its length bounds, and the plan.
  absl::Status Finish(const v1::GenerationOptions& options, Request* request) const;
  absl::Status CheckTokenInput(const v1::ChatRequest& chat, FaultList* faults) const;
  // Tokens of the oneof `input` of Tokenize and CountTokens.
  template <typename T>
  absl::StatusOr<std::vector<int32_t>> Input(const T& request, bool add_special,
                                             absl::Time now) const;

  const ServedModel* const model_;
  const ServerConfig::Limits* const limits_;
  const bool prefix_cache_;
};

}  // namespace morphserve
