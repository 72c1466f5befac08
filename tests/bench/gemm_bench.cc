// gemm_bench [threads] [target ...]: the mat-mul on the matrices of SmolLM2-135M (hidden 576, mlp
// 1536, kv 192, vocabulary 49152, 30 layers), streamed as in a model, never hot in L2.
// Prints the read bandwidth of the machine, then for each instruction set and weight type
//   M = 1     read GB/s and its share of that bandwidth
//   M > 1     Top/s (2 operations a weight and row) and rows a second
// The head takes part up to M = 16, as in decode; a prefill runs it for its last row only.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/base/pages_memory.h"
#include "kernels/cpu/gemm_target.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/gemm.h"

namespace morphserve::kernels {
namespace {

constexpr int32_t kHidden = 576;
constexpr int32_t kMlp = 1536;
constexpr int32_t kKv = 192;
constexpr int32_t kVocabulary = 49152;
constexpr int32_t kLayers = 30;
constexpr int32_t kMaxRows = 512;

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

uint64_t NextBits(uint64_t* state) {
  *state = *state * 6364136223846793005u + 1442695040888963407u;
  return *state >> 33;
}

PagesMemory MapOrDie(int64_t bytes) {
  auto memory = PagesMemory::Map(bytes);
  if (!memory.ok()) std::abort();
  return *std::move(memory);
}

struct Matrix {
  Matrix(DType type, int32_t n, int32_t k)
      : bytes(PackedBytes(NativeFormat(type), n, k)), memory(MapOrDie(bytes)) {
    packed = {.format = NativeFormat(type), .n = n, .k = k, .data = memory.data()};
    const int64_t blocks = int64_t{n} * k / BlockElements(type);
    std::vector<std::byte> rows(static_cast<size_t>(blocks * BlockBytes(type)));
    uint64_t state = 1;
    for (std::byte& b : rows) b = static_cast<std::byte>(NextBits(&state) & 0xff);
    // Scales and bf16 exponents near 2^-6: nothing overflows or becomes subnormal.
    const uint16_t scale = type == DType::kBF16 ? 0x3c80 : 0x2400;
    for (int64_t i = 0; i < blocks; ++i) {
      if (type != DType::kF8_E4M3) std::memcpy(rows.data() + i * BlockBytes(type), &scale, 2);
      if (type == DType::kF8_E4M3) rows[static_cast<size_t>(i)] &= std::byte{0x77};  // No NaN.
      if (type == DType::kQ4_1) std::memcpy(rows.data() + i * BlockBytes(type) + 2, &scale, 2);
    }
    if (!PackRows(type, rows.data(), 0, n, packed, memory.data()).ok()) std::abort();
  }
  int64_t bytes;
  PagesMemory memory;
  PackedMatrix packed;
};

class Model {
 public:
  Model(DType type, DType head_type)
      : x_(kMaxRows * kMlp), y_(kMaxRows * kMlp), logits_(16 * kVocabulary) {
    for (int32_t layer = 0; layer < kLayers; ++layer) {
      Add({{type, kHidden}, {type, kKv}, {type, kKv}}, kHidden);
      Add({{type, kHidden}}, kHidden);
      Add({{type, kMlp}, {type, kMlp}}, kHidden);
      Add({{type, kHidden}}, kMlp);
    }
    Add({{head_type, kVocabulary}}, kHidden);
    uint64_t state = 7;
    for (float& v : x_) v = static_cast<float>(NextBits(&state) % 2001) * 1e-3f - 1.0f;
    workspace_ = MapOrDie(MatmulWorkspaceBytes(kMaxRows, kMlp));
  }

  size_t Calls(int32_t rows) const { return calls_.size() - (rows > 16 ? 1 : 0); }

  // One product of a step of `rows` rows.
  void Run(size_t call, int32_t rows, cpu::ThreadPool* pool) {
    std::vector<MatmulPart> parts;
    for (const auto& matrix : calls_[call]) {
      const int32_t n = matrix->packed.n;
      parts.push_back({.weights = &matrix->packed,
                       .y = n == kVocabulary ? logits_.data() : y_.data(),
                       .y_stride = n});
    }
    MatmulArgs args;
    args.x = x_.data();
    args.x_stride = calls_[call].front()->packed.k;
    args.rows = rows;
    args.parts = parts;
    args.workspace = workspace_.data();
    args.workspace_bytes = MatmulWorkspaceBytes(kMaxRows, kMlp);
    if (!cpu::Matmul(args, Stream{.pool = pool}).ok()) std::abort();
  }

  int64_t Bytes() const { return Sum(16, true); }
  int64_t Weights(int32_t rows) const { return Sum(rows, false); }

 private:
  struct Shape {
    DType type;
    int32_t n;
  };
  void Add(const std::vector<Shape>& shapes, int32_t k) {
    calls_.emplace_back();
    for (const Shape& s : shapes) {
      calls_.back().push_back(std::make_unique<Matrix>(s.type, s.n, k));
    }
  }
  int64_t Sum(int32_t rows, bool bytes) const {
    int64_t sum = 0;
    for (size_t i = 0; i < Calls(rows); ++i) {
      for (const auto& m : calls_[i]) sum += bytes ? m->bytes : int64_t{m->packed.n} * m->packed.k;
    }
    return sum;
  }

  std::vector<std::vector<std::unique_ptr<Matrix>>> calls_;
  std::vector<float> x_;
  std::vector<float> y_;
  std::vector<float> logits_;
  PagesMemory workspace_;
};

// Best of several sweeps of all workers over a buffer as large as the weights.
double ReadBandwidth(int64_t bytes, cpu::ThreadPool* pool) {
  PagesMemory memory = MapOrDie(bytes);
  std::memset(memory.data(), 1, static_cast<size_t>(bytes));
  std::vector<uint64_t> sinks(static_cast<size_t>(pool->threads()) * 8);
  double best = 0;
  for (int sweep = 0; sweep < 40; ++sweep) {
    const double start = Seconds();
    pool->ForEachWorker([&](int32_t worker) {
      const auto range = pool->Part(bytes, worker, 64);
      uint64_t sums[8] = {};
      for (int64_t i = range.begin; i + 64 <= range.end; i += 64) {
        __builtin_prefetch(memory.data() + i + 3072);
        uint64_t line[8];
        std::memcpy(line, memory.data() + i, 64);
        for (int j = 0; j < 8; ++j) sums[j] += line[j];
      }
      for (const uint64_t sum : sums) sinks[static_cast<size_t>(worker) * 8] += sum;
    });
    best = std::max(best, static_cast<double>(bytes) / (Seconds() - start));
  }
  if (sinks[0] == 0) std::abort();  // The sums are used.
  return best;
}

// One worker a processor, as far as this process may use them: a scheduler that leaves caller and
// worker on one processor for a while would be measured instead of the kernels.
void Pin(cpu::ThreadPool* pool) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  if (CPU_COUNT(&allowed) < pool->threads()) return;
  pool->ForEachWorker([&](int32_t worker) {
    int32_t seen = 0;
    for (int32_t id = 0; id < CPU_SETSIZE; ++id) {
      if (!CPU_ISSET(static_cast<size_t>(id), &allowed) || seen++ != worker) continue;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(static_cast<size_t>(id), &one);
      sched_setaffinity(0, sizeof(one), &one);
    }
  });
}

// A step's time as the sum of each product's best over many steps: what the machine does when
// nobody else is on it. All weights still pass by between two uses of a matrix.
double BestStep(Model* model, int32_t rows, cpu::ThreadPool* pool) {
  std::vector<double> best(model->Calls(rows), 1e9);
  const double stop = Seconds() + 1.0;
  for (int i = 0; i < 5 || Seconds() < stop; ++i) {
    for (size_t call = 0; call < best.size(); ++call) {
      const double start = Seconds();
      model->Run(call, rows, pool);
      best[call] = std::min(best[call], Seconds() - start);
    }
  }
  return std::accumulate(best.begin(), best.end(), 0.0);
}

void RunModel(const char* name, DType type, DType head, const std::vector<cpu::GemmTarget>& targets,
              cpu::ThreadPool* pool) {
  Model model(type, head);
  for (const cpu::GemmTarget target : targets) {
    if (!cpu::SetGemmTargetForTest(target)) continue;
    const double probe = ReadBandwidth(model.Bytes(), pool);
    const double one = BestStep(&model, 1, pool);
    std::printf("%-24s %-5s probe %5.1f GB/s | M=1 %5.1f GB/s %.2f %4.0f/s", GemmTargetName(target),
                name, probe * 1e-9, static_cast<double>(model.Bytes()) / one * 1e-9,
                static_cast<double>(model.Bytes()) / one / probe, 1.0 / one);
    for (const int32_t rows : {4, 8, 16, 64, 512}) {
      const double seconds = BestStep(&model, rows, pool);
      std::printf(" | M=%d %.2f %.0f/s", rows,
                  2e-12 * static_cast<double>(model.Weights(rows)) * rows / seconds,
                  rows / seconds);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace morphserve::kernels

int main(int argc, char** argv) {
  using namespace morphserve;           // NOLINT: a program's own names.
  using namespace morphserve::kernels;  // NOLINT
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  if (threads < 1) {
    std::fprintf(stderr, "usage: gemm_bench [threads] [target number ...]\n");
    return 2;
  }
  std::vector<cpu::GemmTarget> targets;
  for (int i = 2; i < argc; ++i)
    targets.push_back(static_cast<cpu::GemmTarget>(std::atoi(argv[i])));
  if (targets.empty()) {
    targets = {cpu::GemmTarget::kAvx2, cpu::GemmTarget::kAvx512, cpu::GemmTarget::kAvx512Vnni,
               cpu::GemmTarget::kAmx};
  }
  const auto pool = cpu::ThreadPool::Create(threads, true);
  Pin(pool.get());
  std::printf("threads %d; M > 1: Top/s and rows/s\n", threads);
  RunModel("Q4_1", DType::kQ4_1, DType::kQ8_0, targets, pool.get());
  RunModel("Q8_0", DType::kQ8_0, DType::kQ8_0, targets, pool.get());
  RunModel("bf16", DType::kBF16, DType::kBF16, targets, pool.get());
  RunModel("fp8", DType::kF8_E4M3, DType::kBF16, targets, pool.get());
  return 0;
}
