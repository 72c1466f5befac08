#include "server/server.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/machine.h"
#include "engine/base/status_macros.h"
#include "morph/autopilot_runner.h"
#include "morph/controller.h"
#include "morph/cost_keeper.h"
#include "morph/latency_window.h"
#include "morph/verifier_lab.h"
#include "server/admin_service.h"
#include "server/auth.h"
#include "server/autopilot_messages.h"
#include "server/drain.h"
#include "server/health.h"
#include "server/http_server.h"
#include "server/inference_service.h"
#include "server/layer_selection.h"
#include "server/listener.h"
#include "server/models_service.h"
#include "server/morph_service.h"
#include "server/observer_pair.h"
#include "server/server_metrics.h"
#include "server/serving_state.h"
#include "server/signals.h"
#include "server/statusz.h"
#include "server/tls.h"
#include "server/tracked_engine.h"
#include "server/version.h"

namespace morphserve {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);
// A stop while loading waits this long for the loader to notice; the promise is one second.
constexpr absl::Duration kLoadCancelWait = absl::Milliseconds(800);
constexpr absl::Duration kAdminFlush = absl::Seconds(1);

constexpr char kReadiness[] = "readiness";
constexpr char kLiveness[] = "liveness";
const char* const kReadinessNames[] = {"", kReadiness, "morphserve.v1.Inference",
                                       "morphserve.v1.Models"};
const char* const kAdminNames[] = {"", "morphserve.v1.Admin", "morphserve.v1.Morph"};

std::string DrainWord(const Drain& drain) {
  switch (drain.phase()) {
    case Drain::Phase::kIdle: return "";
    case Drain::Phase::kWithdrawn: return "withdrawn, still serving";
    case Drain::Phase::kFinishing: return "finishing what runs";
    case Drain::Phase::kEnded: return drain.exiting() ? "ending" : "held until resumed";
  }
  return "";
}

}  // namespace

struct Server::Impl {
  explicit Impl(ServerOptions server_options)
      : options(std::move(server_options)),
        config(options.settings.config),
        clock(options.clock),
        state(config, SettingsDigest(config), clock->Now()),
        drain(DrainHooks(), absl::Seconds(config.drain.withdraw_s)) {}

  Drain::Hooks DrainHooks();
  absl::Status Listen();
  HttpServer::Pages Pages();
  void Loop();
  void OnSignal(int signal);
  void RequestStop();
  void UpdateHealth();
  absl::Status LoadAndServe();
  void StartMorphing(const AutopilotTarget& target);
  void LogStart() const;
  absl::Status WriteReadyFile() const;
  void RemoveReadyFile() const;
  void ShutDown(absl::Time end_at);

  const ServerOptions options;
  const ServerConfig& config;
  const Clock* const clock;
  Ports ports;

  // In the order of use: each may refer to what stands above it, and is destroyed before it.
  ServerMetrics metrics;
  LatencyWindow latencies{clock};
  WatchGaps watch_gaps;
  ObserverPair measuring{&latencies, &watch_gaps};
  ObserverPair observers{&metrics, &measuring};
  std::unique_ptr<Authorizer> authorizer;
  ServingState state;
  Drain drain;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<TrackedEngine> engine;
  std::unique_ptr<CostKeeper> costs;
  std::unique_ptr<LabVerifier> verifier;
  LayerSelectionParts selection;
  std::unique_ptr<MorphController> morph;
  std::unique_ptr<AutopilotRunner> autopilot;
  std::atomic<TrackedEngine*> live_engine{nullptr};
  std::atomic<AutopilotRunner*> live_autopilot{nullptr};
  HealthService inference_health{
      {"", kReadiness, kLiveness, "morphserve.v1.Inference", "morphserve.v1.Models"}};
  HealthService admin_health{{std::begin(kAdminNames), std::end(kAdminNames)}};
  std::unique_ptr<InferenceService> inference_service;
  std::unique_ptr<ModelsService> models_service;
  std::unique_ptr<AdminService> admin_service;
  std::unique_ptr<MorphService> morph_service;
  std::unique_ptr<HttpServer> http;
  Listener inference;
  Listener admin;

  std::atomic<bool> cancel_load{false};
  std::atomic<bool> loading{true};
  std::atomic<bool> closing{false};
  std::atomic<bool> device_lost{false};
  Mutex health_mutex;  // One judgement at a time.
  bool was_alive ABSL_GUARDED_BY(health_mutex) = true;
  bool was_ready ABSL_GUARDED_BY(health_mutex) = false;

  // Loop only.
  bool signalled = false;
  absl::Time cancelled_at = absl::InfiniteFuture();

  Mutex loop_mutex;
  CondVar loop_wake;
  std::thread loop;
};

Drain::Hooks Server::Impl::DrainHooks() {
  Drain::Hooks hooks;
  hooks.withdraw = [this] {
    MS_LOG(INFO) << "drain: readiness withdrawn, requests are taken for " << config.drain.withdraw_s
                 << " s more";
    state.BeginDrain();
  };
  hooks.refuse = [this] {
    TrackedEngine* const live = live_engine.load();
    MS_LOG(INFO) << "drain: requests are refused; live=" << (live ? live->live_count() : 0);
    state.RefuseRequests();
    // The engine cannot be told to take requests again, which a held drain may ask for.
    if (live != nullptr && drain.exiting()) {
      live->StopAdmission();
      state.model()->morph->Stop();
    }
  };
  hooks.live = [this]() -> int64_t {
    TrackedEngine* const live = live_engine.load();
    return live != nullptr ? static_cast<int64_t>(live->live_count()) : 0;
  };
  hooks.end_rest = [this] {
    TrackedEngine* const live = live_engine.load();
    const size_t ended = live->EndAll(
        WithReason(absl::UnavailableError("server is draining; its time is over"), "DRAINING"));
    MS_LOG(WARNING) << "drain: time is over, requests ended=" << ended;
  };
  hooks.resume = [this] {
    MS_LOG(INFO) << "drain: resumed, requests are taken again";
    state.Resume();
  };
  return hooks;
}

HttpServer::Pages Server::Impl::Pages() {
  const auto health = [this](const char* name) {
    HttpPage page;
    const bool good = inference_health.serving(name);
    page.status = good ? 200 : 503;
    page.body = good ? "ok\n"
                     : absl::StrFormat("%s: not serving; state is %s\n", name,
                                       ServingPhaseName(state.phase()));
    return page;
  };
  HttpServer::Pages pages;
  pages["/livez"] = [health] { return health(kLiveness); };
  pages["/readyz"] = [health] { return health(kReadiness); };
  pages["/metrics"] = [this] {
    return HttpPage{200, "text/plain; version=0.0.4; charset=utf-8", metrics.Render()};
  };
  pages["/statusz"] = [this] {
    HttpPage page;
    page.body = RenderStatus(state, metrics, DrainWord(drain));
    return page;
  };
  return pages;
}

absl::Status Server::Impl::Listen() {
  MS_ASSIGN_OR_RETURN(authorizer, Authorizer::Create(config.auth.tokens_file, &metrics));
  MS_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                      MakeServerCredentials(config.tls.cert, config.tls.key));
  inference_service = std::make_unique<InferenceService>(&state, authorizer.get(), &metrics, clock);
  models_service = std::make_unique<ModelsService>(&state, authorizer.get(), &metrics, clock);
  admin_service =
      std::make_unique<AdminService>(AdminDeps{.state = &state,
                                               .authorizer = authorizer.get(),
                                               .metrics = &metrics,
                                               .drain = &drain,
                                               .clock = clock,
                                               .engine = [this] { return live_engine.load(); }});
  morph_service = std::make_unique<MorphService>(
      MorphDeps{.state = &state,
                .authorizer = authorizer.get(),
                .metrics = &metrics,
                .clock = clock,
                .end_plan = [this](const std::string& plan_id, const absl::Status& status) {
                  TrackedEngine* const live = live_engine.load();
                  return live == nullptr ? 0u : live->EndPlan(plan_id, status);
                }});
  inference_health.Set(kLiveness, true);
  for (const char* name : kAdminNames) admin_health.Set(name, true);
  MS_ASSIGN_OR_RETURN(http, HttpServer::Create(config.listen.http, Pages()));
  MS_ASSIGN_OR_RETURN(
      inference, StartListener({"listen.inference",
                                config.listen.inference,
                                credentials,
                                {inference_service.get(), models_service.get(), &inference_health}},
                               config.grpc));
  MS_ASSIGN_OR_RETURN(admin,
                      StartListener({"listen.admin",
                                     config.listen.admin,
                                     credentials,
                                     {admin_service.get(), morph_service.get(), &admin_health}},
                                    config.grpc));
  ports = {inference.port, http->port(), admin.port};
  return absl::OkStatus();
}

void Server::Impl::LogStart() const {
  MS_LOG(INFO) << VersionLine();
  const Machine machine = ReadMachine();
  MS_LOG(INFO) << "machine: " << machine.cpu_name << ", cores=" << machine.cores
               << (machine.fractional_quota ? " (fractional quota)" : "")
               << " memory_mib=" << (machine.memory_bytes >> 20);
  MS_LOG(INFO) << "listening: inference=" << ports.inference << " http=" << ports.http
               << " admin=" << ports.admin << " tls=" << (config.tls.cert.empty() ? "off" : "on")
               << " tokens=" << (authorizer->open() ? "off" : "on")
               << " settings_digest=" << state.config_digest();
  for (const auto& [key, origin] : options.settings.origins) {
    MS_LOG(INFO) << "setting " << key << " from " << origin;
  }
  for (const std::string& warning : options.settings.warnings) MS_LOG(WARNING) << warning;
  if (config.security.allow_insecure) {
    MS_LOG(WARNING) << "security.allow_insecure is set: listeners may be open to the network "
                       "without TLS and credentials";
  }
  if (config.security.allow_plain_http) {
    MS_LOG(WARNING) << "security.allow_plain_http is set: metrics and status may be open to the "
                       "network";
  }
}

void Server::Impl::RequestStop() {
  if (loading.load()) {
    cancel_load.store(true);
    if (cancelled_at == absl::InfiniteFuture()) cancelled_at = absl::Now();
  }
  drain.Begin(clock->Now(), absl::Seconds(config.drain.timeout_s), /*exit=*/true);
}

void Server::Impl::OnSignal(int signal) {
  switch (signal) {
    case SIGTERM:
    case SIGINT:
      if (signalled) {
        MS_LOG(WARNING) << "second signal: exit at once";
        RemoveReadyFile();
        ExitNow(1);
      }
      signalled = true;
      MS_LOG(INFO) << (signal == SIGTERM ? "SIGTERM" : "SIGINT") << ": orderly end";
      RequestStop();
      break;
    case SIGHUP:
      MS_LOG(WARNING) << "SIGHUP: reloading is planned, not built yet; nothing was reread";
      break;
    default:
      // The page is made of lines; the log keeps one a line.
      const std::string page = RenderStatus(state, metrics, DrainWord(drain));
      for (size_t begin = 0; begin < page.size();) {
        const size_t end = std::min(page.find('\n', begin), page.size());
        if (end > begin) {
          MS_LOG(INFO) << "statusz: " << page.substr(begin, end - begin);
        }
        begin = end + 1;
      }
  }
}

void Server::Impl::Loop() {
  while (!closing.load()) {
    if (options.take_signals) {
      const std::optional<int> signal = WaitForSignal(kTick);
      if (signal.has_value()) OnSignal(*signal);
    } else {
      MutexLock lock(&loop_mutex);
      if (!closing.load()) loop_wake.WaitFor(&loop_mutex, absl::ToChronoNanoseconds(kTick));
    }
    const absl::Time now = clock->Now();
    drain.Tick(now);
    // An administrator's drain stops a load as well.
    if (drain.exiting()) cancel_load.store(true);
    admin_service->Tick(now);
    AutopilotRunner* const pilot = live_autopilot.load();
    if (pilot != nullptr && state.phase() == ServingPhase::kReady) pilot->Tick();
    UpdateHealth();
    if (options.take_signals && loading.load() && absl::Now() - cancelled_at > kLoadCancelWait) {
      MS_LOG(INFO) << "stopped while loading";
      ExitNow(0);
    }
  }
}

void Server::Impl::UpdateHealth() {
  const TrackedEngine* const live = live_engine.load();
  const EngineLoad load = live != nullptr ? live->GetLoad() : EngineLoad();
  const double age = load.step_age_s;
  MutexLock lock(&health_mutex);
  if (!load.device_lost.empty() && !device_lost.exchange(true)) {
    MS_LOG(ERROR) << "the device failed: " << load.device_lost << "; the server ends";
    drain.Begin(clock->Now(), absl::ZeroDuration(), /*exit=*/true);
  }
  const bool alive = age <= config.health.stall_s && !device_lost.load();
  const bool ready = alive && state.phase() == ServingPhase::kReady;
  if (alive != was_alive) {
    if (alive) {
      MS_LOG(INFO) << "liveness: serving; the engine finished a step";
    } else if (!device_lost.load()) {
      MS_LOG(ERROR) << "liveness: not serving; the engine has work and finished no step for " << age
                    << " s; limit is " << config.health.stall_s << " s";
    }
  }
  if (ready != was_ready) {
    MS_LOG(INFO) << "readiness: " << (ready ? "serving" : "not serving") << "; state is "
                 << ServingPhaseName(state.phase()) << (alive ? "" : ", engine cannot go on");
  }
  was_alive = alive;
  was_ready = ready;
  inference_health.Set(kLiveness, alive);
  for (const char* name : kReadinessNames) inference_health.Set(name, ready);
}

absl::Status Server::Impl::LoadAndServe() {
  const absl::Time begin = absl::Now();
  absl::Time opened_at = begin;
  double shown = 0;
  absl::Time shown_at = begin;
  LoadHooks hooks;
  hooks.clock = clock;
  hooks.observer = &observers;
  hooks.cancel = &cancel_load;
  hooks.opened = [&](const std::string& name) {
    opened_at = absl::Now();
    metrics.SetModelName(name);
    MS_LOG(INFO) << "loading model=" << name;
  };
  hooks.progress = [&](double fraction) {
    // Small models load in a blink: a line a second says enough, and the end.
    const absl::Time now = absl::Now();
    if (fraction <= shown || now - shown_at < absl::Seconds(1)) return;
    shown = fraction;
    shown_at = now;
    MS_LOG(INFO) << "loading: " << static_cast<int>(fraction * 100) << " %";
  };
  MS_ASSIGN_OR_RETURN(LoadedModel loaded, options.loader(config, hooks));
  if (cancel_load.load()) return absl::CancelledError("stopped while loading");
  const absl::Time end = absl::Now();
  metrics.SetModelName(loaded.name);
  metrics.SetStartupSeconds("open", absl::ToDoubleSeconds(opened_at - begin));
  metrics.SetStartupSeconds("load", absl::ToDoubleSeconds(end - opened_at));
  metrics.SetStartupSeconds("total", absl::ToDoubleSeconds(end - state.started_at()));
  chat_template = std::move(loaded.chat_template);
  engine = std::make_unique<TrackedEngine>(std::move(loaded.engine));
  metrics.AttachEngine(engine.get());
  const EngineInfo& info = engine->info();
  MS_ASSIGN_OR_RETURN(const AutopilotTarget target, AutopilotTargetOf(config, info.layers));
  MS_ASSIGN_OR_RETURN(selection, MakeLayerSelection(engine.get(), config, clock));
  StartMorphing(target);
  state.SetReady({engine.get(), chat_template.get(), loaded.name, std::move(loaded.generation),
                  morph.get(), autopilot.get()});
  live_engine.store(engine.get());
  live_autopilot.store(autopilot.get());
  loading.store(false);
  UpdateHealth();
  MS_LOG(INFO) << "ready model=" << loaded.name << " architecture=" << info.architecture
               << " weights=" << info.weight_dtype << " kv=" << info.kv_dtype
               << " context_tokens=" << info.context_tokens
               << " branches=" << (info.branch_kind.empty() ? "none" : info.branch_kind)
               << " plan_id=" << engine->plans().active()->id() << " device=\"" << info.device_name
               << "\" seconds=" << absl::StrFormat("%.2f", absl::ToDoubleSeconds(end - begin));
  return WriteReadyFile();
}

void Server::Impl::StartMorphing(const AutopilotTarget& target) {
  costs = std::make_unique<CostKeeper>(engine.get(), config.morph.cost_cache, VersionString());
  verifier = std::make_unique<LabVerifier>(engine.get());
  morph = std::make_unique<MorphController>(engine.get(), costs.get(), verifier.get(),
                                            selection.selector.get(), &watch_gaps, clock,
                                            MorphOptions());
  // All morphs, for as long as the controller lives.
  const auto heard =
      morph->Subscribe("", [this](const MorphEvent& event) { metrics.OnMorph(event); });
  MS_CHECK(heard.ok());
  AutopilotRunner::Options as_operators;
  as_operators.canary = {.prompts = config.morph.canary_prompts, .kl_max = config.morph.kl_max};
  as_operators.watch = absl::Seconds(config.morph.watch_s);
  as_operators.target_file = config.morph.autopilot.target_file;
  as_operators.on_decision = [this](const AutopilotState& now) { metrics.OnAutopilot(now); };
  autopilot = std::make_unique<AutopilotRunner>(engine.get(), costs.get(), morph.get(), &latencies,
                                                clock, std::move(as_operators), target);
}

absl::Status Server::Impl::WriteReadyFile() const {
  if (options.ready_file.empty()) return absl::OkStatus();
  // Renamed into place, so that whoever waits for the file never reads half of it.
  const std::string temporary = options.ready_file + ".part";
  std::ofstream file(temporary, std::ios::trunc);
  file << absl::StrFormat("{\"inference\": %d, \"http\": %d, \"admin\": %d, \"pid\": %d}\n",
                          ports.inference, ports.http, ports.admin, getpid());
  file.close();
  if (!file || std::rename(temporary.c_str(), options.ready_file.c_str()) != 0) {
    return absl::UnavailableError("the file of --ready_file cannot be written");
  }
  return absl::OkStatus();
}

void Server::Impl::RemoveReadyFile() const {
  if (!options.ready_file.empty()) std::remove(options.ready_file.c_str());
}

void Server::Impl::ShutDown(absl::Time end_at) {
  // Sends GOAWAY and waits for the calls; the loop ends what still runs at end_at.
  inference_health.EndWatches();
  inference.server->Shutdown(absl::ToChronoTime(end_at + Drain::kFlush));
  admin_health.EndWatches();
  admin_service->EndWatches();
  morph_service->EndStreams();
  admin.server->Shutdown(absl::ToChronoTime(absl::Now() + kAdminFlush));
  closing.store(true);
  {
    MutexLock lock(&loop_mutex);
    loop_wake.NotifyAll();
  }
  if (loop.joinable()) loop.join();
  state.SetStopped();
  http.reset();
  metrics.AttachEngine(nullptr);
  RemoveReadyFile();
}

absl::StatusOr<std::unique_ptr<Server>> Server::Create(ServerOptions options) {
  MS_CHECK(options.clock != nullptr);
  auto impl = std::make_unique<Impl>(std::move(options));
  MS_RETURN_IF_ERROR(impl->Listen());
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  if (!impl_->closing.load()) impl_->ShutDown(absl::Now() - Drain::kFlush);
}

int Server::Run() {
  Impl& impl = *impl_;
  impl.LogStart();
  impl.loop = std::thread([&impl] { impl.Loop(); });
  const absl::Status loaded = impl.LoadAndServe();
  if (!loaded.ok()) {
    impl.loading.store(false);
    const bool stopped = impl.cancel_load.load();
    if (stopped) {
      MS_LOG(INFO) << "stopped while loading";
      // Nothing was served, so nothing needs an orderly end.
      if (impl.options.take_signals) ExitNow(0);
    } else {
      MS_LOG(ERROR) << "cannot serve: " << loaded.message();
    }
    impl.ShutDown(absl::Now() - Drain::kFlush);
    return stopped ? 0 : 1;
  }
  const absl::Time end_at = impl.drain.WaitUntilFinishing();
  impl.ShutDown(end_at);
  const bool lost = impl.device_lost.load();
  MS_LOG(INFO) << (lost ? "stopped: the device failed" : "stopped");
  return lost ? 1 : 0;
}

void Server::Stop() {
  if (impl_->loading.load()) impl_->cancel_load.store(true);
  impl_->drain.Begin(impl_->clock->Now(), absl::Seconds(impl_->config.drain.timeout_s),
                     /*exit=*/true);
}

const Server::Ports& Server::ports() const { return impl_->ports; }

}  // namespace morphserve
