// RecordingSink remembers the events of one request and checks the order of the stream contract as
// they come.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"

namespace morphserve {

class RecordingSink final : public TokenSink {
 public:
  void OnStarted(const StartedEvent& event) override {
    EXPECT_FALSE(started.has_value()) << "OnStarted came twice";
    EXPECT_FALSE(ended());
    started = event;
  }
  void OnTokens(TokensEvent event) override {
    EXPECT_TRUE(started.has_value());
    EXPECT_FALSE(ended());
    EXPECT_FALSE(finished.contains(event.index)) << "tokens after OnFinished";
    auto& ids = tokens[event.index];
    ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
    text[event.index] += event.text;
    auto& logs = logprobs[event.index];
    logs.insert(logs.end(), event.logprobs.begin(), event.logprobs.end());
  }
  void OnFinished(const FinishedEvent& event) override {
    EXPECT_FALSE(ended());
    EXPECT_TRUE(finished.emplace(event.index, event).second) << "OnFinished came twice";
  }
  void OnDone(DoneEvent event) override {
    EXPECT_FALSE(ended());
    done = std::move(event);
  }
  void OnError(const absl::Status& status) override {
    EXPECT_FALSE(ended());
    error = status;
  }
  bool ended() const { return done.has_value() || error.has_value(); }

  std::optional<StartedEvent> started;
  std::map<int32_t, std::vector<int32_t>> tokens;
  std::map<int32_t, std::vector<TokenLogprobs>> logprobs;
  std::map<int32_t, std::string> text;
  std::map<int32_t, FinishedEvent> finished;
  std::optional<DoneEvent> done;
  std::optional<absl::Status> error;
};

}  // namespace morphserve
