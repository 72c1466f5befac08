// morphctl report: what a server tells of its layer plans, as one HTML page with plots.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "morphserve/v1/models.grpc.pb.h"
#include "morphserve/v1/morph.grpc.pb.h"
#include "server/ctl/commands.h"
#include "server/ctl/report_page.h"

namespace morphserve::ctl {
namespace {

struct ReportFlags {
  std::string out = "report.html";
  std::vector<uint32_t> contexts;
  std::vector<uint32_t> batches = {1, 4};
};

constexpr size_t kLinesMax = 6;  // As many as a reader can tell apart in one chart.

constexpr char kHelp[] = R"(Examples:
  morphctl report                                   report.html: open it in a browser
  morphctl report --out - | less                    to standard output
  morphctl report --context 2048,8192 --batch 1,8   costs at these loads

The page needs nothing from elsewhere: it can be mailed, archived and printed.)";

// The calls of one report, in the order of the page.
class Collector {
 public:
  Collector(Context* context, const Connection* connection)
      : context_(context),
        connection_(connection),
        models_(v1::Models::NewStub(connection->inference())),
        morph_(v1::Morph::NewStub(connection->admin())) {}

  grpc::Status Collect(ReportData* data) {
    using Models = v1::Models::Stub;
    using Morph = v1::Morph::Stub;
    grpc::Status status =
        Call(models_.get(), &Models::GetServerInfo, v1::GetServerInfoRequest(), &data->server);
    if (status.ok()) {
      status = Call(models_.get(), &Models::GetModelInfo, Named<v1::GetModelInfoRequest>(),
                    &data->model);
    }
    if (status.ok()) {
      status = Call(morph_.get(), &Morph::ListPlans, Named<v1::ListPlansRequest>(), &data->plans);
    }
    if (status.ok()) {
      status = Call(morph_.get(), &Morph::GetActivePlan, Named<v1::GetActivePlanRequest>(),
                    &data->active);
    }
    if (status.ok()) status = CollectScores(data);
    if (status.ok()) status = CollectCosts(data);
    return status;
  }

 private:
  template <typename Message>
  Message Named() const {
    Message message;
    message.set_model(context_->model);
    return message;
  }

  template <typename Stub, typename Method, typename Request, typename Response>
  grpc::Status Call(Stub* stub, Method method, const Request& request, Response* response) {
    grpc::ClientContext call;
    connection_->Prepare(&call);
    const Interrupt::Scope scope(context_->interrupt, &call);
    return (stub->*method)(&call, request, response);
  }

  // A server that has none of it says why; the page repeats that. Other failures are the report's.
  static bool IsAbsence(const grpc::Status& status) {
    return status.error_code() == grpc::StatusCode::FAILED_PRECONDITION ||
           status.error_code() == grpc::StatusCode::UNIMPLEMENTED;
  }

  grpc::Status CollectScores(ReportData* data) {
    auto request = Named<v1::GetLayerScoresRequest>();
    v1::GetLayerScoresResponse scores;
    const grpc::Status status =
        Call(morph_.get(), &v1::Morph::Stub::GetLayerScores, request, &scores);
    if (!status.ok()) {
      if (!IsAbsence(status)) return status;
      data->scores_missing = "Not known: " + Explain(status) + ".";
      return grpc::Status::OK;
    }
    for (const v1::Ranking& ranking : scores.rankings()) {
      v1::GetLayerScoresResponse own;
      if (ranking.order().empty()) {  // Its sets come with its plans only.
        request.set_method(ranking.method());
        const grpc::Status asked =
            Call(morph_.get(), &v1::Morph::Stub::GetLayerScores, request, &own);
        if (!asked.ok()) return asked;
      }
      data->rankings.push_back(MakeRankedLayers(ranking, data->model.layers(),
                                                {own.by_budget().begin(), own.by_budget().end()}));
    }
    SortRankings(&data->rankings);
    data->scores = std::move(scores);
    return grpc::Status::OK;
  }

  grpc::Status CollectCosts(ReportData* data) {
    v1::GetCostsResponse costs;
    const grpc::Status status =
        Call(morph_.get(), &v1::Morph::Stub::GetCosts, Named<v1::GetCostsRequest>(), &costs);
    if (status.ok()) {
      data->costs = std::move(costs);
    } else if (IsAbsence(status)) {
      data->costs_missing = "Not known: " + Explain(status) + ".";
    } else {
      return status;
    }
    return grpc::Status::OK;
  }

  Context* const context_;
  const Connection* const connection_;
  const std::unique_ptr<v1::Models::Stub> models_;
  const std::unique_ptr<v1::Morph::Stub> morph_;
};

std::vector<uint32_t> RisingOnce(std::vector<uint32_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

// An eighth, half and all of what the model takes, unless the caller says otherwise.
std::vector<uint32_t> DefaultContexts(uint32_t most) {
  return RisingOnce({std::max(most / 8, 1u), std::max(most / 2, 1u), std::max(most, 1u)});
}

// What was written is whole or an error: a full disk shows only when the file is closed.
bool Write(const std::string& path, const std::string& page) {
  if (path == "-") {
    return std::fwrite(page.data(), 1, page.size(), stdout) == page.size() &&
           std::fflush(stdout) == 0;
  }
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return false;
  const bool written = std::fwrite(page.data(), 1, page.size(), file) == page.size();
  const int error = errno;
  const bool closed = std::fclose(file) == 0;
  if (!written) errno = error;
  return written && closed;
}

int RunReport(Context* context, const ReportFlags& flags) {
  if (context->json) {
    return Complain("report writes HTML; --json is for plans, scores, costs and models",
                    kExitUsage);
  }
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  ReportData data;
  data.made_at = absl::Now();
  const grpc::Status status = Collector(context, connection->get()).Collect(&data);
  if (!status.ok()) {
    return Complain(Explain(status),
                    context->interrupt->requested() ? kExitInterrupted : kExitFailed);
  }
  const uint32_t most = data.model.context_tokens_max();
  data.contexts = flags.contexts.empty() ? DefaultContexts(most) : RisingOnce(flags.contexts);
  data.batches = RisingOnce(flags.batches);
  if (data.contexts.back() > most) {
    return Complain(absl::StrFormat("--context is %d; the model's limit is %d tokens",
                                    data.contexts.back(), most),
                    kExitUsage);
  }
  if (!Write(flags.out, RenderReport(data))) {
    return Complain(absl::StrFormat("cannot write %s: %s", flags.out, std::strerror(errno)),
                    kExitFailed);
  }
  if (flags.out != "-") std::printf("wrote %s\n", flags.out.c_str());
  return kExitOk;
}

}  // namespace

void RegisterReport(CLI::App* app, Context* context) {
  auto flags = std::make_shared<ReportFlags>();
  CLI::App* report = app->add_subcommand("report", "layers, quality and costs as an HTML page");
  report->add_option("--out", flags->out, "file to write; -: standard output")
      ->capture_default_str();
  report
      ->add_option("--context", flags->contexts,
                   "contexts at which costs are shown, in tokens; default: 1/8, 1/2 and all of the "
                   "model's")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 30))
      ->expected(1, static_cast<int>(kLinesMax));
  report->add_option("--batch", flags->batches, "sequences in a step at which costs are shown")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->expected(1, static_cast<int>(kLinesMax))
      ->capture_default_str();
  report->footer(kHelp);
  report->callback([=] { context->run = [=] { return RunReport(context, *flags); }; });
}

}  // namespace morphserve::ctl
