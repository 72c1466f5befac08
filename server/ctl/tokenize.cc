// morphctl tokenize and detokenize.
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "morphserve/v1/inference.grpc.pb.h"
#include "server/ctl/commands.h"
#include "server/ctl/terminal.h"

namespace morphserve::ctl {
namespace {

struct TokenizeFlags {
  std::string text;
  bool special = false;
  std::vector<uint32_t> ids;
};

// Bytes of a token for a person: escapes for what is not printable ASCII.
std::string ShowPiece(const std::string& piece) {
  std::string out = "'";
  for (const char c : piece) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7F) {
      out += c;
    } else {
      out += absl::StrFormat("\\x%02x", byte);
    }
  }
  return out + "'";
}

int RunTokenize(Context* context, const TokenizeFlags& flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  v1::TokenizeRequest request;
  request.set_model(context->model);
  request.set_text(flags.text == "-" ? std::string(std::istreambuf_iterator<char>(std::cin), {})
                                     : flags.text);
  request.set_add_special_tokens(flags.special);
  request.set_pieces(true);
  v1::TokenizeResponse response;
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const grpc::Status status =
      v1::Inference::NewStub((*connection)->inference())->Tokenize(&call, request, &response);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (context->json) {
    nlohmann::json out = {{"token_ids", nlohmann::json::array()}};
    for (const uint32_t id : response.token_ids()) out["token_ids"].push_back(id);
    std::printf("%s\n", out.dump().c_str());
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows = {{"id", "bytes"}};
  for (int i = 0; i < response.token_ids_size(); ++i) {
    rows.push_back({absl::StrFormat("%d", response.token_ids(i)), ShowPiece(response.pieces(i))});
  }
  std::fputs(RenderTable(rows).c_str(), stdout);
  std::fprintf(stderr, "%d tokens\n", response.token_ids_size());
  return kExitOk;
}

int RunDetokenize(Context* context, const TokenizeFlags& flags) {
  auto connection = Connection::Open(context->connection);
  if (!connection.ok()) return Complain(std::string(connection.status().message()), kExitUsage);
  v1::DetokenizeRequest request;
  request.set_model(context->model);
  for (const uint32_t id : flags.ids) request.add_token_ids(id);
  v1::DetokenizeResponse response;
  grpc::ClientContext call;
  (*connection)->Prepare(&call);
  const grpc::Status status =
      v1::Inference::NewStub((*connection)->inference())->Detokenize(&call, request, &response);
  if (!status.ok()) return Complain(Explain(status), kExitFailed);
  if (context->json) {
    std::printf("%s\n", nlohmann::json{{"text", response.text()}}.dump().c_str());
  } else {
    std::printf("%s\n", response.text().c_str());
  }
  return kExitOk;
}

}  // namespace

void RegisterTokenize(CLI::App* app, Context* context) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* tokenize = app->add_subcommand("tokenize", "the tokens of a text");
  tokenize->add_option("text", flags->text, "the text, or - for standard input")->required();
  tokenize->add_flag("--special", flags->special, "add what the model adds to a prompt");
  tokenize->callback([=] { context->run = [=] { return RunTokenize(context, *flags); }; });
  CLI::App* detokenize = app->add_subcommand("detokenize", "the text of token ids");
  detokenize->add_option("ids", flags->ids, "token ids")->required();
  detokenize->callback([=] { context->run = [=] { return RunDetokenize(context, *flags); }; });
}

}  // namespace morphserve::ctl
