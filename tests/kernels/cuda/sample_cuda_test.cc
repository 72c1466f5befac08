// Sampling on the device against the CPU's, token by token, over random logits of several kinds,
// cuts, masks and penalties. Catches another order among equal logits, a cut off by one, a search
// that stops in the wrong interval, a list read for the wrong row, and log-probabilities of changed
// logits. A draw may differ only where the uniform lies at an edge, and that is checked.
#include <algorithm>
#include <vector>

#include "kernels/cuda/sample.h"
#include "tests/kernels/cuda/cuda_fixture.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/reference/sample_reference.h"

namespace morphserve::kernels::cuda {
namespace {

using SampleCudaTest = CudaTest;

constexpr float kInf = std::numeric_limits<float>::infinity();

// Logits of several kinds: smooth, coarse (many ties), all equal, one giant, with -inf among them,
// huge, tiny differences, spread over both signs of zero.
std::vector<float> LogitsOfKind(int kind, size_t vocab, Numbers* numbers) {
  std::vector<float> logits = numbers->Normals(vocab, 3.0f);
  for (float& l : logits) {
    if (kind == 1) l = std::round(l);
    if (kind == 2) l = 0.25f;
    if (kind == 4 && numbers->Below(3) == 0) l = -kInf;
    if (kind == 5) l *= 1e4f;
    if (kind == 6) l = 1.0f + l * 1e-7f;
    if (kind == 7) l = numbers->Below(2) == 0 ? 0.0f : -0.0f;
  }
  if (kind == 3) logits[vocab / 2] = 60.0f;
  logits[0] = std::max(logits[0], -50.0f);
  return logits;
}
constexpr int kKinds = 8;

// A row of a batch with the memory of its lists.
struct Row {
  std::vector<float> logits;
  SampleArgs args;
  int32_t score_token = -1;
  std::vector<TokenCount> seen;
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<int32_t> banned, allowed;

  SampleRow Entry() const {
    SampleRow row = {.args = args, .score_token = score_token};
    row.args.seen = seen;
    row.args.logit_bias = bias;
    row.args.banned = banned;
    row.args.allowed = allowed;
    return row;
  }
  SampleResult OnCpu(int32_t pieces) const {
    SampleScratch scratch;
    const auto vocab = static_cast<int32_t>(logits.size());
    std::vector<float> copy = logits;
    if (score_token >= 0) {
      return cpu::ScoreToken(copy.data(), vocab, pieces, score_token, args.logprobs, &scratch);
    }
    SampleArgs known = Entry().args;
    known.logits = copy.data();
    known.vocab = vocab;
    known.piece_count = pieces;
    return cpu::Sample(known, &scratch);
  }
};

std::vector<SampleResult> OnDevice(const std::vector<Row>& rows, int32_t pieces, Stream stream,
                                   std::vector<int32_t>* tokens = nullptr) {
  const size_t vocab = rows[0].logits.size(), stride = vocab + 3;
  std::vector<float> logits(rows.size() * stride, 1e30f);  // What lies between rows is not read.
  std::vector<SampleRow> entries;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::copy(rows[r].logits.begin(), rows[r].logits.end(),
              logits.begin() + static_cast<ptrdiff_t>(r * stride));
    entries.push_back(rows[r].Entry());
  }
  const DeviceArray<float> device(logits);
  auto sampler = DeviceSampler::Create({.rows_max = static_cast<int32_t>(rows.size()),
                                        .vocab = static_cast<int32_t>(vocab),
                                        .piece_count = pieces});
  EXPECT_TRUE(sampler.ok()) << sampler.status();
  const absl::Status status =
      (*sampler)->Enqueue(entries, device.data(), static_cast<int64_t>(stride), stream);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(Synchronize(stream).ok());
  std::vector<SampleResult> results;
  (*sampler)->Results(&results);
  if (tokens != nullptr) {
    tokens->resize(rows.size());
    EXPECT_TRUE(CopyToHost(tokens->data(), (*sampler)->tokens(),
                           static_cast<int64_t>(rows.size()) * 4, stream)
                    .ok());
    EXPECT_TRUE(Synchronize(stream).ok());
  }
  EXPECT_TRUE(SameBits(device.Read().data(), logits.data(), logits.size())) << "logits changed";
  return results;
}

// The same token, or one whose interval the uniform touches.
bool SameOrAtAnEdge(const Row& row, const SampleResult& cpu, const SampleResult& device) {
  if (cpu.token == device.token) return true;
  if (row.args.temperature == 0 || device.token < 0 || !row.bias.empty() || !row.banned.empty() ||
      !row.allowed.empty() || !row.seen.empty()) {
    return false;
  }
  std::vector<float> divided = row.logits;
  for (float& l : divided) l /= row.args.temperature;
  const auto survivors =
      reference::Survivors(divided, row.args.top_k, static_cast<double>(row.args.top_p),
                           static_cast<double>(row.args.min_p));
  const auto u =
      static_cast<double>(PhiloxUniform(row.args.seed, row.args.position, row.args.choice));
  return reference::Margin(survivors, device.token, u) > -1e-6;
}

void ExpectNear(float cpu, float device, const std::string& what) {
  if (cpu == device) return;  // Infinite as well.
  ASSERT_NEAR(device, cpu, 2e-6 * (1 + std::abs(static_cast<double>(cpu)))) << what;
}

void ExpectSame(const SampleResult& cpu, const SampleResult& device, const std::string& what) {
  ASSERT_EQ(device.finite, cpu.finite) << what;
  ASSERT_EQ(device.token, cpu.token) << what;
  ASSERT_EQ(device.rank, cpu.rank) << what;
  ExpectNear(cpu.logprob, device.logprob, what);
  ASSERT_EQ(device.top.size(), cpu.top.size()) << what;
  for (size_t i = 0; i < cpu.top.size(); ++i) {
    ASSERT_EQ(device.top[i].id, cpu.top[i].id) << what << " place " << i;
    ExpectNear(cpu.top[i].logprob, device.top[i].logprob, what);
  }
}

TEST_F(SampleCudaTest, GivesTheTokensOfTheCpuForEveryCutAndKindOfLogits) {
  struct Cut {
    int32_t top_k;
    float top_p, min_p;
  };
  const Cut cuts[] = {{0, 1, 0},     {1, 1, 0},       {5, 1, 0},        {40, 0.9f, 0},
                      {0, 0.95f, 0}, {0, 0.5f, 0.1f}, {0, 1, 0.05f},    {100, 0.99f, 0.01f},
                      {0, 0.0f, 0},  {100000, 1, 0},  {0, 0.99999f, 0}, {3, 1, 0.9f},
                      {0, 1, 1.0f},  {3000, 1, 0},    {2500, 0.9f, 0}};
  int checked = 0, differing = 0;
  Numbers numbers(77);
  for (const size_t vocab : {1, 3, 63, 64, 65, 1000, 5003, 49152}) {
    std::vector<Row> rows;
    for (int kind = 0; kind < kKinds; ++kind) {
      for (const Cut& cut : cuts) {
        for (int draw = 0; draw < 2; ++draw) {
          Row& row = rows.emplace_back();
          row.logits = LogitsOfKind(kind, vocab, &numbers);
          row.args.temperature =
              kind == 5 ? 1000.0f : 0.5f + static_cast<float>(numbers.Below(4)) / 2;
          row.args.top_k = cut.top_k;
          row.args.top_p = cut.top_p;
          row.args.min_p = cut.min_p;
          row.args.seed = numbers.Bits();
          row.args.position = static_cast<uint32_t>(numbers.Bits());
          row.args.choice = 3;
        }
      }
    }
    std::vector<int32_t> tokens;
    const auto pieces = static_cast<int32_t>(vocab);
    const auto results = OnDevice(rows, pieces, stream(), &tokens);
    ASSERT_EQ(results.size(), rows.size());
    for (size_t r = 0; r < rows.size(); ++r) {
      const SampleResult expected = rows[r].OnCpu(pieces);
      ASSERT_TRUE(results[r].finite);
      ASSERT_EQ(tokens[r], results[r].token);
      ++checked;
      differing += results[r].token != expected.token;
      ASSERT_TRUE(SameOrAtAnEdge(rows[r], expected, results[r]))
          << "vocab " << vocab << " row " << r << " top_k " << rows[r].args.top_k << " top_p "
          << rows[r].args.top_p << " min_p " << rows[r].args.min_p << ": " << results[r].token
          << " against " << expected.token;
    }
    const auto again = OnDevice(rows, pieces, stream());
    for (size_t r = 0; r < rows.size(); ++r) ASSERT_EQ(again[r].token, results[r].token);
  }
  EXPECT_GT(checked, 1500);
  EXPECT_LE(differing, checked / 500);
}

TEST_F(SampleCudaTest, GreedyMasksBiasesAndPenaltiesAreThoseOfTheCpu) {
  Numbers numbers(78);
  for (const size_t vocab : {5, 300, 5003}) {
    const auto n = static_cast<int32_t>(vocab);
    const int32_t pieces = n - 2;
    std::vector<Row> rows;
    for (int i = 0; i < 96; ++i) {
      Row& row = rows.emplace_back();
      row.logits = LogitsOfKind(i % 5, vocab, &numbers);
      row.logits[vocab - 1] = 40.0f;  // The largest, and no token's.
      row.args.temperature = i % 3 == 0 ? 0.0f : 0.8f;
      row.args.seed = numbers.Bits();
      row.args.top_k = i % 7 == 0 ? 20 : 0;
      row.args.top_p = i % 5 == 0 ? 0.9f : 1.0f;
      row.args.logprobs = i % 4 - 1 == 2 ? 20 : i % 4 - 1;
      const auto id = [&] { return numbers.Below(n + 4) - 2; };  // Some are no ids.
      if (i & 1) {
        for (int j = 0; j < 9; ++j) row.bias.emplace_back(id(), numbers.Normal() * 5);
        row.bias.push_back(row.bias[3]);  // Twice the same id.
      }
      if (i & 2) {
        for (int j = 0; j < 3; ++j) row.banned.push_back(id());
      }
      if (i & 4) {
        for (int j = 0; j < 4 + i; ++j) row.allowed.push_back(id());
        row.allowed.push_back(1);
      }
      if (i & 8) {
        row.args.repetition_penalty = 1.3f;
        row.args.frequency_penalty = i & 16 ? 0.2f : 0;
        row.args.presence_penalty = i & 32 ? 0.4f : 0;
      }
      for (int32_t token = 0; token < n; token += 1 + numbers.Below(3)) {
        row.seen.push_back({.id = token, .output_count = numbers.Below(3)});
      }
    }
    const auto results = OnDevice(rows, pieces, stream());
    for (size_t r = 0; r < rows.size(); ++r) {
      ExpectSame(rows[r].OnCpu(pieces), results[r],
                 "vocab " + std::to_string(vocab) + " row " + std::to_string(r));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(SampleCudaTest, ScoresGivenTokensAndListsTheMostLikely) {
  Numbers numbers(79);
  for (const size_t vocab : {5, 300, 49152}) {
    std::vector<Row> rows;
    const auto pieces = static_cast<int32_t>(vocab) - 1;
    for (int kind = 0; kind < kKinds; ++kind) {
      for (const int32_t top : {0, 1, 20, 1000}) {
        Row& row = rows.emplace_back();
        row.logits = LogitsOfKind(kind, vocab, &numbers);
        row.score_token = numbers.Below(pieces);
        row.args.logprobs = top;
      }
    }
    rows[0].score_token = pieces;  // No token.
    rows[1].logits[2] = std::numeric_limits<float>::quiet_NaN();
    const auto results = OnDevice(rows, pieces, stream());
    for (size_t r = 0; r < rows.size(); ++r) {
      ExpectSame(rows[r].OnCpu(pieces), results[r],
                 "vocab " + std::to_string(vocab) + " row " + std::to_string(r));
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(SampleCudaTest, ReportsWhatIsNotFiniteOrHasNoSurvivor) {
  std::vector<Row> rows(6);
  for (Row& row : rows) row.logits = {1, 2, 3, 2, 1, 0, -1};
  rows[0].logits[6] = kInf;
  rows[1].logits[0] = std::numeric_limits<float>::quiet_NaN();
  rows[2].logits.assign(7, -kInf);
  rows[3].banned = {0, 1, 2, 3, 4, 5, 6};
  rows[4].allowed = {-4, 99};
  rows[5].args.temperature = 1e-45f;
  const auto results = OnDevice(rows, 7, stream());
  for (size_t r = 0; r < 5; ++r) {
    EXPECT_FALSE(results[r].finite) << r;
    EXPECT_EQ(results[r].token, -1) << r;
  }
  EXPECT_EQ(results[5].token, 2);
}

TEST_F(SampleCudaTest, TwoBatchesMayBeUnderWay) {
  auto sampler = DeviceSampler::Create({.rows_max = 2, .vocab = 4, .piece_count = 4});
  ASSERT_TRUE(sampler.ok());
  const DeviceArray<float> logits(std::vector<float>{0, 3, 1, 2, 5, 3, 1, 2});
  std::vector<SampleRow> rows(2);
  for (SampleRow& row : rows) row.args.temperature = 0;
  std::vector<std::pair<int32_t, float>> many(5000, {3, 0.01f});
  ASSERT_TRUE((*sampler)->Enqueue(rows, logits.data(), 4, stream()).ok());
  rows[0].args.logit_bias = many;  // Grows the memory of the second batch alone.
  ASSERT_TRUE((*sampler)->Enqueue(rows, logits.data(), 4, stream()).ok());
  EXPECT_EQ((*sampler)->Enqueue(rows, logits.data(), 4, stream()).code(),
            absl::StatusCode::kFailedPrecondition);
  Finish();
  std::vector<SampleResult> results;
  (*sampler)->Results(&results);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].token, 1);
  EXPECT_EQ(results[1].token, 0);
  (*sampler)->Results(&results);
  EXPECT_EQ(results[0].token, 3);
  (*sampler)->Results(&results);
  EXPECT_TRUE(results.empty());
  rows.resize(3);
  EXPECT_EQ((*sampler)->Enqueue(rows, logits.data(), 4, stream()).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace morphserve::kernels::cuda
