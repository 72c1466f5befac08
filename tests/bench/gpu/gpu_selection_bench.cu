// The operations of the selection of layers on the device, at the sizes of one layer: a whole
// sequence forward and back. Random data; times of launches inside a graph.
//   gpu_selection_bench [tokens [heads kv_heads head_dim hidden mlp]]
#include <cmath>
#include <string>

#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/selection_ops.h"
#include "tests/bench/gpu/graph_timer.cuh"

namespace morphserve::bench {
namespace {

using kernels::PackedMatrix;
using kernels::Stream;

struct Sizes {
  int32_t tokens = 1024, heads = 9, kv_heads = 3, d = 64, hidden = 576, mlp = 1536;
};

double total = 0;

// `times`: how often a layer does it.
template <typename F>
void Time(const char* name, int times, F&& call) {
  const double one = MicrosecondsOf(10, [&](int, Stream stream) { Require(call(stream)); });
  total += one * times;
  std::printf("%-34s %9.1f us x %d\n", name, one, times);
}

// Rows of normal numbers.
class Rows : public Buffer<float> {
 public:
  Rows(int64_t rows, int64_t columns, float size = 1) : Buffer(rows * columns) {
    FillNormal(get(), count(), size, static_cast<uint32_t>(columns));
  }
};

void TimeAttention(const Sizes& z, int32_t window, int32_t sinks) {
  const int64_t q_width = int64_t{z.heads} * z.d, kv_width = int64_t{z.kv_heads} * z.d;
  const Rows q(z.tokens, q_width), out(z.tokens, q_width), dout(z.tokens, q_width),
      dq(z.tokens, q_width), k(z.tokens, kv_width), v(z.tokens, kv_width), dk(z.tokens, kv_width),
      dv(z.tokens, kv_width);
  const int64_t bytes =
      kernels::cuda::SequenceAttentionBytes(z.tokens, z.tokens, z.heads, z.kv_heads, z.d, true);
  const Buffer<std::byte> workspace(bytes);
  const kernels::SequenceAttentionShape shape = {.row_count = z.tokens,
                                                 .heads = z.heads,
                                                 .kv_heads = z.kv_heads,
                                                 .head_dim = z.d,
                                                 .scale = 1 / std::sqrt(static_cast<float>(z.d)),
                                                 .window = window,
                                                 .sinks = sinks};
  Time(window == 0 ? "attention" : "attention, window", 2, [&](Stream stream) {
    return kernels::cuda::SequenceAttention({.shape = shape,
                                             .q = q.get(),
                                             .q_stride = q_width,
                                             .k = k.get(),
                                             .v = v.get(),
                                             .kv_stride = kv_width,
                                             .out = out.get(),
                                             .out_stride = q_width},
                                            stream);
  });
  Time(window == 0 ? "attention, gradient" : "attention, window, gradient", 1, [&](Stream stream) {
    return kernels::cuda::SequenceAttentionGrad({.shape = shape,
                                                 .q = q.get(),
                                                 .q_stride = q_width,
                                                 .k = k.get(),
                                                 .v = v.get(),
                                                 .kv_stride = kv_width,
                                                 .dout = dout.get(),
                                                 .dout_stride = q_width,
                                                 .dq = dq.get(),
                                                 .dq_stride = q_width,
                                                 .dk = dk.get(),
                                                 .dv = dv.get(),
                                                 .dkv_stride = kv_width,
                                                 .workspace = workspace.get(),
                                                 .workspace_bytes = bytes},
                                                stream);
  });
}

void TimeRecurrence(const Sizes& z) {
  const int64_t width = int64_t{z.heads} * z.d;
  const Rows qkv(z.tokens, 3 * width, 0.1f), a(z.tokens, z.heads), b(z.tokens, z.heads),
      o(z.tokens, width), d_o(z.tokens, width), dqkv(z.tokens, 3 * width), da(z.tokens, z.heads),
      db(z.tokens, z.heads), heads(3, z.heads), conv(4, 3 * width), x(z.tokens, 3 * width);
  kernels::RecurrentCoreShape shape = {.row_count = z.tokens,
                                       .tokens = z.tokens,
                                       .heads = z.heads,
                                       .head_dim = z.d,
                                       .scale = 1 / std::sqrt(static_cast<float>(z.d)),
                                       .a_log = heads.get(),
                                       .dt_bias = heads.get() + z.heads,
                                       .b_beta = heads.get() + 2 * z.heads};
  const Rows states(shape.states_per_head() * z.heads, int64_t{z.d} * z.d),
      dstate(z.heads, int64_t{z.d} * z.d, 0);
  const int64_t bytes = kernels::cuda::RecurrentCoreGradBytes(z.heads, z.d);
  const Buffer<std::byte> workspace(bytes);
  Time("recurrence", 2, [&](Stream stream) {
    return kernels::cuda::RecurrentCore({.shape = shape,
                                         .qkv = qkv.get(),
                                         .qkv_stride = 3 * width,
                                         .a = a.get(),
                                         .b = b.get(),
                                         .gate_stride = z.heads,
                                         .o = o.get(),
                                         .o_stride = width,
                                         .states = states.get()},
                                        stream);
  });
  Time("recurrence, gradient", 1, [&](Stream stream) {
    return kernels::cuda::RecurrentCoreGrad({.shape = shape,
                                             .qkv = qkv.get(),
                                             .qkv_stride = 3 * width,
                                             .a = a.get(),
                                             .b = b.get(),
                                             .gate_stride = z.heads,
                                             .states = states.get(),
                                             .d_o = d_o.get(),
                                             .d_o_stride = width,
                                             .dqkv = dqkv.get(),
                                             .dqkv_stride = 3 * width,
                                             .da = da.get(),
                                             .db = db.get(),
                                             .dgate_stride = z.heads,
                                             .dstate = dstate.get(),
                                             .workspace = workspace.get(),
                                             .workspace_bytes = bytes},
                                            stream);
  });
  const kernels::RecurrentFeaturesShape features = {.row_count = z.tokens,
                                                    .tokens = z.tokens,
                                                    .heads = z.heads,
                                                    .head_dim = z.d,
                                                    .conv = conv.get(),
                                                    .taps = 4};
  Time("features", 2, [&](Stream stream) {
    return kernels::cuda::RecurrentFeatures({.shape = features,
                                             .x = x.get(),
                                             .x_stride = 3 * width,
                                             .y = qkv.get(),
                                             .y_stride = 3 * width},
                                            stream);
  });
  Time("features, gradient", 1, [&](Stream stream) {
    return kernels::cuda::RecurrentFeaturesGrad({.shape = features,
                                                 .x = x.get(),
                                                 .x_stride = 3 * width,
                                                 .dy = qkv.get(),
                                                 .dy_stride = 3 * width,
                                                 .dx = dqkv.get(),
                                                 .dx_stride = 3 * width},
                                                stream);
  });
}

// Q8 weights of zero: the work does not depend on the numbers.
void TimeProduct(const Sizes& z, const char* name, int times, int32_t n, int32_t k) {
  const Buffer<std::byte> data(kernels::cuda::MatrixBytes(kernels::WeightFormat::kQ8, n, k));
  Require(cudaMemset(data.get(), 0x11, static_cast<size_t>(data.count())), "weights");
  const PackedMatrix w = {kernels::WeightFormat::kQ8, n, k, data.get()};
  const Rows dy(z.tokens, n), dx(z.tokens, k);
  const int64_t bytes = kernels::cuda::MatmulGradBytes(z.tokens, k);
  const Buffer<std::byte> workspace(bytes);
  Time(name, times, [&](Stream stream) {
    return kernels::cuda::MatmulGrad({.dy = dy.get(),
                                      .dy_stride = n,
                                      .rows = z.tokens,
                                      .weights = &w,
                                      .dx = dx.get(),
                                      .dx_stride = k,
                                      .workspace = workspace.get(),
                                      .workspace_bytes = bytes},
                                     stream);
  });
}

}  // namespace
}  // namespace morphserve::bench

int main(int argc, char** argv) {
  using namespace morphserve::bench;
  Sizes z;
  int32_t* const sizes[] = {&z.tokens, &z.heads, &z.kv_heads, &z.d, &z.hidden, &z.mlp};
  for (int i = 1; i < argc && i <= 6; ++i) *sizes[i - 1] = std::atoi(argv[i]);
  std::printf("%d tokens, %d of %d heads of %d, hidden %d, mlp %d\n", z.tokens, z.heads, z.kv_heads,
              z.d, z.hidden, z.mlp);
  TimeAttention(z, 0, 0);
  TimeAttention(z, 128, 4);
  TimeRecurrence(z);
  TimeProduct(z, "product gradient, q and output", 3, z.heads * z.d, z.hidden);
  TimeProduct(z, "product gradient, k and v", 2, z.kv_heads * z.d, z.hidden);
  TimeProduct(z, "product gradient, gate and up", 2, z.mlp, z.hidden);
  TimeProduct(z, "product gradient, down", 1, z.hidden, z.mlp);
  std::printf("a layer, of these: %.2f ms, %.2f us a token\n", total * 1e-3, total / z.tokens);
  return 0;
}
