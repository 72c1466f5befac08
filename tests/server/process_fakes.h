// Stand-ins for tests of the process: an engine whose load a test sets and whose requests end when
// they are cancelled, and a sink that remembers its end. For tests/server only.
#pragma once

#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "tests/server/plan_fakes.h"

namespace morphserve::testing {

class StubEngine final : public PlannedEngine {
 public:
  StubEngine() : PlannedEngine(2) {
    info_.model_name = "stub";
    info_.layers = 2;
    info_.vocab = 100;
    info_.context_tokens = 1000;
    info_.memory.page_bytes = 1000;
    info_.memory.slot_bytes = 2000;
    info_.memory.pages_total = 10;
    info_.memory.text = "verdict of the stub";
  }

  const Tokenizer* tokenizer() const override { return nullptr; }
  const EngineInfo& info() const override { return info_; }

  absl::Status Submit(Request request, std::shared_ptr<TokenSink> sink) override {
    MutexLock lock(&mutex_);
    if (!refusal_.ok()) return refusal_;
    live_[request.id] = std::move(sink);
    return absl::OkStatus();
  }
  bool Cancel(const std::string& id, absl::Status status) override {
    std::shared_ptr<TokenSink> sink = Take(id);
    if (sink == nullptr) return false;
    sink->OnError(status);
    return true;
  }
  void StopAdmission() override {
    MutexLock lock(&mutex_);
    stopped_ = true;
  }
  EngineLoad GetLoad() const override {
    MutexLock lock(&mutex_);
    return load_;
  }

  void SetLoad(const EngineLoad& load) {
    MutexLock lock(&mutex_);
    load_ = load;
  }
  void Refuse(absl::Status status) {
    MutexLock lock(&mutex_);
    refusal_ = std::move(status);
  }
  bool Has(const std::string& id) const {
    MutexLock lock(&mutex_);
    return live_.count(id) != 0;
  }
  bool stopped() const {
    MutexLock lock(&mutex_);
    return stopped_;
  }
  // Gives the sink away, as an engine does when a request ends; null when there is none.
  std::shared_ptr<TokenSink> Take(const std::string& id) {
    MutexLock lock(&mutex_);
    const auto found = live_.find(id);
    if (found == live_.end()) return nullptr;
    std::shared_ptr<TokenSink> sink = std::move(found->second);
    live_.erase(found);
    return sink;
  }

 private:
  EngineInfo info_;
  mutable Mutex mutex_;
  EngineLoad load_ ABSL_GUARDED_BY(mutex_);
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, std::shared_ptr<TokenSink>> live_ ABSL_GUARDED_BY(mutex_);
};

// The value of the first series of `name` whose labels contain all of `labels`; -1 when there is
// none.
inline double MetricValue(const std::string& text, const std::string& name,
                          const std::vector<std::string>& labels = {}) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t end = line.find_first_of("{ ");
    if (line.substr(0, end) != name) continue;
    bool all = true;
    for (const std::string& label : labels) all = all && line.find(label) != std::string::npos;
    if (all) return std::stod(line.substr(line.rfind(' ') + 1));
  }
  return -1;
}

class EndSink final : public TokenSink {
 public:
  void OnStarted(const StartedEvent&) override {}
  void OnTokens(TokensEvent) override {}
  void OnFinished(const FinishedEvent&) override {}
  void OnDone(DoneEvent) override { done = true; }
  void OnError(const absl::Status& status) override { error = status; }

  bool done = false;
  absl::Status error;
};

}  // namespace morphserve::testing
