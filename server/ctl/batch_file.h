// The JSON Lines files of `morphctl generate`: requests in, results out. One request a line:
//   {"id": "a", "messages": [{"role": "user", "content": "..."}], "sampling": {"temperature": 0,
//   "max_tokens": 64}}
//   {"id": "b", "prompt": "..."}     {"id": "c", "token_ids": [1, 2, 3]}
// "sampling" takes the fields of Sampling and Stopping by their proto names; "logprobs" is taken
// beside it. An unknown key is an error: nothing is ignored.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/ctl/stream_call.h"

namespace morphserve::ctl {

struct BatchRequest {
  std::string id;
  bool is_chat = false;
  v1::ChatRequest chat;          // When is_chat,
  v1::GenerateRequest generate;  // else this.
};

// INVALID_ARGUMENT names the line number and the key. Ids must be unique; a line without one gets
// its number.
absl::StatusOr<std::vector<BatchRequest>> ReadBatch(const std::string& path,
                                                    const v1::GenerationOptions& defaults,
                                                    const std::string& model);

// Ids of the results without an error that are already in `path`; a last line cut short by a crash
// is cut off the file. An absent file has none.
absl::StatusOr<std::set<std::string>> ReadFinishedIds(const std::string& path);

// One result as a line, without the newline.
std::string ResultLine(const std::string& id, const StreamResult& result);

}  // namespace morphserve::ctl
