// Attention and the mixers of linear layers on the device: decode against the bandwidth that this
// device was measured to have in the same run, prefill in floating-point operations. Random data,
// pages and slots in no order, buffers beyond the second-level cache.
//   gpu_mixer_bench [decode|prefill]
#include <cuda_bf16.h>

#include <cmath>
#include <cstring>
#include <string>

#include "kernels/cuda/device.h"
#include "tests/bench/gpu/graph_timer.cuh"

namespace morphserve::bench {
namespace {

using kernels::AttentionArgs;
using kernels::AttentionSegment;
using kernels::MixerSegment;
using kernels::RecurrentKind;
using kernels::RecurrentMixerArgs;
using kernels::Stream;

const kernels::Backend& Ops() { return *kernels::cuda::CudaBackend(); }
cudaStream_t Raw(Stream stream) { return static_cast<cudaStream_t>(stream.cuda_stream); }

// A permutation of 0 .. count - 1.
std::vector<int32_t> Shuffled(int32_t count) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) order[static_cast<size_t>(i)] = i;
  uint64_t state = 1;
  for (size_t i = order.size(); i > 1; --i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::swap(order[i - 1], order[(state >> 33) % i]);
  }
  return order;
}

struct Ceilings {
  double read, copy;  // Bytes a microsecond.
};

__global__ void ReadKernel(const uint4* from, int64_t count, uint32_t* sink) {
  uint32_t sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 7 * step < count; i += 8 * step) {
    uint4 x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
  }
  if (sum == 0x12345678) *sink = sum;
}

__global__ void CopyKernel(const uint4* from, uint4* to, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * step < count; i += 4 * step) {
    uint4 x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < 4; ++j) __stcs(to + i + j * step, x[j]);
  }
}

Ceilings Measure() {
  const int64_t bytes = int64_t{4} << 30;
  const Buffer<std::byte> from(bytes), to(bytes);
  FillNormal(reinterpret_cast<float*>(from.get()), bytes / 4, 1, 1);
  const double copy = MicrosecondsOf(4, [&](int, Stream s) {
    CopyKernel<<<132 * 8, 256, 0, Raw(s)>>>(reinterpret_cast<const uint4*>(from.get()),
                                            reinterpret_cast<uint4*>(to.get()), bytes / 16);
  });
  const double read = MicrosecondsOf(4, [&](int, Stream s) {
    ReadKernel<<<132 * 8, 256, 0, Raw(s)>>>(reinterpret_cast<const uint4*>(from.get()), bytes / 16,
                                            reinterpret_cast<uint32_t*>(to.get()));
  });
  const auto n = static_cast<double>(bytes);
  return {n / read, 2 * n / copy};
}

struct AttentionCase {
  int32_t batch, kv_len, rows, heads, kv_heads, dim;
};

// Time of one call, in microseconds.
double TimeAttention(const AttentionCase& c, int launches) {
  const int32_t pages = (c.kv_len + kPageTokens - 1) / kPageTokens;
  const int64_t page_bytes = kernels::PageBytes(KvDType::kBF16, c.kv_heads, c.dim);
  // Enough sequences that a replay leaves the cache behind.
  const int64_t call_bytes = page_bytes * pages * c.batch;
  const auto sets =
      static_cast<int32_t>(std::clamp<int64_t>((int64_t{160} << 20) / call_bytes + 1, 1, launches));
  const Buffer<__nv_bfloat16> kv(call_bytes * sets / 2);
  FillNormal(kv.get(), kv.count(), 1, 2);
  std::vector<int32_t> table = Shuffled(pages * c.batch * sets);
  for (int32_t& unit : table) unit *= static_cast<int32_t>(page_bytes / kArenaUnitBytes);
  const Buffer<int32_t> tables(table);
  const int64_t width = int64_t{c.heads} * c.dim, all_rows = int64_t{c.batch} * c.rows;
  const Buffer<float> q(all_rows * width), out(all_rows * width);
  FillNormal(q.get(), q.count(), 1, 3);
  std::vector<AttentionSegment> list;
  for (int32_t i = 0; i < c.batch * sets; ++i) {
    list.push_back({.row_begin = i % c.batch * c.rows,
                    .row_count = c.rows,
                    .kv_len = c.kv_len,
                    .page_table = tables.get() + int64_t{i} * pages});
  }
  const Buffer<AttentionSegment> segments(list);
  const Buffer<std::byte> workspace(
      Ops().attention_bytes(c.batch, c.rows, c.kv_len, c.heads, c.dim, 0) + 64);
  return MicrosecondsOf(launches, [&](int i, Stream stream) {
    Require(Ops().attention(
        {.q = q.get(),
         .q_stride = width,
         .out = out.get(),
         .out_stride = width,
         .kv_base = reinterpret_cast<const std::byte*>(kv.get()),
         .kv_dtype = KvDType::kBF16,
         .heads = c.heads,
         .kv_heads = c.kv_heads,
         .head_dim = c.dim,
         .scale = 1.0f / std::sqrt(static_cast<float>(c.dim)),
         .segments = {segments.get() + int64_t{i % sets} * c.batch, static_cast<size_t>(c.batch)},
         .rows_max = c.rows,
         .kv_len_max = c.kv_len,
         .workspace = workspace.get(),
         .workspace_bytes = workspace.bytes()},
        stream));
  });
}

void AttentionDecode(const Ceilings& ceilings) {
  for (const AttentionCase& c :
       {AttentionCase{64, 32768, 1, 32, 8, 128}, AttentionCase{16, 32768, 1, 32, 8, 128},
        AttentionCase{1, 32768, 1, 32, 8, 128}, AttentionCase{64, 1024, 1, 32, 8, 128},
        AttentionCase{64, 8192, 1, 9, 3, 64}, AttentionCase{64, 8192, 1, 16, 2, 256}}) {
    const double us = TimeAttention(c, c.batch * c.kv_len > 1 << 20 ? 4 : 20);
    const double bytes = 2.0 * c.batch * c.kv_len * c.kv_heads * c.dim * 2;
    std::printf("attention decode %2d x %5d  %2d/%d x %3d bf16  %9.1f us  %6.0f GB/s  %5.1f %%\n",
                c.batch, c.kv_len, c.heads, c.kv_heads, c.dim, us, bytes / us / 1e3,
                100 * bytes / us / ceilings.read);
  }
}

void AttentionPrefill() {
  for (const AttentionCase& c :
       {AttentionCase{1, 8192, 8192, 32, 8, 128}, AttentionCase{4, 2048, 2048, 32, 8, 128},
        AttentionCase{1, 32768, 1024, 32, 8, 128}, AttentionCase{1, 8192, 8192, 9, 3, 64},
        AttentionCase{1, 8192, 8192, 16, 2, 256}}) {
    const double us = TimeAttention(c, 4);
    const double before = c.kv_len - c.rows;
    const double pairs = c.batch * c.rows * (before + (c.rows + 1) / 2.0);
    std::printf("attention prefill %d x %5d of %5d  %2d/%d x %3d bf16  %9.1f us  %5.0f TFLOP/s\n",
                c.batch, c.rows, c.kv_len, c.heads, c.kv_heads, c.dim, us,
                4.0 * c.dim * c.heads * pairs / us / 1e6);
  }
}

struct RecurrentCase {
  RecurrentKind kind;
  int32_t batch, rows, heads, dim;
};

double TimeRecurrent(const RecurrentCase& c, int launches) {
  const bool is_delta = c.kind == RecurrentKind::kGatedDelta;
  const kernels::SlotShape shape = {
      .heads = c.heads, .head_dim = c.dim, .conv_taps = is_delta ? 4 : 0, .dtype = KvDType::kBF16};
  const int64_t slot_bytes = kernels::MakeSlotLayout(shape).bytes;
  const auto sets = static_cast<int32_t>(
      std::clamp<int64_t>((int64_t{400} << 20) / (slot_bytes * c.batch) + 1, 1, launches));
  const Buffer<float> slots(slot_bytes / 4 * c.batch * sets);
  // The replays that warm up fill the states.
  Require(cudaMemset(slots.get(), 0, static_cast<size_t>(slots.bytes())), "slots");
  const int64_t width = int64_t{c.heads} * c.dim, rows = int64_t{c.batch} * c.rows;
  const Buffer<float> qkv(rows * 3 * width), z(rows * width), out(rows * width),
      conv(4 * 3 * width), gates(rows * 2 * c.heads), per_head(4 * c.heads), norm(width);
  FillNormal(qkv.get(), qkv.count(), 1, 5);
  FillNormal(z.get(), z.count(), 1, 6);
  FillNormal(conv.get(), conv.count(), 0.5f, 7);
  FillNormal(gates.get(), gates.count(), 1, 8);
  FillNormal(norm.get(), norm.count(), 1, 9);
  std::vector<float> parameters;
  for (int32_t i = 0; i < 4 * c.heads; ++i) {
    const int32_t which = i / c.heads;  // a_log, dt_bias, b_beta, slopes
    parameters.push_back(which == 0 ? -1.0f : which == 3 ? 0.02f * static_cast<float>(i) : 0.0f);
  }
  const Buffer<float> heads(parameters);
  std::vector<MixerSegment> list;
  const std::vector<int32_t> order = Shuffled(c.batch * sets);
  for (int32_t i = 0; i < c.batch * sets; ++i) {
    const auto slot = static_cast<int32_t>(order[static_cast<size_t>(i)] * slot_bytes / 256);
    list.push_back({.row_begin = i % c.batch * c.rows,
                    .row_count = c.rows,
                    .position = c.rows == 1 ? 100 : 0,
                    .src_slot = slot,
                    .dst_slot = slot});
  }
  const Buffer<MixerSegment> segments(list);
  const Buffer<std::byte> workspace(
      Ops().recurrent_bytes(static_cast<int32_t>(rows), c.heads, c.dim, 0));
  return MicrosecondsOf(launches, [&](int i, Stream stream) {
    Require(Ops().recurrent_mixer(
        {.kind = c.kind,
         .shape = shape,
         .qkv = qkv.get(),
         .qkv_stride = 3 * width,
         .conv = is_delta ? conv.get() : nullptr,
         .silu = true,
         .qk_norm = is_delta ? kernels::QkNorm::kL2 : kernels::QkNorm::kNone,
         .a = gates.get(),
         .b = gates.get() + c.heads,
         .gate_stride = 2 * c.heads,
         .a_log = heads.get(),
         .dt_bias = heads.get() + c.heads,
         .b_beta = heads.get() + 2 * c.heads,
         .slopes = heads.get() + 3 * c.heads,
         .scale = 1.0f / std::sqrt(static_cast<float>(c.dim)),
         .norm_weight = norm.get(),
         .per_head_norm = is_delta,
         .eps = 1e-6f,
         .output_gate = is_delta ? kernels::OutputGate::kSilu : kernels::OutputGate::kSigmoid,
         .z = z.get(),
         .z_stride = width,
         .out = out.get(),
         .out_stride = width,
         .segments = {segments.get() + int64_t{i % sets} * c.batch, static_cast<size_t>(c.batch)},
         .rows_max = c.rows,
         .emits = {},
         .slot_base = reinterpret_cast<std::byte*>(slots.get()),
         .workspace = workspace.get(),
         .workspace_bytes = workspace.bytes()},
        stream));
  });
}

const char* Name(RecurrentKind kind) {
  return kind == RecurrentKind::kGatedDelta ? "gated_delta" : "lightning";
}

void RecurrentDecode(const Ceilings& ceilings) {
  using enum RecurrentKind;
  for (const RecurrentCase& c :
       {RecurrentCase{kGatedDelta, 64, 1, 32, 128}, RecurrentCase{kLightning, 64, 1, 32, 128},
        RecurrentCase{kGatedDelta, 1, 1, 32, 128}, RecurrentCase{kGatedDelta, 64, 1, 9, 64},
        RecurrentCase{kGatedDelta, 64, 1, 8, 256}}) {
    const double us = TimeRecurrent(c, 24);
    const double bytes = 2.0 * c.batch * c.heads * c.dim * c.dim * 4;
    std::printf("%-11s decode %2d  %2d x %3d f32  %9.2f us  %6.0f GB/s  %5.1f %%\n", Name(c.kind),
                c.batch, c.heads, c.dim, us, bytes / us / 1e3, 100 * bytes / us / ceilings.copy);
  }
}

// Share: of the time that reading q, k, v and z and writing the outputs once takes, all f32.
void RecurrentPrefill(const Ceilings& ceilings) {
  using enum RecurrentKind;
  for (const RecurrentCase& c :
       {RecurrentCase{kGatedDelta, 4, 8192, 32, 128}, RecurrentCase{kGatedDelta, 1, 32768, 32, 128},
        RecurrentCase{kGatedDelta, 1, 2048, 32, 128}, RecurrentCase{kLightning, 4, 8192, 32, 128},
        RecurrentCase{kGatedDelta, 1, 2048, 9, 64}}) {
    const double us = TimeRecurrent(c, 2);
    const double bytes = 5.0 * 4 * c.batch * c.rows * c.heads * c.dim;
    std::printf("%-11s prefill %d x %5d  %2d x %3d  %9.1f us  %5.1f %% of the byte floor\n",
                Name(c.kind), c.batch, c.rows, c.heads, c.dim, us,
                100 * bytes / us / ceilings.copy);
  }
}

int Main(const std::string& part) {
  const auto device = kernels::cuda::OpenDevice(0);
  Require(device.status());
  const Ceilings ceilings = Measure();
  std::printf("%s: read %.0f GB/s, copy (read + write) %.0f GB/s\n", device->name.c_str(),
              ceilings.read / 1e3, ceilings.copy / 1e3);
  if (part != "prefill") {
    AttentionDecode(ceilings);
    RecurrentDecode(ceilings);
  }
  if (part != "decode") {
    AttentionPrefill();
    RecurrentPrefill(ceilings);
  }
  return 0;
}

}  // namespace
}  // namespace morphserve::bench

int main(int argc, char** argv) { return morphserve::bench::Main(argc > 1 ? argv[1] : ""); }
