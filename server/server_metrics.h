// ServerMetrics owns the Prometheus registry and every family of it. It hears the engine as its
// observer and the services through the On... methods, and renders the whole for /metrics. The
// table of names is server/README.md. Thread rule: On... of EngineObserver on the engine thread;
// everything else from any thread. References to counters are kept: nothing is looked up by label
// per token.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "engine/engine_observer.h"
#include "morph/autopilot_runner.h"
#include "morph/morph.h"

namespace morphserve {

class ServerMetrics final : public EngineObserver {
 public:
  ServerMetrics();
  ~ServerMetrics() override;
  ServerMetrics(const ServerMetrics&) = delete;
  ServerMetrics& operator=(const ServerMetrics&) = delete;

  // Services. `service` and `method` as in the path of the call ("morphserve.v1.Inference",
  // "Chat"); names that no listener registers are counted as "other". `grpc_code` is a
  // grpc::StatusCode.
  void OnRpcStart(std::string_view service, std::string_view method);
  void OnRpcEnd(std::string_view service, std::string_view method, int grpc_code, double seconds);
  // A request refused at admission, by its reason in the error catalogue ("QUEUE_FULL", ...).
  void OnRejection(std::string_view reason);
  void OnSlowReader();                 // A stream ended because nobody read it.
  void AddOutboxBytes(int64_t delta);  // Bytes waiting to be written, over all streams.
  // `cause`: missing, malformed, unknown, scope.
  void OnAuthFailure(std::string_view cause);
  // Every event of every morph, in order.
  void OnMorph(const MorphEvent& event);
  // After each decision of the autopilot.
  void OnAutopilot(const AutopilotState& state);

  // EngineObserver.
  void OnStep(const StepReport& report) override;
  void OnFirstToken(std::string_view plan_id, double ttft_s) override;
  void OnTokenGap(std::string_view plan_id, double gap_s) override;
  void OnPreemption(PreemptedBy resource, bool spilled) override;
  void OnNonFinite(std::string_view plan_id, std::string_view where) override;
  void OnPrefixLookup(std::string_view plan_id, int32_t prompt_tokens,
                      const CacheHit& hit) override;
  void OnRequestEnd(const RequestReport& report) override;

  // The server. SetModelName: the constant label of every series, from then on. AttachEngine: where
  // gauges are read from at each Render; null detaches, after which the engine may go.
  void SetModelName(std::string name);
  void AttachEngine(Engine* engine);
  void SetStartupSeconds(std::string_view phase, double seconds);

  // The exposition text of all families.
  std::string Render();

  // The last steps, oldest first, at most kStepsKept.
  static constexpr size_t kStepsKept = 20;
  struct Step {
    absl::Time at;
    StepReport report;  // Without by_plan.
  };
  std::vector<Step> LastSteps() const;

  // Every family name this class registers, for the test that compares code, docs and dashboards.
  static std::vector<std::string> Names();

 private:
  struct Families;
  struct PlanGauges;
  struct PlanSeries;
  struct RpcSeries;

  PlanSeries& Plan(std::string_view plan_id);
  RpcSeries& Rpc(std::string_view service, std::string_view method);
  void RefreshGauges() ABSL_EXCLUSIVE_LOCKS_REQUIRED(render_mutex_);

  const std::unique_ptr<Families> families_;
  std::vector<std::unique_ptr<RpcSeries>>
      rpcs_;  // Constant after construction; the last is "other".

  // Engine thread only.
  std::vector<std::unique_ptr<PlanSeries>> plans_;
  PlanSeries* last_plan_ = nullptr;

  Mutex render_mutex_;  // Never taken on the engine thread. Before mutex_ where both are held.
  Engine* engine_ ABSL_GUARDED_BY(render_mutex_) = nullptr;
  const std::unique_ptr<PlanGauges> plan_gauges_ ABSL_PT_GUARDED_BY(render_mutex_);

  mutable Mutex mutex_;
  std::string model_name_ ABSL_GUARDED_BY(mutex_);
  std::deque<Step> steps_ ABSL_GUARDED_BY(mutex_);
  absl::Time morph_began_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace morphserve
