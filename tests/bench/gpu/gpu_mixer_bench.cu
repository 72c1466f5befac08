// Attention and the mixers of linear layers on the device: decode against the bandwidth that this
// device was measured to have in the same run, prefill in floating-point operations. Random data,
// pages and slots in no order, buffers beyond the second-level cache.
//   gpu_mixer_bench [decode|prefill]
#include <cuda_bf16.h>

#include <cmath>
#include <string>

#include "kernels/cuda/device.h"
#include "tests/bench/gpu/linear_cases.cuh"

namespace morphserve::bench {
namespace {

using kernels::AttentionArgs;
using kernels::AttentionSegment;

cudaStream_t Raw(Stream stream) { return static_cast<cudaStream_t>(stream.cuda_stream); }

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
  KvDType type = KvDType::kBF16;  // Of e4m3 the codes are bytes of bf16 numbers.

  const char* name() const { return type == KvDType::kE4m3 ? "fp8" : "bf16"; }
};

// Time of one call, in microseconds.
double TimeAttention(const AttentionCase& c, int launches) {
  const int32_t pages = (c.kv_len + kPageTokens - 1) / kPageTokens;
  const int64_t page_bytes = kernels::PageBytes(c.type, c.kv_heads, c.dim);
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
         .kv_dtype = c.type,
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
        AttentionCase{64, 8192, 1, 9, 3, 64}, AttentionCase{64, 8192, 1, 16, 2, 256},
        AttentionCase{64, 32768, 1, 32, 8, 128, KvDType::kE4m3},
        AttentionCase{1, 32768, 1, 32, 8, 128, KvDType::kE4m3},
        AttentionCase{64, 1024, 1, 32, 8, 128, KvDType::kE4m3},
        AttentionCase{64, 8192, 1, 9, 3, 64, KvDType::kE4m3},
        AttentionCase{64, 8192, 1, 16, 2, 256, KvDType::kE4m3}}) {
    const double us = TimeAttention(c, c.batch * c.kv_len > 1 << 20 ? 4 : 20);
    const double bytes = 2.0 * c.batch * c.kv_len * c.kv_heads * c.dim * KvDTypeBytes(c.type);
    std::printf("attention decode %2d x %5d  %2d/%d x %3d %4s  %9.1f us  %6.0f GB/s  %5.1f %%\n",
                c.batch, c.kv_len, c.heads, c.kv_heads, c.dim, c.name(), us, bytes / us / 1e3,
                100 * bytes / us / ceilings.read);
  }
}

void AttentionPrefill() {
  for (const AttentionCase& c :
       {AttentionCase{1, 8192, 8192, 32, 8, 128}, AttentionCase{4, 2048, 2048, 32, 8, 128},
        AttentionCase{1, 32768, 1024, 32, 8, 128}, AttentionCase{1, 8192, 8192, 9, 3, 64},
        AttentionCase{1, 8192, 8192, 16, 2, 256},
        AttentionCase{1, 8192, 8192, 32, 8, 128, KvDType::kE4m3},
        AttentionCase{4, 2048, 2048, 32, 8, 128, KvDType::kE4m3},
        AttentionCase{1, 8192, 8192, 16, 2, 256, KvDType::kE4m3}}) {
    const double us = TimeAttention(c, 4);
    const double before = c.kv_len - c.rows;
    const double pairs = c.batch * c.rows * (before + (c.rows + 1) / 2.0);
    std::printf("attention prefill %d x %5d of %5d  %2d/%d x %3d %4s  %9.1f us  %5.0f TFLOP/s\n",
                c.batch, c.rows, c.kv_len, c.heads, c.kv_heads, c.dim, c.name(), us,
                4.0 * c.dim * c.heads * pairs / us / 1e6);
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
    LinearLayerParts();
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
