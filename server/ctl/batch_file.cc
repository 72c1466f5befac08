#include "server/ctl/batch_file.h"

#include <google/protobuf/util/json_util.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"

namespace morphserve::ctl {
namespace {

using nlohmann::json;

absl::Status LineError(int64_t line, const std::string& text) {
  return absl::InvalidArgumentError(absl::StrFormat("line %d: %s", line, text));
}

// Proto's own JSON reader checks names, types and ranges.
absl::Status FromJson(const json& value, google::protobuf::Message* message) {
  const auto status = google::protobuf::util::JsonStringToMessage(value.dump(), message);
  if (status.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(std::string(status.message()));
}

absl::Status TakeSampling(const json& value, v1::GenerationOptions* options) {
  if (!value.is_object()) return absl::InvalidArgumentError("sampling must be an object");
  json sampling = json::object();
  json stopping = json::object();
  for (const auto& [key, entry] : value.items()) {
    const bool stops = v1::Stopping::descriptor()->FindFieldByName(key) != nullptr;
    (stops ? stopping : sampling)[key] = entry;
  }
  v1::Sampling own_sampling;
  v1::Stopping own_stopping;
  absl::Status status = FromJson(sampling, &own_sampling);
  if (!status.ok()) return status;
  status = FromJson(stopping, &own_stopping);
  if (!status.ok()) return status;
  options->mutable_sampling()->MergeFrom(own_sampling);
  options->mutable_stopping()->MergeFrom(own_stopping);
  return absl::OkStatus();
}

absl::Status TakeMessages(const json& value, v1::ChatRequest* chat) {
  if (!value.is_array()) return absl::InvalidArgumentError("messages must be an array");
  for (const json& entry : value) {
    const absl::Status status = FromJson(entry, chat->add_messages());
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status TakeLine(const json& line, v1::GenerationOptions options, const std::string& model,
                      BatchRequest* request) {
  if (!line.is_object()) return absl::InvalidArgumentError("must be a JSON object");
  int inputs = 0;
  for (const auto& [key, value] : line.items()) {
    absl::Status status;
    if (key == "id") {
      request->id = value.is_string() ? value.get<std::string>() : value.dump();
    } else if (key == "messages") {
      ++inputs;
      request->is_chat = true;
      status = TakeMessages(value, &request->chat);
    } else if (key == "prompt") {
      ++inputs;
      if (!value.is_string()) return absl::InvalidArgumentError("prompt must be a string");
      request->generate.set_text(value.get<std::string>());
    } else if (key == "token_ids") {
      ++inputs;
      status = FromJson(json{{"ids", value}}, request->generate.mutable_tokens());
    } else if (key == "sampling") {
      status = TakeSampling(value, &options);
    } else if (key == "logprobs") {
      if (!value.is_number_unsigned())
        return absl::InvalidArgumentError("logprobs must be a count");
      options.mutable_output()->set_logprobs(value.get<uint32_t>());
    } else {
      return absl::InvalidArgumentError(absl::StrFormat("unknown key '%s'", key));
    }
    if (!status.ok()) return status;
  }
  if (inputs != 1) {
    return absl::InvalidArgumentError("needs exactly one of messages, prompt, token_ids");
  }
  options.mutable_output()->set_token_ids(true);
  request->chat.set_model(model);
  request->generate.set_model(model);
  *request->chat.mutable_options() = options;
  *request->generate.mutable_options() = options;
  return absl::OkStatus();
}

const char* ReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_EOS: return "eos";
    case v1::FINISH_REASON_STOP: return "stop";
    case v1::FINISH_REASON_LENGTH: return "length";
    case v1::FINISH_REASON_TOOL_CALLS: return "tool_calls";
    default: return "";
  }
}

json Choice(const StreamResult& result, const v1::Finished& finished) {
  const size_t index = finished.index();
  json out;
  out["text"] = index < result.texts.size() ? result.texts[index] : "";
  out["token_ids"] =
      index < result.token_ids.size() ? json(result.token_ids[index]) : json::array();
  out["finish_reason"] = ReasonName(finished.reason());
  return out;
}

}  // namespace

absl::StatusOr<std::vector<BatchRequest>> ReadBatch(const std::string& path,
                                                    const v1::GenerationOptions& defaults,
                                                    const std::string& model) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrFormat("cannot read '%s'", path));
  std::vector<BatchRequest> requests;
  std::set<std::string> ids;
  std::string text;
  for (int64_t number = 1; std::getline(file, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (line.is_discarded()) return LineError(number, "is not JSON");
    BatchRequest request;
    request.id = std::to_string(number);
    const absl::Status status = TakeLine(line, defaults, model, &request);
    if (!status.ok()) return LineError(number, std::string(status.message()));
    if (!ids.insert(request.id).second) {
      return LineError(number, absl::StrFormat("id '%s' was used before", request.id));
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

absl::StatusOr<std::set<std::string>> ReadFinishedIds(const std::string& path) {
  std::set<std::string> ids;
  std::ifstream file(path, std::ios::binary);
  if (!file) return ids;
  std::string text;
  int64_t whole = 0;  // Bytes up to the end of the last complete line.
  int64_t number = 0;
  while (std::getline(file, text)) {
    ++number;
    if (file.eof()) break;  // No newline: cut short.
    whole += static_cast<int64_t>(text.size()) + 1;
    const json line = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!line.is_object() || !line.contains("id") || !line["id"].is_string()) {
      return LineError(number, absl::StrFormat("'%s' holds something other than results", path));
    }
    if (!line.contains("error")) ids.insert(line["id"].get<std::string>());
  }
  file.close();
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (!error && static_cast<int64_t>(size) > whole) {
    std::filesystem::resize_file(path, static_cast<uintmax_t>(whole), error);
  }
  if (error) return absl::UnknownError(absl::StrFormat("'%s': %s", path, error.message()));
  return ids;
}

std::string ResultLine(const std::string& id, const StreamResult& result) {
  nlohmann::ordered_json out;
  out["id"] = id;
  if (!result.status.ok()) {
    out["error"] = {{"code", static_cast<int>(result.status.error_code())},
                    {"reason", ReasonOf(result.status)},
                    {"message", result.status.error_message()}};
    return out.dump();
  }
  if (result.finished.size() == 1) {
    const json choice = Choice(result, result.finished[0]);
    for (const char* key : {"text", "token_ids", "finish_reason"}) out[key] = choice[key];
  } else {
    for (const v1::Finished& finished : result.finished) {
      json choice = Choice(result, finished);
      choice["index"] = finished.index();
      out["choices"].push_back(nlohmann::ordered_json(choice));
    }
  }
  const v1::Usage& usage = result.done.usage();
  out["usage"] = {{"prompt_tokens", usage.prompt_tokens()},
                  {"cached_tokens", usage.cached_tokens()},
                  {"completion_tokens", usage.completion_tokens()}};
  const v1::Timings& timings = result.done.timings();
  out["timings"] = {{"queue_ms", timings.queue_ms()},
                    {"ttft_ms", timings.ttft_ms()},
                    {"total_ms", timings.total_ms()}};
  out["seed"] = result.started.seed();
  out["plan"] = result.started.plan().plan_id();
  return out.dump();
}

}  // namespace morphserve::ctl
