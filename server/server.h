// Server is the running process without its command line: listeners, services, the model and the
// way out. Listeners are up before the model is loaded, so that probes and clients get an answer
// meanwhile. Thread rule: Create, Run from one thread. Threads of its own: one that takes signals,
// ticks the drain and watches the engine.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/base/clock.h"
#include "server/model_loader.h"
#include "server/settings_load.h"

namespace morphserve {

struct ServerOptions {
  LoadedSettings settings;  // Validated.
  std::string
      ready_file;  // JSON of the bound ports, written once ready, removed at the end. May be empty.
  ModelLoader loader = &LoadModel;
  const Clock* clock = nullptr;  // Outlives the server.
  bool take_signals = true;      // BlockSignals() was called; false in tests.
};

class Server {
 public:
  struct Ports {
    int inference = 0;
    int http = 0;
    int admin = 0;
  };

  // Reads credentials and listens; the answer to every request is UNAVAILABLE until Run has loaded
  // the model. INVALID_ARGUMENT, NOT_FOUND or UNAVAILABLE name the setting at fault.
  static absl::StatusOr<std::unique_ptr<Server>> Create(ServerOptions options);
  ~Server();

  // Loads, serves, drains. The exit code: 0 after an orderly end, also one that came while loading;
  // 1 when the model could not be loaded, or when its device failed.
  int Run();

  // Asks for an orderly end, as SIGTERM does. Any thread.
  void Stop();

  const Ports& ports() const;

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace morphserve
