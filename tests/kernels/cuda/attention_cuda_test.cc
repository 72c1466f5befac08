// Paged attention on the device against the fp64 oracle, and bit for bit against itself beside
// other segments. Catches a mask off by one, a part merged twice or left out, values read past the
// sequence's end (unwritten places hold NaN), operands of the tensor cores in the wrong order, and
// splits that depend on the batch.
#include "kernels/qk_rope_append.h"
#include "tests/kernels/cuda/attention_cuda_fixture.h"

namespace morphserve::kernels::cuda {
namespace {

using AttentionCudaTest = CudaTest;

constexpr KvDType kTypes[] = {KvDType::kF32, KvDType::kF16, KvDType::kBF16, KvDType::kE4m3};

double LargestError(const float* is, const std::vector<double>& expected) {
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(static_cast<double>(is[i]) - expected[i]);
    if (!(error <= largest)) largest = error;  // NaN stays.
  }
  return largest;
}
double LargestDifference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

// Decode rows keep what rounding the operands loses: they are as good as f32.
constexpr double kDecodeBound = 2e-5;

TEST_F(AttentionCudaTest, DecodeRowsAgreeWithTheOracle) {
  const AttentionShape shapes[] = {{9, 3, 64},  {4, 4, 40},   {8, 1, 80}, {8, 2, 128}, {3, 1, 256},
                                   {28, 1, 64}, {16, 1, 128}, {2, 1, 1},  {2, 1, 192}};
  for (const AttentionShape& shape : shapes) {
    for (KvDType type : kTypes) {
      CudaSequence sequence(shape, type, 1030, 7);
      for (int32_t position : {0, 1, 15, 16, 63, 64, 127, 128, 200, 255, 256, 300, 1023, 1029}) {
        const auto out = sequence.Run(position, position + 1, 0);
        EXPECT_LT(LargestError(out.data(), sequence.Expected(position, 0, false)), kDecodeBound)
            << "d " << shape.dim << " heads " << shape.heads << " type " << static_cast<int>(type)
            << " position " << position;
      }
    }
  }
}

TEST_F(AttentionCudaTest, ChunksAreWithinTwiceThePlainErrorHoweverTheyAreCut) {
  const AttentionShape shapes[] = {{6, 2, 64}, {4, 1, 128}, {2, 1, 256}, {3, 3, 7}};
  for (const AttentionShape& shape : shapes) {
    for (KvDType type : kTypes) {
      CudaSequence sequence(shape, type, 330, 8);
      for (int32_t size : {330, 15, 63, 64, 65, 127}) {
        double error = 0, plain = 0;
        for (int32_t begin = 0; begin < 330; begin += size) {
          const int32_t end = std::min(330, begin + size);
          const auto out = sequence.Run(begin, end, 0);
          for (int32_t p = begin; p < end; p += 1 + (end - begin) / 5) {
            const auto expected = sequence.Expected(p, 0, false);
            const float* const row = out.data() + static_cast<size_t>(p - begin) * sequence.Width();
            const double own = LargestError(row, expected);
            if (!(own <= error)) error = own;
            plain = std::max(plain, LargestDifference(sequence.Expected(p, 0, true), expected));
          }
        }
        EXPECT_LT(error, 2 * plain + kDecodeBound)
            << "d " << shape.dim << " type " << static_cast<int>(type) << " chunks of " << size;
      }
    }
  }
}

TEST_F(AttentionCudaTest, WindowsOfEverySizeAgreeWithTheOracle) {
  for (const AttentionShape& shape : {AttentionShape{6, 2, 64}, AttentionShape{2, 1, 24}}) {
    CudaSequence sequence(shape, KvDType::kF16, 700, 8);
    CudaSequence small(shape, KvDType::kE4m3, 700, 8);
    const auto last = small.Run(699, 700, 300), rows = small.Run(100, 700, 300);
    const auto seen = small.Expected(699, 300, false);
    EXPECT_LT(LargestError(last.data(), seen), kDecodeBound);
    EXPECT_LT(LargestError(&rows[599 * small.Width()], seen),
              3 * LargestDifference(small.Expected(699, 300, true), seen) + kDecodeBound);
    for (int32_t window : {1, 2, 63, 64, 65, 255, 300, 1000}) {
      const auto chunk = sequence.Run(100, 700, window);
      for (int32_t position : {100, 127, 128, 163, 319, 320, 512, 620, 699}) {
        const auto expected = sequence.Expected(position, window, false);
        const double plain = LargestDifference(sequence.Expected(position, window, true), expected);
        const size_t at = static_cast<size_t>(position - 100) * sequence.Width();
        EXPECT_LT(LargestError(&chunk[at], expected), 3 * plain + kDecodeBound)
            << "window " << window << " position " << position;
        const auto row = sequence.Run(position, position + 1, window);
        EXPECT_LT(LargestError(row.data(), expected), kDecodeBound)
            << "window " << window << " position " << position;
      }
    }
  }
}

// A decode row, a chunk, padding of both sorts, skipped rows, in one call with larger bounds.
TEST_F(AttentionCudaTest, SegmentsOfACallAreAsIfAloneAndNothingElseIsWritten) {
  for (KvDType type : kTypes) {
    const CudaSequence sequence({8, 2, 64}, type, 900, 9);
    const size_t width = sequence.Width();
    // Rows 0..9 of the arrays stand for positions 100..109, 10 for 899, 11 for 5.
    std::vector<float> q;
    for (int32_t p : {100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 899, 5, 0, 0, 0, 0}) {
      const auto row =
          sequence.q().begin() + static_cast<std::ptrdiff_t>(p) * static_cast<int>(width);
      q.insert(q.end(), row, row + static_cast<std::ptrdiff_t>(width));
    }
    const DeviceArray<float> dq(q), out(q.size());
    const DeviceArray<int32_t> list(
        std::vector<int32_t>{11, 0, 1, 2, 3, -1, 5, 6, 7, 8, 9, 10, 12, 13, 14, -1});
    AttentionArgs args = sequence.Args(dq.data(), out.data(), 0);
    args.row_list = list.data();
    args.rows_max = 200;
    args.kv_len_max = 5000;
    const int32_t* const table = sequence.device_table();
    CudaSequence::RunSegments(
        &args, {{.row_begin = 0, .row_count = 1, .kv_len = 6, .page_table = table},
                {.row_begin = 3, .row_count = 0, .kv_len = 900, .page_table = table},
                {.row_begin = 1, .row_count = 10, .kv_len = 110, .page_table = table},
                {.row_begin = 11, .row_count = 1, .kv_len = 900, .page_table = table},
                {.row_begin = 12, .row_count = 1, .kv_len = 0},
                {.row_begin = 13, .row_count = 2, .kv_len = 0},
                {.row_begin = 15, .row_count = 1, .kv_len = 3, .page_table = table}});
    const std::vector<float> is = out.Read();
    const std::vector<float> chunk = sequence.Run(100, 110, 0), last = sequence.Run(899, 900, 0),
                             early = sequence.Run(5, 6, 0), zeros(width, 0.0f);
    for (size_t row = 0; row < 16; ++row) {
      const float* const own = &is[row * width];
      if (row == 4 || row == 15) {  // On no list.
        EXPECT_TRUE(std::isnan(own[0]) && std::isnan(own[width - 1])) << row;
      } else if (row < 10) {
        EXPECT_TRUE(SameBits(own, &chunk[row * width], width)) << row;
      } else {
        const float* const expected = row == 10   ? last.data()
                                      : row == 11 ? early.data()
                                                  : zeros.data();
        EXPECT_TRUE(SameBits(own, expected, width)) << row;
      }
    }
  }
}

// The last row of a sequence as a decode step makes it: appended by a call of its own, or by the
// attention's. Both see the same values, so every bit of the results and of the pages is equal.
struct DecodedRow {
  std::vector<float> out;
  std::vector<std::byte> pages;
};

struct DecodeCase {
  AttentionShape shape;
  int32_t length;
  int32_t window = 0;
  bool normed = true;
  bool interleaved = false;
};

DecodedRow DecodeRow(const DecodeCase& c, KvDType type, bool together) {
  const AttentionShape& shape = c.shape;
  const CudaSequence sequence(shape, type, c.length, 11);
  Numbers numbers(12);
  const auto dim = static_cast<size_t>(shape.dim);
  const DeviceArray<float> q(numbers.Normals(sequence.Width())),
      k(numbers.Normals(sequence.KvWidth())), v(numbers.Normals(sequence.KvWidth())),
      q_norm(numbers.Normals(dim)), k_norm(numbers.Normals(dim)), cos(numbers.Normals(dim / 2)),
      sin(numbers.Normals(dim / 2)), out(sequence.Width());
  const DeviceArray<int32_t> page(std::vector<int32_t>{sequence.PageOf(c.length - 1)}),
      offset(std::vector<int32_t>{(c.length - 1) % kPageTokens});
  const QkRopeAppendArgs append = {.q = q.data(),
                                   .q_stride = static_cast<int64_t>(sequence.Width()),
                                   .k = k.data(),
                                   .k_stride = static_cast<int64_t>(sequence.KvWidth()),
                                   .v = v.data(),
                                   .v_stride = static_cast<int64_t>(sequence.KvWidth()),
                                   .q_norm = c.normed ? q_norm.data() : nullptr,
                                   .k_norm = c.normed ? k_norm.data() : nullptr,
                                   .norm_eps = 1e-6f,
                                   .cos = cos.data(),
                                   .sin = sin.data(),
                                   .rotary_dim = c.normed ? shape.dim : shape.dim / 4 * 2,
                                   .interleaved = c.interleaved,
                                   .rows = 1,
                                   .page_of_row = page.data(),
                                   .offset_of_row = offset.data(),
                                   .kv_base = sequence.device_pages().data(),
                                   .kv_dtype = type,
                                   .heads = shape.heads,
                                   .kv_heads = shape.kv_heads,
                                   .head_dim = shape.dim};
  AttentionArgs args = sequence.Args(q.data(), out.data(), c.window);
  args.append = &append;
  if (!together) {
    EXPECT_TRUE(CudaBackend()->qk_rope_append(append, {}).ok());
    args.append = nullptr;
  }
  CudaSequence::RunSegments(
      &args, {{.row_count = 1, .kv_len = c.length, .page_table = sequence.device_table()}});
  return {out.Read(), sequence.device_pages().Read()};
}

void ExpectTogetherAsApart(const DecodeCase& c, KvDType type) {
  const DecodedRow apart = DecodeRow(c, type, false), together = DecodeRow(c, type, true);
  EXPECT_TRUE(SameBits(apart.out.data(), together.out.data(), apart.out.size()))
      << "d " << c.shape.dim << " heads " << c.shape.heads << " type " << static_cast<int>(type)
      << " length " << c.length << " window " << c.window;
  EXPECT_EQ(apart.pages, together.pages) << "d " << c.shape.dim << " length " << c.length;
}

TEST_F(AttentionCudaTest, ARowAppendedByAttentionIsAsIfAppendedBefore) {
  for (const AttentionShape& shape :
       {AttentionShape{9, 3, 64}, AttentionShape{8, 2, 128}, AttentionShape{28, 1, 64},
        AttentionShape{3, 1, 256}, AttentionShape{4, 2, 40}}) {
    for (KvDType type : kTypes) {
      for (int32_t length : {1, 64, 65, 128, 129, 257, 900, 1025, 3000, 4097}) {
        ExpectTogetherAsApart({.shape = shape, .length = length}, type);
      }
    }
  }
}

void ExpectTogetherAsApartInEveryGroup(int32_t dim) {
  for (int32_t group = 1; group <= 9; ++group) {
    const AttentionShape shape = {group * 2, 2, dim};
    for (int32_t length : {200, 1000}) {
      ExpectTogetherAsApart({.shape = shape, .length = length, .normed = false}, KvDType::kBF16);
      ExpectTogetherAsApart({.shape = shape, .length = length, .window = 150, .interleaved = true},
                            KvDType::kF16);
    }
  }
}
TEST_F(AttentionCudaTest, ARowAppendedByAttentionIsSoInEveryGroupOf64) {
  ExpectTogetherAsApartInEveryGroup(64);
}
TEST_F(AttentionCudaTest, ARowAppendedByAttentionIsSoInEveryGroupOf128) {
  ExpectTogetherAsApartInEveryGroup(128);
}
TEST_F(AttentionCudaTest, ARowAppendedByAttentionIsSoInEveryGroupOf256) {
  ExpectTogetherAsApartInEveryGroup(256);
}

// The row at `position` as each of so many rows of a call whose bound is `kv_len_max`.
std::vector<float> RunCopies(const CudaSequence& sequence, int32_t position, int32_t copies,
                             int32_t kv_len_max, int32_t window) {
  const size_t width = sequence.Width();
  const auto row =
      sequence.q().begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(position) * width);
  std::vector<float> q;
  std::vector<AttentionSegment> segments;
  for (int32_t i = 0; i < copies; ++i) {
    q.insert(q.end(), row, row + static_cast<std::ptrdiff_t>(width));
    segments.push_back({.row_begin = i,
                        .row_count = 1,
                        .kv_len = position + 1,
                        .page_table = sequence.device_table()});
  }
  const DeviceArray<float> dq(q), out(q.size());
  AttentionArgs args = sequence.Args(dq.data(), out.data(), window);
  args.kv_len_max = kv_len_max;
  CudaSequence::RunSegments(&args, segments);
  return out.Read();
}

// One row has a block a part, few rows two or four parts a block, many rows as many as make up a
// block's work; under a larger bound parts meet in memory, else in a cluster or in a block.
TEST_F(AttentionCudaTest, ARowHasTheSameBitsInEveryFormOfTheLaunch) {
  for (const auto& [shape, type] : {std::pair(AttentionShape{8, 2, 128}, KvDType::kBF16),
                                    std::pair(AttentionShape{9, 3, 64}, KvDType::kBF16),
                                    std::pair(AttentionShape{3, 1, 256}, KvDType::kBF16),
                                    std::pair(AttentionShape{8, 2, 128}, KvDType::kE4m3)}) {
    const CudaSequence sequence(shape, type, 4300, 13);
    const size_t width = sequence.Width();
    for (int32_t position : {0, 127, 128, 700, 1023, 1024, 1500, 4095, 4096, 4299}) {
      for (int32_t window : {0, 1000}) {
        const auto alone = sequence.Run(position, position + 1, window);
        EXPECT_LT(LargestError(alone.data(), sequence.Expected(position, window, false)),
                  kDecodeBound)
            << "d " << shape.dim << " position " << position << " window " << window;
        for (int32_t copies : {1, 12, 20, 40, 140}) {
          for (int32_t bound : {0, 40000}) {
            const auto all = RunCopies(sequence, position, copies, bound, window);
            for (int32_t i = 0; i < copies; ++i) {
              ASSERT_TRUE(SameBits(&all[static_cast<size_t>(i) * width], alone.data(), width))
                  << "d " << shape.dim << " position " << position << " window " << window
                  << " row " << i << " of " << copies << " bound " << bound;
            }
          }
        }
      }
    }
  }
}

TEST_F(AttentionCudaTest, LargeScoresAndEqualValuesStayExact) {
  for (KvDType type : kTypes) {
    CudaSequence sequence({4, 2, 64}, type, 400, 10, 60.0f);
    for (int32_t position : {70, 399}) {
      const auto out = sequence.Run(position, position + 1, 0);
      EXPECT_LT(LargestError(out.data(), sequence.Expected(position, 0, false)), 50 * kDecodeBound);
    }
    Numbers numbers(3);
    std::vector<float> v(400 * sequence.KvWidth(), 0.75f);
    sequence.Fill(numbers.Normals(400 * sequence.KvWidth()), v);
    const auto chunk = sequence.Run(0, 400, 0);
    for (float x : chunk) ASSERT_NEAR(x, 0.75f, type == KvDType::kBF16 ? 4e-3 : 5e-4);
    const auto row = sequence.Run(399, 400, 0);
    for (float x : row) ASSERT_NEAR(x, 0.75f, 1e-5);
  }
}

}  // namespace
}  // namespace morphserve::kernels::cuda
