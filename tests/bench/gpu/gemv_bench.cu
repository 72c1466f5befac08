// gemv_bench: the matrix product, the low-rank corrections and sampling on the device. Matrices
// rotate among more memory than the second-level cache has. Prints, for each matrix and number of
// rows, the time of a launch inside a graph, bytes a second and their share of a plain read;
// cuBLASLt with bf16 inputs beside it; then products of many rows, and sampling.
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sample.h"
#include "tests/bench/gpu/gpu_timer.cuh"

namespace morphserve::bench {
namespace {

using kernels::MatmulPart;
using kernels::PackedMatrix;
using kernels::Stream;
using kernels::WeightFormat;
using kernels::cuda::DeviceMemory;

constexpr int32_t kRowsMax = 2048;
constexpr int32_t kWidthMax = 14336;

DeviceMemory AllocateOrDie(int64_t bytes) {
  auto memory = DeviceMemory::Allocate(bytes);
  OrDie(memory.status(), "memory");
  return std::move(*memory);
}

// Several uploaded matrices of one shape with random content: together beyond the cache.
class Matrices {
 public:
  Matrices(WeightFormat format, int32_t n, int32_t k, Stream stream) {
    const int64_t bytes = kernels::cuda::MatrixBytes(format, n, k);
    const int64_t copies = std::max<int64_t>(2, (int64_t{256} << 20) / bytes + 1);
    memory_ = AllocateOrDie(copies * bytes);
    const int32_t step_bytes = kernels::cuda::TileStepBytes(format);
    const int32_t scales = step_bytes - kernels::cuda::kTileBytes;
    const DeviceMemory random_scales = AllocateOrDie(bytes);
    // Scales near 2^-6, of f16; pairs of them are an f32 near 2^-55, as good for fp8.
    FillRandom(random_scales.data(), bytes, 0x80ff80ffu, 0x24002400u, stream);
    for (int64_t i = 0; i < copies; ++i) {
      std::byte* at = memory_.data() + i * bytes;
      const bool floats = format == WeightFormat::kBF16;
      FillRandom(at, bytes, floats ? kKeepBf16 : ~0u, floats ? kSetBf16 : 0, stream);
      if (scales > 0) {
        const auto pitch = static_cast<size_t>(step_bytes), width = static_cast<size_t>(scales);
        const cudaError_t copied = cudaMemcpy2DAsync(
            at + kernels::cuda::kTileBytes, pitch, random_scales.data(), width, width,
            static_cast<size_t>(bytes / step_bytes), cudaMemcpyDeviceToDevice,
            static_cast<cudaStream_t>(stream.cuda_stream));
        OrDie(copied, "scales");
      }
      list_.push_back({.format = format, .n = n, .k = k, .data = at});
    }
    OrDie(kernels::cuda::Synchronize(stream), "matrices");
    bytes_ = bytes;
  }
  const PackedMatrix& at(int i) const { return list_[static_cast<size_t>(i) % list_.size()]; }
  int64_t bytes() const { return bytes_; }

 private:
  DeviceMemory memory_;
  std::vector<PackedMatrix> list_;
  int64_t bytes_ = 0;
};

struct Buffers {
  explicit Buffers(Stream on)
      : stream(on),
        x(AllocateOrDie(int64_t{kRowsMax} * kWidthMax * 4)),
        y(AllocateOrDie(int64_t{64} * 151936 * 4 + int64_t{kRowsMax} * kWidthMax * 4)),
        workspace(AllocateOrDie(kernels::cuda::MatmulBytes(kRowsMax, kWidthMax))) {
    FillRandom(x.data(), x.bytes(), kKeepF32, kSetF32, stream);
  }
  float* X() const { return reinterpret_cast<float*>(x.data()); }
  float* Y() const { return reinterpret_cast<float*>(y.data()); }

  void Matmul(const PackedMatrix& w, int32_t rows) const {
    const MatmulPart part = {.weights = &w, .y = Y(), .y_stride = w.n};
    OrDie(kernels::cuda::Matmul({.x = X(),
                                 .x_stride = w.k,
                                 .rows = rows,
                                 .parts = {&part, 1},
                                 .workspace = workspace.data(),
                                 .workspace_bytes = workspace.bytes()},
                                stream),
          "product");
  }
  void Cublas(const PackedMatrix& w, int32_t rows) const {
    OrDie(kernels::cuda::RunBigProduct({.x = x.data(),
                                        .w = w.data,
                                        .y = Y(),
                                        .y_stride = w.n,
                                        .m = rows,
                                        .n = w.n,
                                        .k = w.k,
                                        .workspace = workspace.data()},
                                       stream),
          "cuBLASLt");
  }

  Stream stream;
  DeviceMemory x, y, workspace;
};

void BenchShape(const char* name, WeightFormat format, int32_t n, int32_t k, double read,
                const Buffers& buffers) {
  const Matrices matrices(format, n, k, buffers.stream);
  const int launches = matrices.bytes() > (8 << 20) ? 20 : 60;
  std::printf("%-6s %6d x %-5d %6.1f MB |", name, n, k,
              static_cast<double>(matrices.bytes()) * 1e-6);
  for (const int32_t rows : {1, 2, 4, 8, 16, 32, 64}) {
    const double seconds = SecondsOf([&](int i) { buffers.Matmul(matrices.at(i), rows); }, launches,
                                     buffers.stream, 12);
    const double rate = static_cast<double>(matrices.bytes()) / seconds;
    std::printf(" %d: %.2f us %.0f%%", rows, seconds * 1e6, 100 * rate / read);
    if (format == WeightFormat::kBF16 && (rows == 1 || rows == 8 || rows == 16 || rows == 64)) {
      const double other = SecondsOf([&](int i) { buffers.Cublas(matrices.at(i), rows); }, launches,
                                     buffers.stream, 12);
      std::printf(" (lt %.2f)", other * 1e6);
    }
  }
  std::printf("\n");
  std::fflush(stdout);
}

void BenchLarge(const char* name, WeightFormat format, int32_t n, int32_t k,
                const Buffers& buffers) {
  const Matrices matrices(format, n, k, buffers.stream);
  std::printf("%-6s %6d x %-5d |", name, n, k);
  for (const int32_t rows : {128, 512, 2048}) {
    const double seconds =
        SecondsOf([&](int i) { buffers.Matmul(matrices.at(i), rows); }, 6, buffers.stream, 6);
    std::printf(" M=%d %.1f us %.0f TFLOP/s", rows, seconds * 1e6, 2e-12 * rows * n * k / seconds);
  }
  std::printf("\n");
}

void BenchSampling(int32_t vocab, const Buffers& buffers) {
  auto sampler =
      kernels::cuda::DeviceSampler::Create({.rows_max = 64, .vocab = vocab, .piece_count = vocab});
  OrDie(sampler.status(), "sampler");
  struct Kind {
    const char* name;
    float temperature, top_p;
    int32_t top_k, logprobs;
  };
  for (const Kind& kind :
       {Kind{"greedy", 0, 1, 0, -1}, Kind{"temperature", 0.7f, 1, 0, -1},
        Kind{"top_p 0.9", 0.7f, 0.9f, 0, -1}, Kind{"top_k 40, top_p 0.9", 0.7f, 0.9f, 40, -1},
        Kind{"greedy, 20 log-probabilities", 0, 1, 0, 20}}) {
    std::printf("sample %6d %-30s", vocab, kind.name);
    for (const int rows : {1, 8, 64}) {
      std::vector<kernels::cuda::SampleRow> batch(static_cast<size_t>(rows));
      for (size_t r = 0; r < batch.size(); ++r) {
        kernels::SampleArgs& args = batch[r].args;
        args.temperature = kind.temperature;
        args.top_k = kind.top_k;
        args.top_p = kind.top_p;
        args.seed = r;
        args.logprobs = kind.logprobs;
      }
      std::vector<kernels::SampleResult> results;
      const double seconds = SecondsOf(
          [&](int) {
            OrDie((*sampler)->Enqueue(batch, buffers.X(), vocab, buffers.stream), "sample");
            (*sampler)->Results(&results);  // Only counts the batch as read.
          },
          10, buffers.stream, 10);
      std::printf(" | %d rows %.1f us", rows, seconds * 1e6);
    }
    std::printf("\n");
  }
}

void Run() {
  const auto device = kernels::cuda::OpenDevice(0);
  OrDie(device.status(), "device");
  const auto stream = kernels::cuda::CreateStream(false);
  OrDie(stream.status(), "stream");
  const double read = ReadBandwidth(*stream);
  std::printf("%s: plain read %.0f GB/s; rows: time of a launch, share of the plain read\n",
              device->name.c_str(), read * 1e-9);
  const Buffers buffers(*stream);
  struct Shape {
    int32_t n, k;
  };
  const std::pair<const char*, WeightFormat> formats[] = {{"bf16", WeightFormat::kBF16},
                                                          {"int8", WeightFormat::kQ8},
                                                          {"fp8", WeightFormat::kFp8},
                                                          {"4-bit", WeightFormat::kQ4}};
  for (const auto& [name, format] : formats) {
    for (const Shape& s :
         {Shape{4096, 4096}, Shape{14336, 4096}, Shape{28672, 4096}, Shape{4096, 14336},
          Shape{151936, 2048}, Shape{49152, 576}, Shape{4096, 2048}, Shape{12288, 2048},
          Shape{2048, 6144}, Shape{2048, 2048}, Shape{960, 576}, Shape{3072, 576},
          Shape{576, 1536}}) {
      BenchShape(name, format, s.n, s.k, read, buffers);
    }
  }
  for (const auto& [name, format] : formats) BenchLarge(name, format, 4096, 4096, buffers);
  BenchSampling(49152, buffers);
  BenchSampling(151936, buffers);
}

}  // namespace
}  // namespace morphserve::bench

int main() {
  morphserve::bench::Run();
  return 0;
}
