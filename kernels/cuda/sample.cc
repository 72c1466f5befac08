#include "kernels/cuda/sample.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/cuda/sample_row.h"

namespace morphserve::kernels::cuda {
namespace {

int64_t RoundUp(int64_t bytes) { return (bytes + 255) / 256 * 256; }

int64_t Units(size_t count, size_t entry_bytes) {
  return static_cast<int64_t>((count * entry_bytes + 7) / 8);
}

bool Penalised(const SampleArgs& args) {
  return args.repetition_penalty != 1 || args.frequency_penalty != 0 || args.presence_penalty != 0;
}

// Writes lists one after the other.
class ListWriter {
 public:
  explicit ListWriter(std::byte* to) : to_(to) {}

  template <class T>
  SampleList Put(std::span<const T> list) {
    const SampleList place = {.begin = used_, .count = static_cast<int32_t>(list.size())};
    if (!list.empty()) std::memcpy(to_ + 8 * used_, list.data(), list.size_bytes());
    used_ += Units(list.size(), sizeof(T));
    return place;
  }

 private:
  std::byte* const to_;
  int64_t used_ = 0;
};

int64_t ListUnits(const SampleRow& row) {
  if (row.score_token >= 0) return 0;
  const SampleArgs& a = row.args;
  return (Penalised(a) ? Units(a.seen.size(), sizeof(TokenCount)) : 0) +
         Units(a.logit_bias.size(), 8) + Units(a.banned.size(), 4) + Units(a.allowed.size(), 4);
}

SampleHeader HeaderOf(const SampleRow& row, ListWriter* lists) {
  static_assert(sizeof(TokenCount) == 8 && sizeof(std::pair<int32_t, float>) == 8,
                "entries are pairs of words");
  const SampleArgs& a = row.args;
  SampleHeader header = {.temperature = a.temperature,
                         .top_p = a.top_p,
                         .min_p = a.min_p,
                         .repetition = a.repetition_penalty,
                         .frequency = a.frequency_penalty,
                         .presence = a.presence_penalty,
                         .top_k = a.top_k,
                         .score_token = row.score_token,
                         .logprobs = a.logprobs,
                         .uniform = PhiloxUniform(a.seed, a.position, a.choice),
                         .seen = {},
                         .bias = {},
                         .banned = {},
                         .allowed = {},
                         .has_allowed = !a.allowed.empty()};
  if (row.score_token >= 0) return header;
  if (Penalised(a)) header.seen = lists->Put(a.seen);
  header.bias = lists->Put(a.logit_bias);
  header.banned = lists->Put(a.banned);
  header.allowed = lists->Put(a.allowed);
  return header;
}

// Where the parts of a batch's results lie.
struct OutLayout {
  OutLayout(int64_t rows, int32_t top_max)
      : ids(RoundUp(rows * static_cast<int64_t>(sizeof(SampleOut)))),
        logprobs(ids + rows * top_max * 4),
        bytes(logprobs + rows * top_max * 4) {}
  int64_t ids;
  int64_t logprobs;
  int64_t bytes;
};

int32_t TopMax(std::span<const SampleRow> rows) {
  int32_t most = 0;
  for (const SampleRow& row : rows) most = std::max(most, row.args.logprobs);
  return most;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceSampler>> DeviceSampler::Create(const Options& options) {
  if (options.rows_max < 1 || options.vocab < 1 || options.vocab > kVocabMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("sampling of %d rows of %d logits; a row has at most %d", options.rows_max,
                        options.vocab, kVocabMax));
  }
  Options known = options;
  if (known.piece_count <= 0 || known.piece_count > known.vocab) known.piece_count = known.vocab;
  std::unique_ptr<DeviceSampler> sampler(new DeviceSampler(known));
  auto tokens = DeviceMemory::Allocate(int64_t{options.rows_max} * 4);
  if (!tokens.ok()) return tokens.status();
  sampler->tokens_ = std::move(*tokens);
  // Room for what rows without long lists need.
  const int64_t in = int64_t{options.rows_max} * (static_cast<int64_t>(sizeof(SampleHeader)) + 512);
  for (Batch& batch : sampler->batches_) {
    absl::Status status = sampler->Reserve(in, OutLayout(options.rows_max, 32).bytes, &batch);
    if (!status.ok()) return status;
  }
  return sampler;
}

absl::Status DeviceSampler::Reserve(int64_t in_bytes, int64_t out_bytes, Batch* batch) {
  const auto grow = [](int64_t bytes, PinnedMemory* host, DeviceMemory* device) -> absl::Status {
    if (bytes <= device->bytes()) return absl::OkStatus();
    const int64_t room = RoundUp(std::max(bytes, 2 * device->bytes()));
    auto on_host = PinnedMemory::Allocate(room);
    if (!on_host.ok()) return on_host.status();
    auto on_device = DeviceMemory::Allocate(room);
    if (!on_device.ok()) return on_device.status();
    *host = std::move(*on_host);
    *device = std::move(*on_device);
    return absl::OkStatus();
  };
  absl::Status status = grow(in_bytes, &batch->host_in, &batch->in);
  if (status.ok()) status = grow(out_bytes, &batch->host_out, &batch->out);
  return status;
}

absl::Status DeviceSampler::Enqueue(std::span<const SampleRow> rows, const float* logits,
                                    int64_t stride, Stream stream) {
  const int32_t top_max = TopMax(rows);
  if (rows.size() > static_cast<size_t>(options_.rows_max) || top_max > kTopMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d rows with %d log-probabilities; at most %d with %d", rows.size(),
                        top_max, options_.rows_max, kTopMax));
  }
  if (enqueued_ - read_ >= 2) {
    return absl::FailedPreconditionError("two batches of samples are unread");
  }
  Batch& batch = batches_[static_cast<size_t>(enqueued_ % 2)];
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t header_bytes = RoundUp(count * static_cast<int64_t>(sizeof(SampleHeader)));
  int64_t units = 0;
  for (const SampleRow& row : rows) units += ListUnits(row);
  const OutLayout layout(count, top_max);
  const int64_t in_bytes = header_bytes + 8 * units;
  if (absl::Status status = Reserve(in_bytes, layout.bytes, &batch); !status.ok()) return status;
  batch.rows = static_cast<int32_t>(count);
  batch.top_max = top_max;
  if (count > 0) {
    auto* headers = reinterpret_cast<SampleHeader*>(batch.host_in.data());
    ListWriter lists(batch.host_in.data() + header_bytes);
    for (const SampleRow& row : rows) *headers++ = HeaderOf(row, &lists);
    std::byte* const out = batch.out.data();
    const SampleCall call = {
        .logits = logits,
        .stride = stride,
        .vocab = options_.vocab,
        .pieces = options_.piece_count,
        .headers = reinterpret_cast<const SampleHeader*>(batch.in.data()),
        .lists = reinterpret_cast<const int32_t*>(batch.in.data() + header_bytes),
        .out = reinterpret_cast<SampleOut*>(out),
        .top_max = top_max,
        .top_ids = reinterpret_cast<int32_t*>(out + layout.ids),
        .top_logprobs = reinterpret_cast<float*>(out + layout.logprobs),
        .tokens = reinterpret_cast<int32_t*>(tokens_.data())};
    absl::Status status = CopyToDevice(batch.in.data(), batch.host_in.data(), in_bytes, stream);
    if (status.ok()) status = LaunchSample(call, batch.rows, stream);
    if (status.ok()) status = CopyToHost(batch.host_out.data(), out, layout.bytes, stream);
    if (!status.ok()) return status;
  }
  ++enqueued_;
  return absl::OkStatus();
}

const int32_t* DeviceSampler::tokens() const {
  return reinterpret_cast<const int32_t*>(tokens_.data());
}

void DeviceSampler::Results(std::vector<SampleResult>* results) {
  results->clear();
  if (read_ == enqueued_) return;
  const Batch& batch = batches_[static_cast<size_t>(read_++ % 2)];
  const OutLayout layout(batch.rows, batch.top_max);
  const std::byte* const from = batch.host_out.data();
  const auto* outs = reinterpret_cast<const SampleOut*>(from);
  const auto* ids = reinterpret_cast<const int32_t*>(from + layout.ids);
  const auto* logprobs = reinterpret_cast<const float*>(from + layout.logprobs);
  for (int64_t row = 0; row < batch.rows; ++row) {
    SampleResult& result = results->emplace_back();
    result.token = outs[row].token;
    result.finite = outs[row].finite != 0;
    result.logprob = outs[row].logprob;
    result.rank = outs[row].rank;
    for (int64_t i = row * batch.top_max; i < row * batch.top_max + outs[row].top_count; ++i) {
      result.top.push_back({.id = ids[i], .logprob = logprobs[i]});
    }
  }
}

}  // namespace morphserve::kernels::cuda
