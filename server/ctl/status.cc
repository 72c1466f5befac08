// morphctl status and models: what a server is and does.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "morphserve/v1/admin.grpc.pb.h"
#include "morphserve/v1/models.grpc.pb.h"
#include "server/ctl/commands.h"
#include "server/ctl/message_json.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

std::string MiB(uint64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

using Rows = std::vector<std::vector<std::string>>;

void PrintRows(const Rows& rows) {
  size_t width = 0;
  for (const auto& row : rows) width = std::max(width, row[0].size());
  for (const auto& row : rows) {
    std::printf("%-*s  %s\n", static_cast<int>(width), row[0].c_str(), row[1].c_str());
  }
}

std::string InUse(const v1::Pool& pool) {
  return absl::StrFormat("%d of %d in use, %d cached", pool.running(), pool.total(), pool.cached());
}

Rows LoadRows(const v1::Load& load) {
  Rows rows = {{"requests", absl::StrFormat("%d running, %d waiting (%d preempted)", load.running(),
                                            load.waiting(), load.preempted())},
               {"speed", absl::StrFormat("%.1f tokens/s, step p50 %.1f ms",
                                         load.tokens_per_second(), load.step_ms_p50())},
               {"pages", InUse(load.pages())}};
  if (load.slots().total() > 0) rows.push_back({"slots", InUse(load.slots())});
  const v1::PlanRef& active = load.pointers().active();
  rows.push_back({"active plan", absl::StrFormat("%s, %d of %d layers full", active.plan_id(),
                                                 active.full_layers(), active.layers())});
  return rows;
}

int RunStatus(Context* context) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  const auto models = v1::Models::NewStub((*connection)->inference());
  v1::ServerInfo info;
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  grpc::Status status = models->GetServerInfo(&call, {}, &info);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);

  // The load comes from the admin listener, which may be closed to this caller.
  v1::Load load;
  grpc::ClientContext admin_call;
  (*connection)->Prepare(&admin_call);
  const grpc::Status load_status =
      v1::Admin::NewStub((*connection)->admin())->GetLoad(&admin_call, {}, &load);
  if (context->json) {
    std::printf("{\"server\":%s,\"load\":%s}\n", ToJson(info).c_str(),
                load_status.ok() ? ToJson(load).c_str() : "null");
    return kExitOk;
  }
  Rows rows = {{"server", absl::StrFormat("morphserve %s (%s), %s", info.version(), info.commit(),
                                          info.state())},
               {"device", info.device_name()},
               {"cache arena", MiB(info.arena_bytes())}};
  if (load_status.ok()) {
    const Rows more = LoadRows(load);
    rows.insert(rows.end(), more.begin(), more.end());
  } else {
    rows.push_back({"load", absl::StrFormat("not shown: %s (%s)", load_status.error_message(),
                                            context->connection.admin_addr)});
  }
  PrintRows(rows);
  return kExitOk;
}

int RunModels(Context* context) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  const auto stub = v1::Models::NewStub((*connection)->inference());
  v1::GetModelInfoRequest request;
  request.set_model(context->model);
  v1::ModelInfo info;
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const grpc::Status status = stub->GetModelInfo(&call, request, &info);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (context->json) {
    std::printf("%s\n", ToJson(info).c_str());
    return kExitOk;
  }
  std::string capabilities;
  for (const std::string& name : info.capabilities()) {
    capabilities += (capabilities.empty() ? "" : ", ") + name;
  }
  PrintRows(
      {{"name", info.name()},
       {"family", info.family()},
       {"parameters", absl::StrFormat("%.1f M", static_cast<double>(info.parameters()) / 1e6)},
       {"layers", absl::StrFormat("%d", info.layers())},
       {"vocabulary", absl::StrFormat("%d", info.vocab_size())},
       {"context", absl::StrFormat("%d tokens", info.context_tokens_max())},
       {"weights", info.weight_dtype()},
       {"cache", info.kv_dtype()},
       {"branches", info.morphable()
                        ? absl::StrFormat("%s, %.1f M parameters", info.branch_kind(),
                                          static_cast<double>(info.branch_parameters()) / 1e6)
                        : "none"},
       {"chat template", info.chat_template() ? "yes" : "no"},
       {"capabilities", capabilities},
       {"active plan",
        absl::StrFormat("%s, %d of %d layers full", info.pointers().active().plan_id(),
                        info.pointers().active().full_layers(), info.pointers().active().layers())},
       {"plans", absl::StrFormat("%d known; morphctl plans lists them", info.plans_size())}});
  return kExitOk;
}

}  // namespace

int Complain(const std::string& text, int code) {
  std::fprintf(stderr, "morphctl: %s\n", text.c_str());
  return code;
}

void RegisterStatus(CLI::App* app, Context* context) {
  app->add_subcommand("status", "what the server is and does")->callback([=] {
    context->run = [=] { return RunStatus(context); };
  });
  app->add_subcommand("models", "the model that is served")->callback([=] {
    context->run = [=] { return RunModels(context); };
  });
}

}  // namespace morphserve::ctl
