// DeviceSampler turns rows of logits into tokens on the device, with the semantics of
// kernels/sample.h. Lists and settings of a batch go up in one copy, tokens and log-probabilities
// come down in another, and nothing waits: Enqueue launches, the caller synchronises when it likes,
// and Results reads. Two batches may be under way at a time. Thread rule: one thread.
//
// Of the arguments of a row, `logits`, `vocab` and `piece_count` are not read: logits are on the
// device and stay as they are, the others are those of Create. Against the CPU's: equal order,
// equal f32 weights; sums are f64 in a fixed order of their own, so a token differs only where a
// uniform falls within rounding of an edge of its interval.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/common/stream.h"
#include "kernels/cuda/device.h"
#include "kernels/sample.h"

namespace morphserve::kernels::cuda {

struct SampleRow {
  SampleArgs args;
  int32_t score_token = -1;  // Not -1: this token is scored, nothing is drawn.
};

class DeviceSampler {
 public:
  struct Options {
    int32_t rows_max = 0;
    int32_t vocab = 0;
    int32_t piece_count = 0;
  };
  static constexpr int32_t kVocabMax = 400000;
  static constexpr int32_t kTopMax = 1024;  // Most likely tokens listed for a row.

  // INVALID_ARGUMENT for a vocabulary that is empty or larger than kVocabMax.
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Create(const Options& options);

  // Launches the sampling of rows.size() rows: row i is logits + i * stride. The row spans are read
  // before it returns. More list entries than ever before make it grow its memory, which waits.
  // INVALID_ARGUMENT for too many rows or log-probabilities, before anything is launched.
  absl::Status Enqueue(std::span<const SampleRow> rows, const float* logits, int64_t stride,
                       Stream stream);

  // The tokens of the batch enqueued last, for kernels of the same stream; -1 where not finite.
  const int32_t* tokens() const;

  // The results of the oldest batch not yet read, whose stream the caller has synchronised. At most
  // two batches may be unread when Enqueue is called: FAILED_PRECONDITION there.
  void Results(std::vector<SampleResult>* results);

 private:
  // One batch's memory: what goes up, what comes down.
  struct Batch {
    PinnedMemory host_in, host_out;
    DeviceMemory in, out;
    int32_t rows = 0;
    int32_t top_max = 0;  // Places for the most likely tokens of a row.
  };
  explicit DeviceSampler(const Options& options) : options_(options) {}
  absl::Status Reserve(int64_t in_bytes, int64_t out_bytes, Batch* batch);

  const Options options_;
  DeviceMemory tokens_;
  std::array<Batch, 2> batches_;
  int64_t enqueued_ = 0;
  int64_t read_ = 0;
};

// tokens[r] = sampled[follows[r]] for every row; rows whose `follows` is negative stay as they are.
// All on the device.
absl::Status FollowTokens(const int32_t* sampled, const int32_t* follows, int32_t rows,
                          int32_t* tokens, Stream stream);

}  // namespace morphserve::kernels::cuda
