// Sampling: a cluster of 8 blocks a row, which reads the row once into its shared memory;
// everything after that is passes over it there (sample_search.cuh). A greedy row needs one pass, a
// temperature without cuts about five. Floor: 4 bytes a logit, and a barrier of the cluster, about
// 1 us, a pass.
#include "kernels/cuda/error.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_row.h"
#include "kernels/cuda/sample_search.cuh"

namespace morphserve::kernels::cuda {
namespace {

__device__ bool None(uint64_t best) { return best >> 32 <= kKeyOfMinusInfinity; }

__device__ const int32_t* ListOf(const SampleCall& call, const SampleList& list) {
  return call.lists + 2 * list.begin;
}

// Entries of one id are added in the order of the list: the first of them does it for all.
__device__ void AddBias(const SampleCall& call, const SampleList& list, SampleSlice* row) {
  const int32_t* entries = ListOf(call, list);
  for (int32_t i = threadIdx.x; i < list.count; i += kSampleThreads) {
    const int32_t id = entries[2 * i];
    float* const logit = row->At(id);
    if (logit == nullptr) continue;
    bool first = true;
    for (int32_t j = 0; j < i && first; ++j) first = entries[2 * j] != id;
    if (!first) continue;
    for (int32_t j = i; j < list.count; ++j) {
      if (entries[2 * j] == id) *logit = __fadd_rn(*logit, __int_as_float(entries[2 * j + 1]));
    }
  }
}

__device__ void Ban(const SampleCall& call, const SampleList& list, SampleSlice* row) {
  for (int32_t i = threadIdx.x; i < list.count; i += kSampleThreads) {
    if (float* const logit = row->At(ListOf(call, list)[i]); logit != nullptr) *logit = -INFINITY;
  }
}

// -inf for every id that the list lacks. `marks` has a bit for every logit of the slice.
__device__ void KeepAllowed(const SampleCall& call, const SampleList& list, uint32_t* marks,
                            float* logits, SampleSlice* row) {
  const int32_t words = (SampleSlice::SliceSize(call.vocab) + 31) / 32;
  for (int32_t i = threadIdx.x; i < words; i += kSampleThreads) marks[i] = 0;
  __syncthreads();  // No mark is left.
  for (int32_t i = threadIdx.x; i < list.count; i += kSampleThreads) {
    if (float* const logit = row->At(ListOf(call, list)[i]); logit != nullptr) {
      const auto at = static_cast<uint32_t>(logit - logits);
      atomicOr(&marks[at / 32], 1u << (at % 32));
    }
  }
  __syncthreads();  // All marks are set.
  row->ForEach([&](int32_t, float& value) {
    const auto at = static_cast<uint32_t>(&value - logits);
    if ((marks[at / 32] >> (at % 32) & 1) == 0) value = -INFINITY;
  });
}

__device__ void Penalise(const SampleCall& call, const SampleHeader& header, SampleSlice* row) {
  const int32_t* entries = ListOf(call, header.seen);
  for (int32_t i = threadIdx.x; i < header.seen.count; i += kSampleThreads) {
    float* const logit = row->At(entries[2 * i]);
    if (logit == nullptr) continue;
    float value = *logit;
    if (header.repetition != 1) {
      value = value > 0 ? __fdiv_rn(value, header.repetition) : __fmul_rn(value, header.repetition);
    }
    if (const int32_t count = entries[2 * i + 1]; count > 0) {
      const float less =
          __fadd_rn(__fmul_rn(header.frequency, static_cast<float>(count)), header.presence);
      value = __fsub_rn(value, less);
    }
    *logit = value;
  }
}

// Step 4 and 5 of kernels/sample.h, after the division by the temperature.
__device__ int32_t Draw(const SampleHeader& header, float largest, SampleSlice* row) {
  const auto weigh = [&](float least) {
    return row->Sum([&](int32_t, float value) {
      const float weight = SampleWeight(value, largest);
      return Tally{weight >= least ? static_cast<double>(weight) : 0.0, 0};
    });
  };
  // All cuts leave the first so and so many tokens: the lightest cut is the shortest.
  const Tally all = row->Prepare(largest);
  double total = all.mass;
  if (header.top_k > 0 && static_cast<uint32_t>(header.top_k) < all.count) {
    const SampleGoal first = {.by_count = true, .count = static_cast<uint32_t>(header.top_k)};
    total = row->Find(first, largest).tally.mass;
  }
  double kept = total;
  // The best token stays, whatever min_p is.
  if (header.min_p > 0) kept = fmin(kept, weigh(fminf(header.min_p, 1.0f)).mass);
  if (header.top_p < 1) {
    const SampleGoal enough = {.mass = static_cast<double>(header.top_p) * total};
    kept = fmin(kept, row->Find(enough, largest).tally.mass);
  }
  const SampleGoal target = {.mass = static_cast<double>(header.uniform) * kept, .above = true};
  return row->Find(target, largest).token;
}

// The token of a row that is sampled; -1 if nothing survives.
__device__ int32_t Choose(const SampleCall& call, const SampleHeader& header, SampleRange range,
                          float* logits, uint32_t* marks, SampleSlice* row) {
  if (range.bad != 0 || None(range.best)) return -1;
  row->DropIdsWithoutToken();
  const bool penalised = header.seen.count > 0;
  if (penalised || header.bias.count > 0 || header.banned.count > 0 || header.has_allowed != 0) {
    AddBias(call, header.bias, row);
    __syncthreads();  // Each step sees the one before it.
    Ban(call, header.banned, row);
    __syncthreads();
    if (header.has_allowed != 0) KeepAllowed(call, header.allowed, marks, logits, row);
    __syncthreads();
    Penalise(call, header, row);
    __syncthreads();
    range = row->Range();
    if (range.bad != 0 || None(range.best)) return -1;
  }
  float largest = ValueOf(static_cast<uint32_t>(range.best >> 32));
  // A temperature so small that the quotient overflows leaves only the largest.
  if (!(header.temperature > 0) || !isfinite(__fdiv_rn(largest, header.temperature))) {
    return IdOf(range.best);
  }
  if (header.temperature != 1) {
    row->ForEach([&](int32_t, float& value) { value = __fdiv_rn(value, header.temperature); });
    largest = __fdiv_rn(largest, header.temperature);
    __syncthreads();
  }
  return Draw(header, largest, row);
}

// Log-probability, rank and the most likely tokens, of the untouched row.
__device__ void Score(const SampleCall& call, int32_t index, const float* logits, int32_t token,
                      int32_t top, const SampleRange& range, SampleOut* out, SampleSlice* row) {
  const auto largest = static_cast<double>(range.all);
  const Tally all = row->Sum([&](int32_t, float value) {
    return Tally{static_cast<double>(SampleWeight(value, range.all)), 0};
  });
  const double log_sum = log(all.mass);
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - largest - log_sum);
  };
  row->DropIdsWithoutToken();
  const uint64_t place = PlaceKey(logits[token], token);
  const Tally before = row->Sum([&](int32_t id, float value) {
    return Tally{0, id < call.pieces && PlaceKey(value, id) > place ? 1u : 0u};
  });
  out->logprob = logprob(logits[token]);
  out->rank = static_cast<int32_t>(before.count) + 1;
  if (top <= 0 || None(range.best)) return;
  const float best = ValueOf(static_cast<uint32_t>(range.best >> 32));
  row->Prepare(best);
  const uint32_t count = row->First(static_cast<uint32_t>(top), best);
  out->top_count = static_cast<int32_t>(count);
  if (!row->leads()) return;
  for (uint32_t i = threadIdx.x; i < count; i += kSampleThreads) {
    const int64_t to = int64_t{index} * call.top_max + i;
    call.top_ids[to] = IdOf(row->band(i));
    call.top_logprobs[to] = logprob(ValueOf(static_cast<uint32_t>(row->band(i) >> 32)));
  }
}

__global__ __cluster_dims__(kSampleBlocks, 1, 1)
    __launch_bounds__(kSampleThreads) void SampleKernel(const __grid_constant__ SampleCall call) {
  extern __shared__ __align__(16) float logits[];
  __shared__ SampleShared shared;
  const int32_t slice = SampleSlice::SliceSize(call.vocab);
  auto* const marks = reinterpret_cast<uint32_t*>(logits + slice);
  const auto index = static_cast<int32_t>(blockIdx.x / kSampleBlocks);
  const SampleHeader& header = call.headers[index];
  const float* const from = call.logits + index * call.stride;
  SampleSlice row(&shared, logits, call.vocab, call.pieces);
  row.Load(from);
  const SampleRange range = row.Range();
  SampleOut out = {.token = -1, .finite = 0, .logprob = 0, .rank = 0, .top_count = 0, .padding = 0};
  const bool scored = header.score_token >= 0;
  if (scored) {
    const bool sound = range.bad == 0 && range.all > -INFINITY && header.score_token < call.pieces;
    out.token = sound ? header.score_token : -1;
  } else {
    out.token = Choose(call, header, range, logits, marks, &row);
  }
  out.finite = out.token >= 0 ? 1 : 0;
  if (out.token >= 0 && (scored || header.logprobs >= 0)) {
    row.Load(from);
    Score(call, index, from, out.token, header.logprobs, range, &out, &row);
  }
  if (row.leads() && threadIdx.x == 0) {
    call.out[index] = out;
    call.tokens[index] = out.token;
  }
  row.Leave();
}

__global__ void FollowKernel(const int32_t* sampled, const int32_t* follows, int32_t rows,
                             int32_t* tokens) {
  const auto r = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (r < rows && follows[r] >= 0) tokens[r] = sampled[follows[r]];
}

}  // namespace

absl::Status FollowTokens(const int32_t* sampled, const int32_t* follows, int32_t rows,
                          int32_t* tokens, Stream stream) {
  constexpr int32_t kThreads = 256;
  if (rows == 0) return absl::OkStatus();
  FollowKernel<<<static_cast<unsigned>((rows + kThreads - 1) / kThreads), kThreads, 0,
                 StreamOf(stream)>>>(sampled, follows, rows, tokens);
  return LaunchStatus("tokens that follow");
}

absl::Status LaunchSample(const SampleCall& call, int32_t rows, Stream stream) {
  const int32_t slice = SampleSlice::SliceSize(call.vocab);
  const size_t bytes = static_cast<size_t>(slice) * 4 + static_cast<size_t>((slice + 31) / 32) * 4;
  // Once: the limit belongs to the kernel. The rest of a block's 227 KB is static.
  static const cudaError_t raised = cudaFuncSetAttribute(
      SampleKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
      227 * 1024 - static_cast<int>((sizeof(SampleShared) + 1023) / 1024 * 1024));
  MS_CUDA_RETURN_IF_ERROR(raised);
  SampleKernel<<<static_cast<unsigned>(rows * kSampleBlocks), kSampleThreads, bytes,
                 StreamOf(stream)>>>(call);
  return LaunchStatus("sampling");
}

}  // namespace morphserve::kernels::cuda
