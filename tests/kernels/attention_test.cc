// Paged attention against the fp64 oracle, and bit for bit against itself: the same query as a
// decode row, inside chunks of any size, beside other sequences and on any number of threads.
// Catches a mask off by one, a block merged twice or out of order, values read past the sequence's
// end (unwritten places hold NaN), and any arithmetic that depends on which rows share a tile.
#include "kernels/attention.h"

#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/kv_pages_fixture.h"
#include "tests/reference/attention_reference.h"

namespace morphserve::kernels {
namespace {

struct Shape {
  int32_t heads, kv_heads, dim;
};

// One sequence with a filled cache and a query at every position.
class Sequence {
 public:
  Sequence(const Shape& s, KvDType type, int32_t length, uint64_t seed, float q_scale = 1.0f)
      : shape_(s),
        type_(type),
        length_(length),
        pages_(type, s.kv_heads, s.dim, (length + kPageTokens - 1) / kPageTokens),
        table_(pages_.Table(0, (length + kPageTokens - 1) / kPageTokens)) {
    Numbers numbers(seed);
    const auto n = static_cast<size_t>(length);
    q_ = numbers.Normals(n * Width(), q_scale);
    Fill(numbers.Normals(n * KvWidth()), numbers.Normals(n * KvWidth()));
  }

  // Writes K and V of all positions.
  void Fill(std::vector<float> k, std::vector<float> v) {
    std::vector<int32_t> page_of_row, offset_of_row;
    for (int32_t p = 0; p < length_; ++p) {
      page_of_row.push_back(table_[static_cast<size_t>(p / kPageTokens)]);
      offset_of_row.push_back(p % kPageTokens);
    }
    std::vector<float> no_q(static_cast<size_t>(length_) * Width());
    auto pool = cpu::ThreadPool::Create(1, false);
    ASSERT_TRUE(cpu::QkRopeAppend({.q = no_q.data(),
                                   .q_stride = static_cast<int64_t>(Width()),
                                   .k = k.data(),
                                   .k_stride = static_cast<int64_t>(KvWidth()),
                                   .v = v.data(),
                                   .v_stride = static_cast<int64_t>(KvWidth()),
                                   .rows = length_,
                                   .page_of_row = page_of_row.data(),
                                   .offset_of_row = offset_of_row.data(),
                                   .kv_base = pages_.base(),
                                   .kv_dtype = type_,
                                   .heads = shape_.heads,
                                   .kv_heads = shape_.kv_heads,
                                   .head_dim = shape_.dim},
                                  {.pool = pool.get()})
                    .ok());
  }

  size_t Width() const { return static_cast<size_t>(shape_.heads * shape_.dim); }
  size_t KvWidth() const { return static_cast<size_t>(shape_.kv_heads * shape_.dim); }
  float* q(int32_t position) { return q_.data() + static_cast<size_t>(position) * Width(); }
  int32_t length() const { return length_; }
  KvPages& pages() { return pages_; }
  const std::vector<int32_t>& table() const { return table_; }

  AttentionArgs Args(int32_t window) {
    return {.q_stride = static_cast<int64_t>(Width()),
            .out_stride = static_cast<int64_t>(Width()),
            .kv_base = pages_.base(),
            .kv_dtype = type_,
            .heads = shape_.heads,
            .kv_heads = shape_.kv_heads,
            .head_dim = shape_.dim,
            .scale = 1.0f / std::sqrt(static_cast<float>(shape_.dim)),
            .window = window,
            .segments = {}};
  }

  // Rows [begin, end) as one segment.
  std::vector<float> Run(int32_t begin, int32_t end, int32_t window, cpu::ThreadPool* pool) {
    std::vector<float> out(static_cast<size_t>(end - begin) * Width(), 99.0f);
    const AttentionSegment segment = {
        .row_count = end - begin, .kv_len = end, .page_table = table_.data()};
    AttentionArgs args = Args(window);
    args.q = q(begin);
    args.out = out.data();
    args.segments = {&segment, 1};
    Workspace workspace(AttentionWorkspaceBytes(1, end - begin, length_, shape_.heads, shape_.dim,
                                                pool->threads()));
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    const absl::Status status = cpu::PagedAttention(args, {.pool = pool});
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  // The whole row of heads at `position`, in fp64 from the values as cached.
  std::vector<double> Oracle(int32_t position, int32_t window) {
    const int32_t begin = window > 0 ? std::max(0, position - window + 1) : 0;
    std::vector<double> out;
    for (int32_t head = 0; head < shape_.heads; ++head) {
      const int32_t kv_head = head / (shape_.heads / shape_.kv_heads);
      std::vector<std::vector<double>> k, v;
      for (int32_t p = 0; p <= position; ++p) {
        const int32_t address = table_[static_cast<size_t>(p / kPageTokens)];
        k.emplace_back();
        v.emplace_back();
        for (int32_t i = 0; i < shape_.dim; ++i) {
          k.back().push_back(pages_.K(address, kv_head, p % kPageTokens, i));
          v.back().push_back(pages_.V(address, kv_head, p % kPageTokens, i));
        }
      }
      const float* const row = q(position) + head * shape_.dim;
      const float scale = Args(window).scale;
      const auto o =
          reference::AttentionRow({row, row + shape_.dim}, k, v, static_cast<size_t>(begin),
                                  static_cast<size_t>(position) + 1, static_cast<double>(scale));
      out.insert(out.end(), o.begin(), o.end());
    }
    return out;
  }

 private:
  Shape shape_;
  KvDType type_;
  int32_t length_;
  KvPages pages_;
  std::vector<int32_t> table_;
  std::vector<float> q_;
};

constexpr KvDType kTypes[] = {KvDType::kF32, KvDType::kF16, KvDType::kBF16};

class AttentionTest : public testing::Test {
 protected:
  std::unique_ptr<cpu::ThreadPool> one_ = cpu::ThreadPool::Create(1, false);
  std::unique_ptr<cpu::ThreadPool> two_ = cpu::ThreadPool::Create(2, false);
  std::unique_ptr<cpu::ThreadPool> five_ = cpu::ThreadPool::Create(5, false);
};

TEST_F(AttentionTest, AgreesWithTheOracleForEveryShapeAndCacheTypeOnEveryTarget) {
  const Shape shapes[] = {{9, 3, 64},  {4, 4, 40}, {8, 1, 80}, {4, 1, 96}, {2, 2, 128},
                          {3, 1, 256}, {3, 3, 7},  {2, 1, 1},  {28, 1, 20}};
  ForEachTarget([&](const std::string& target, bool) {
    for (const Shape& shape : shapes) {
      for (KvDType type : kTypes) {
        Sequence sequence(shape, type, 301, 7);
        for (int32_t position : {0, 1, 15, 63, 64, 200, 255, 256, 300}) {
          const auto out = sequence.Run(position, position + 1, 0, two_.get());
          const auto expected = sequence.Oracle(position, 0);
          for (size_t i = 0; i < out.size(); ++i) {
            ASSERT_NEAR(out[i], expected[i], 2e-6)
                << target << " d " << shape.dim << " position " << position << " at " << i;
          }
        }
      }
    }
  });
}

TEST_F(AttentionTest, WindowsOfEverySizeAgreeWithTheOracle) {
  Sequence sequence({6, 2, 24}, KvDType::kF16, 700, 8);
  for (int32_t window : {1, 2, 63, 64, 65, 255, 256, 257, 300, 1000}) {
    const auto chunk = sequence.Run(0, 700, window, two_.get());
    for (int32_t position : {0, 1, 64, 255, 256, 319, 320, 511, 512, 620, 699}) {
      const auto expected = sequence.Oracle(position, window);
      for (size_t i = 0; i < sequence.Width(); ++i) {
        ASSERT_NEAR(chunk[static_cast<size_t>(position) * sequence.Width() + i], expected[i], 2e-6)
            << "window " << window << " position " << position;
      }
    }
  }
}

TEST_F(AttentionTest, ARowHasTheSameBitsAsDecodeAndInAnyChunkOnAnyThreads) {
  constexpr int32_t kLength = 600;
  struct Config {
    Shape shape;
    KvDType type;
    int32_t window;
  };
  // Every cache type, every window kind and every group size once; not their product, which takes
  // minutes under a sanitizer.
  constexpr Shape kSmall = {9, 3, 64};
  const std::vector<Config> all = {{kSmall, KvDType::kF32, 0},       {kSmall, KvDType::kF16, 0},
                                   {kSmall, KvDType::kBF16, 0},      {kSmall, KvDType::kF32, 100},
                                   {kSmall, KvDType::kF16, 5},       {kSmall, KvDType::kF16, 100},
                                   {kSmall, KvDType::kBF16, 256},    {{5, 1, 40}, KvDType::kF16, 0},
                                   {{5, 1, 40}, KvDType::kF32, 300}, {{4, 4, 16}, KvDType::kF16, 0},
                                   {{4, 4, 16}, KvDType::kBF16, 65}, {{30, 1, 8}, KvDType::kF16, 0},
                                   {{30, 1, 8}, KvDType::kF32, 17}};
  ForEachTarget([&](const std::string& target, bool has_fma) {
    for (const Config& c : has_fma ? all : std::vector<Config>{all[8]}) {
      Sequence sequence(c.shape, c.type, kLength, 9);
      const auto whole = sequence.Run(0, kLength, c.window, two_.get());
      const auto same = [&](int32_t begin, int32_t end, cpu::ThreadPool* pool) {
        const auto part = sequence.Run(begin, end, c.window, pool);
        ASSERT_TRUE(SameBits(
            part.data(), whole.data() + static_cast<size_t>(begin) * sequence.Width(), part.size()))
            << target << " d " << c.shape.dim << " window " << c.window << " rows " << begin << ".."
            << end << " threads " << pool->threads();
      };
      for (int32_t p : {0, 1, 62, 64, 254, 255, 256, 257, 511, 512, 598, 599}) {
        same(p, p + 1, one_.get());
        same(p, p + 1, five_.get());
      }
      for (int32_t split : {1, 15, 63, 64, 65, 127}) same(0, split, one_.get());
      for (int32_t begin : {1, 63, 65, 127, 250, 258}) same(begin, begin + 29, five_.get());
      same(500, kLength, two_.get());
    }
  });
}

TEST_F(AttentionTest, TargetsWithFmaGiveEqualBits) {
  for (KvDType type : kTypes) {
    Sequence sequence({9, 3, 72}, type, 530, 10);
    std::vector<float> first;
    ForEachTarget([&](const std::string& target, bool has_fma) {
      if (!has_fma) return;
      const auto out = sequence.Run(0, 530, 0, two_.get());
      if (first.empty()) first = out;
      ASSERT_TRUE(SameBits(first.data(), out.data(), out.size())) << target;
    });
  }
}

// Decode rows, chunks, padding and skipped rows of several sequences in one call.
TEST_F(AttentionTest, SegmentsOfOneCallAreIndependentAndUnlistedRowsAreUntouched) {
  const Shape shape = {6, 2, 32};
  // All sequences in one arena: one Sequence per segment would have its own base.
  Sequence cache(shape, KvDType::kF16, 1200, 12);
  const auto table = [&](int32_t first_page) { return cache.table().data() + first_page; };
  struct Want {
    int32_t row_count, kv_len, first_page;
  };
  const Want wants[] = {{1, 300, 0}, {40, 500, 4}, {2, 0, 0}, {0, 100, 1}, {1, 1, 9}, {7, 7, 3}};
  const size_t width = cache.Width();
  std::vector<int32_t> list;
  std::vector<AttentionSegment> segments;
  for (const Want& want : wants) {
    segments.push_back({.row_begin = static_cast<int32_t>(list.size()),
                        .row_count = want.row_count,
                        .kv_len = want.kv_len,
                        .page_table = want.kv_len == 0 ? nullptr : table(want.first_page)});
    for (int32_t r = 0; r < want.row_count; ++r) {
      list.push_back(static_cast<int32_t>(list.size()) * 2 + 1);  // Odd rows only.
    }
  }
  list[5] = -1;
  const int32_t rows = static_cast<int32_t>(list.size()) * 2 + 2;
  Numbers numbers(13);
  const auto q = numbers.Normals(static_cast<size_t>(rows) * width);
  AttentionArgs args = cache.Args(0);
  args.q = q.data();
  const auto run = [&](std::span<const AttentionSegment> some, const int32_t* rows_of,
                       cpu::ThreadPool* pool) {
    std::vector<float> out(static_cast<size_t>(rows) * width, 42.0f);
    Workspace workspace(AttentionWorkspaceBytes(6, 60, 1200, 6, 32, pool->threads()));
    args.out = out.data();
    args.segments = some;
    args.row_list = rows_of;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.bytes();
    const absl::Status status = cpu::PagedAttention(args, {.pool = pool});
    EXPECT_TRUE(status.ok()) << status;
    return out;
  };
  for (cpu::ThreadPool* pool : {one_.get(), two_.get(), five_.get()}) {
    const auto out = run(segments, list.data(), pool);
    std::vector<bool> listed(static_cast<size_t>(rows), false);
    for (const AttentionSegment& segment : segments) {
      const auto alone = run({&segment, 1}, list.data(), one_.get());
      for (int32_t r = 0; r < segment.row_count; ++r) {
        const int32_t row = list[static_cast<size_t>(segment.row_begin + r)];
        if (row < 0) continue;
        listed[static_cast<size_t>(row)] = true;
        const float* const mine = out.data() + static_cast<size_t>(row) * width;
        ASSERT_TRUE(SameBits(mine, alone.data() + static_cast<size_t>(row) * width, width));
        for (size_t i = 0; i < width; ++i) {
          ASSERT_TRUE(segment.kv_len == 0 ? mine[i] == 0.0f : std::isfinite(mine[i]));
          ASSERT_NE(mine[i], 42.0f);
        }
      }
    }
    for (size_t row = 0; row < listed.size(); ++row) {
      if (listed[row]) continue;
      for (size_t i = 0; i < width; ++i) ASSERT_EQ(out[row * width + i], 42.0f) << "row " << row;
    }
  }
}

TEST_F(AttentionTest, EqualValuesComeBack) {
  for (KvDType type : kTypes) {
    Sequence sequence({3, 1, 48}, type, 520, 14, 6.0f);
    Numbers numbers(15);
    std::vector<float> v(520 * 48);
    for (size_t i = 0; i < v.size(); ++i) v[i] = static_cast<float>(i % 48) / 16 - 1.5f;
    sequence.Fill(numbers.Normals(v.size()), v);
    const auto out = sequence.Run(0, 520, 0, two_.get());
    for (size_t i = 0; i < out.size(); ++i) {
      const float expected = static_cast<float>(i % 48) / 16 - 1.5f;
      ASSERT_NEAR(out[i], expected, 2e-6f) << "at " << i;
    }
  }
}

TEST_F(AttentionTest, HugeScoresGiveTheArgmaxAndNeverNaN) {
  ForEachTarget([&](const std::string& target, bool) {
    Sequence sequence({2, 1, 16}, KvDType::kF32, 400, 16, 1e15f);  // Scores around 1e15.
    for (int32_t position : {0, 255, 256, 399}) {
      const auto out = sequence.Run(position, position + 1, 0, two_.get());
      const auto expected = sequence.Oracle(position, 0);
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(out[i], expected[i], 1e-6) << target << " position " << position;
      }
    }
  });
}

TEST_F(AttentionTest, ANaNInTheQueryStaysVisibleAndStaysInItsRow) {
  Sequence sequence({3, 1, 32}, KvDType::kF16, 300, 17);
  const auto clean = sequence.Run(280, 300, 0, two_.get());
  sequence.q(290)[32 + 5] = std::numeric_limits<float>::quiet_NaN();  // Head 1 of one row.
  const auto out = sequence.Run(280, 300, 0, two_.get());
  for (size_t row = 0; row < 20; ++row) {
    for (size_t head = 0; head < 3; ++head) {
      const size_t at = row * 96 + head * 32;
      if (row == 10 && head == 1) {
        for (size_t i = 0; i < 32; ++i) ASSERT_TRUE(std::isnan(out[at + i]));
      } else {
        ASSERT_TRUE(SameBits(&out[at], &clean[at], 32)) << row << " " << head;
      }
    }
  }
}

TEST_F(AttentionTest, PagesOutsideTheWindowAreNotRead) {
  Sequence sequence({2, 1, 16}, KvDType::kF16, 1000, 18);
  const auto expected = sequence.Run(999, 1000, 100, one_.get());
  std::vector<int32_t> table = sequence.table();
  for (size_t i = 0; i < 900 / kPageTokens; ++i) table[i] = std::numeric_limits<int32_t>::max();
  const AttentionSegment segment = {.row_count = 1, .kv_len = 1000, .page_table = table.data()};
  AttentionArgs args = sequence.Args(100);
  std::vector<float> out(32);
  Workspace workspace(AttentionWorkspaceBytes(1, 1, 1000, 2, 16, 1));
  args.q = sequence.q(999);
  args.out = out.data();
  args.segments = {&segment, 1};
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.bytes();
  ASSERT_TRUE(cpu::PagedAttention(args, {.pool = one_.get()}).ok());  // A wild read would crash.
  EXPECT_TRUE(SameBits(out.data(), expected.data(), 32));
}

TEST_F(AttentionTest, BrokenLimitsAreNamed) {
  Sequence sequence({4, 2, 16}, KvDType::kF16, 70, 19);
  std::vector<float> out(70 * 64, 5.0f);
  Workspace workspace(AttentionWorkspaceBytes(1, 70, 70, 4, 16, 1));
  AttentionSegment segment = {.row_count = 2, .kv_len = 70, .page_table = sequence.table().data()};
  AttentionArgs good = sequence.Args(0);
  good.q = sequence.q(0);
  good.out = out.data();
  good.segments = {&segment, 1};
  good.workspace = workspace.data();
  good.workspace_bytes = workspace.bytes();
  const auto message = [&](auto change) {
    AttentionArgs args = good;
    change(args);
    return std::string(cpu::PagedAttention(args, {.pool = one_.get()}).message());
  };
  EXPECT_EQ(message([](auto& a) { a.head_dim = 0; }), "head_dim 0 is outside 1..256");
  EXPECT_EQ(message([](auto& a) { a.heads = 5; }), "heads 5 is not a multiple of kv_heads 2");
  EXPECT_EQ(message([](auto& a) { a.window = -1; }), "window -1 is negative");
  EXPECT_NE(message([](auto& a) { a.workspace_bytes = 64; }).find("workspace of 64 bytes"),
            std::string::npos);
  segment.kv_len = 1;
  EXPECT_EQ(message([](auto&) {}), "segment 0 has kv_len 1, less than its row_count 2");
  segment.kv_len = 70;
  segment.page_table = nullptr;
  EXPECT_EQ(message([](auto&) {}), "segment 0 has no page table for kv_len 70");
  segment.row_count = -2;
  EXPECT_NE(message([](auto&) {}).find("negative size"), std::string::npos);
  for (float o : out) ASSERT_EQ(o, 5.0f);
}

}  // namespace
}  // namespace morphserve::kernels
