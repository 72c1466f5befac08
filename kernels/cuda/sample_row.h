// What the host packs for the sampling kernel and what comes back; host and device read the same.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/common/stream.h"

namespace morphserve::kernels::cuda {

// A list of a row: `count` entries from `begin` on, counted in 8-byte units from the lists' start.
struct SampleList {
  int64_t begin = 0;
  int32_t count = 0;
};

struct SampleHeader {
  float temperature, top_p, min_p, repetition, frequency, presence;
  int32_t top_k;
  int32_t score_token;
  int32_t logprobs;
  float uniform;
  SampleList seen;     // {id, output count}
  SampleList bias;     // {id, f32 bits}
  SampleList banned;   // ids, two a unit
  SampleList allowed;  // ids, two a unit
  int32_t has_allowed;
};

struct SampleOut {
  int32_t token;
  int32_t finite;
  float logprob;
  int32_t rank;
  int32_t top_count;
  int32_t padding;
};

struct SampleCall {
  const float* logits;
  int64_t stride;
  int32_t vocab;
  int32_t pieces;
  const SampleHeader* headers;
  const int32_t* lists;  // In 8-byte units: two words each.
  SampleOut* out;
  int32_t top_max;  // Places of a row in the following.
  int32_t* top_ids;
  float* top_logprobs;
  int32_t* tokens;
};

absl::Status LaunchSample(const SampleCall& call, int32_t rows, Stream stream);

}  // namespace morphserve::kernels::cuda
