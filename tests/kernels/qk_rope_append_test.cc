// Norm, rotation and append against fp64, for both pairings, every cache type, partial rotation and
// odd head sizes. Catches a swapped sine, a wrong pair distance, a transposed page, a rounding
// other than to nearest even, and any write outside the listed rows' places (the pages are compared
// byte by byte).
#include "kernels/qk_rope_append.h"

#include <set>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/kv_pages_fixture.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::kernels {
namespace {

struct Shape {
  int32_t heads, kv_heads, dim, rotary;
};

// One call with random inputs, and what must come out.
struct Case {
  Case(const Shape& s, KvDType type, int32_t row_count, uint64_t seed)
      : shape(s), rows(row_count), pages(type, s.kv_heads, s.dim, 8), numbers(seed) {
    const auto n = static_cast<size_t>(rows);
    q = numbers.Normals(n * static_cast<size_t>(s.heads * s.dim));
    k = numbers.Normals(n * static_cast<size_t>(s.kv_heads * s.dim));
    v = numbers.Normals(n * static_cast<size_t>(s.kv_heads * s.dim));
    q_norm = numbers.Normals(static_cast<size_t>(s.dim));
    k_norm = numbers.Normals(static_cast<size_t>(s.dim));
    for (size_t i = 0; i < n * static_cast<size_t>(s.rotary / 2); ++i) {
      const double angle = 10.0 * static_cast<double>(numbers.Normal());
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
    for (int32_t r = 0; r < rows; ++r) {
      page_of_row.push_back(pages.Address(r * 8 / rows));
      offset_of_row.push_back(r * 7 % kPageTokens);
    }
    args = {.q = q.data(),
            .q_stride = s.heads * s.dim,
            .k = k.data(),
            .k_stride = s.kv_heads * s.dim,
            .v = v.data(),
            .v_stride = s.kv_heads * s.dim,
            .norm_eps = 1e-6f,
            .cos = cos.data(),
            .sin = sin.data(),
            .rotary_dim = s.rotary,
            .rows = rows,
            .page_of_row = page_of_row.data(),
            .offset_of_row = offset_of_row.data(),
            .kv_base = pages.base(),
            .kv_dtype = type,
            .heads = s.heads,
            .kv_heads = s.kv_heads,
            .head_dim = s.dim};
  }

  std::vector<double> ExpectedHead(const std::vector<float>& from, int32_t width, int32_t row,
                                   int32_t head, const std::vector<float>* norm) const {
    const float* const start = from.data() + row * width + head * shape.dim;
    std::vector<double> h(start, start + shape.dim);
    if (norm != nullptr) h = reference::RmsNorm(h, {norm->begin(), norm->end()}, 1e-6);
    const auto pairs = static_cast<size_t>(shape.rotary / 2);
    const auto at = static_cast<std::ptrdiff_t>(static_cast<size_t>(row) * pairs);
    const auto end = at + static_cast<std::ptrdiff_t>(pairs);
    reference::Rope(&h, {cos.begin() + at, cos.begin() + end},
                    {sin.begin() + at, sin.begin() + end}, args.interleaved);
    return h;
  }

  Shape shape;
  int32_t rows;
  KvPages pages;
  Numbers numbers;
  std::vector<float> q, k, v, q_norm, k_norm, cos, sin;
  std::vector<int32_t> page_of_row, offset_of_row;
  QkRopeAppendArgs args;
};

class QkRopeAppendTest : public testing::Test {
 protected:
  absl::Status Run(const QkRopeAppendArgs& args) { return cpu::QkRopeAppend(args, stream_); }
  std::unique_ptr<cpu::ThreadPool> pool_ = cpu::ThreadPool::Create(2, false);
  Stream stream_ = {.pool = pool_.get()};
};

// Half a unit in the last place of the cache type.
double Rounding(KvDType type, double value) {
  if (type == KvDType::kF32) return 0;
  return std::ldexp(std::abs(value), type == KvDType::kF16 ? -11 : -8) + std::ldexp(1.0, -25);
}

void CheckAgainstOracle(Case* c, const std::vector<float>& q, const std::vector<float>& k,
                        const std::string& what) {
  const Shape& s = c->shape;
  const auto* q_norm = c->args.q_norm == nullptr ? nullptr : &c->q_norm;
  const auto* k_norm = c->args.k_norm == nullptr ? nullptr : &c->k_norm;
  for (int32_t row = 0; row < c->rows; ++row) {
    for (int32_t head = 0; head < s.heads; ++head) {
      const auto expected = c->ExpectedHead(q, s.heads * s.dim, row, head, q_norm);
      for (int32_t i = 0; i < s.dim; ++i) {
        ASSERT_NEAR(c->q[static_cast<size_t>((row * s.heads + head) * s.dim + i)],
                    expected[static_cast<size_t>(i)], 4e-6)
            << what;
      }
    }
    const int32_t page = c->page_of_row[static_cast<size_t>(row)];
    const int32_t offset = c->offset_of_row[static_cast<size_t>(row)];
    for (int32_t head = 0; head < s.kv_heads; ++head) {
      const auto expected = c->ExpectedHead(k, s.kv_heads * s.dim, row, head, k_norm);
      for (int32_t i = 0; i < s.dim; ++i) {
        const double e = expected[static_cast<size_t>(i)];
        const auto v =
            static_cast<double>(c->v[static_cast<size_t>((row * s.kv_heads + head) * s.dim + i)]);
        ASSERT_NEAR(c->pages.K(page, head, offset, i), e,
                    4e-6 + 1.001 * Rounding(c->args.kv_dtype, e))
            << what;
        ASSERT_NEAR(c->pages.V(page, head, offset, i), v, Rounding(c->args.kv_dtype, v)) << what;
      }
    }
  }
}

TEST_F(QkRopeAppendTest, AgreesWithTheOracleForEveryShapeTypeAndPairing) {
  const Shape shapes[] = {{9, 3, 64, 64},   {4, 4, 40, 40},  {8, 1, 80, 80}, {4, 2, 96, 48},
                          {2, 2, 128, 128}, {2, 1, 256, 64}, {3, 3, 7, 6},   {2, 1, 1, 0}};
  ForEachTarget([&](const std::string& target, bool) {
    for (const Shape& shape : shapes) {
      for (KvDType type : {KvDType::kF32, KvDType::kF16, KvDType::kBF16}) {
        for (int mode = 0; mode < 4; ++mode) {
          Case c(shape, type, 9, 11);
          c.args.interleaved = (mode & 1) != 0;
          if ((mode & 2) != 0) {
            c.args.q_norm = c.q_norm.data();
            c.args.k_norm = c.k_norm.data();
          }
          const auto q = c.q, k = c.k;
          ASSERT_TRUE(Run(c.args).ok());
          CheckAgainstOracle(&c, q, k, target + " d " + std::to_string(shape.dim));
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  });
}

TEST_F(QkRopeAppendTest, RoundsToTheCacheTypeToNearestEvenOnEveryTarget) {
  // Values beside and at every kind of halfway point, in full vectors and in the tail.
  std::vector<float> values = {0.0f,
                               -0.0f,
                               1.0f,
                               1.00048828125f,
                               1.00146484375f,
                               65504.0f,
                               65519.9f,
                               65520.0f,
                               -70000.0f,
                               6.1e-5f,
                               5.96e-8f,
                               2.98e-8f,
                               2.99e-8f,
                               1e-9f,
                               3.0517578125e-5f,
                               8.940696716308594e-08f,
                               1.0078125f,
                               1.00390625f,
                               1.01171875f};
  Numbers numbers(5);
  while (values.size() < 255) {
    values.push_back(std::ldexp(numbers.Uniform(), numbers.Below(42) - 26));
  }
  const auto dim = static_cast<int32_t>(values.size());
  ForEachTarget([&](const std::string& target, bool) {
    for (KvDType type : {KvDType::kF16, KvDType::kBF16}) {
      Case c({1, 1, dim, 0}, type, 1, 1);
      c.args.v = values.data();
      ASSERT_TRUE(Run(c.args).ok());
      for (int32_t i = 0; i < dim; ++i) {
        const auto value = static_cast<double>(values[static_cast<size_t>(i)]);
        const double stored = c.pages.V(c.page_of_row[0], 0, c.offset_of_row[0], i);
        const int precision = type == KvDType::kF16 ? 11 : 8;
        const int lowest = type == KvDType::kF16 ? -24 : -133;
        // Nearest multiple of the unit, by the default (even) rounding of nearbyint.
        const int exponent = value == 0 ? 0 : std::ilogb(value);
        const double unit = std::ldexp(1.0, std::max(exponent - precision + 1, lowest));
        double expected = std::nearbyint(value / unit) * unit;
        if (type == KvDType::kF16 && std::abs(expected) > 65504) {
          expected = std::copysign(INFINITY, value);
        }
        ASSERT_EQ(stored, expected) << target << " of " << value;
      }
    }
  });
}

TEST_F(QkRopeAppendTest, TouchesOnlyTheListedRowsAndTheirPlaces) {
  for (KvDType type : {KvDType::kF32, KvDType::kF16, KvDType::kBF16}) {
    Case c({6, 2, 20, 20}, type, 12, 21);
    const std::vector<int32_t> list = {3, -1, 0, 7, -1, 9};
    c.page_of_row[7] = -1;  // Listed, but without a page: skipped entirely.
    const std::set<int32_t> done = {0, 3, 9};
    const auto q = c.q, k = c.k;
    const std::vector<std::byte> before(c.pages.base(), c.pages.base() + c.pages.bytes());
    c.args.row_list = list.data();
    c.args.rows = static_cast<int32_t>(list.size());
    ASSERT_TRUE(Run(c.args).ok());
    for (int32_t row = 0; row < 12; ++row) {
      const bool same_q =
          SameBits(&q[static_cast<size_t>(row) * 120], &c.q[static_cast<size_t>(row) * 120], 120);
      const bool same_k =
          SameBits(&k[static_cast<size_t>(row) * 40], &c.k[static_cast<size_t>(row) * 40], 40);
      EXPECT_EQ(same_q, !done.contains(row));
      EXPECT_EQ(same_k, !done.contains(row));
    }
    int64_t changed = 0;
    for (int64_t i = 0; i < c.pages.bytes(); ++i) {
      changed += c.pages.base()[i] != before[static_cast<size_t>(i)];
    }
    // Three rows of K and V; hardly any byte of a value is 0xff as before.
    const int64_t written = 3 * 2 * 2 * 20 * KvDTypeBytes(type);
    EXPECT_LE(changed, written);
    EXPECT_GE(changed, written * 9 / 10);
  }
}

TEST_F(QkRopeAppendTest, ARowHasTheSameBitsAloneAndAmongOthers) {
  for (KvDType type : {KvDType::kF32, KvDType::kF16, KvDType::kBF16}) {
    Case together({9, 3, 64, 64}, type, 33, 31), alone({9, 3, 64, 64}, type, 33, 31);
    ASSERT_TRUE(Run(together.args).ok());
    for (int32_t row = 0; row < 33; ++row) {
      alone.args.row_list = &row;
      alone.args.rows = 1;
      ASSERT_TRUE(Run(alone.args).ok());
    }
    EXPECT_TRUE(SameBits(together.q.data(), alone.q.data(), alone.q.size()));
    EXPECT_EQ(std::memcmp(together.pages.base(), alone.pages.base(),
                          static_cast<size_t>(alone.pages.bytes())),
              0);
  }
}

TEST_F(QkRopeAppendTest, BrokenLimitsAreNamedBeforeAnythingIsWritten) {
  Case c({6, 2, 20, 20}, KvDType::kF16, 3, 41);
  const auto q = c.q;
  const auto message = [&](auto change) {
    QkRopeAppendArgs args = c.args;
    change(args);
    return std::string(Run(args).message());
  };
  EXPECT_EQ(message([](auto& a) { a.rows = -1; }), "rows -1 is negative");
  EXPECT_EQ(message([](auto& a) { a.head_dim = 257; }), "head_dim 257 is outside 1..256");
  EXPECT_EQ(message([](auto& a) { a.rotary_dim = 22; }),
            "rotary_dim 22 is not an even number in 0..20");
  EXPECT_EQ(message([](auto& a) { a.rotary_dim = 7; }),
            "rotary_dim 7 is not an even number in 0..20");
  EXPECT_EQ(message([](auto& a) { a.heads = 5; }), "heads 5 is not a multiple of kv_heads 2");
  c.offset_of_row[2] = 64;
  EXPECT_EQ(message([](auto&) {}), "offset 64 of row 2 is outside 0..63");
  EXPECT_TRUE(SameBits(q.data(), c.q.data(), q.size()));
  c.args.rows = 0;
  EXPECT_TRUE(Run(c.args).ok());
  EXPECT_TRUE(SameBits(q.data(), c.q.data(), q.size()));
}

}  // namespace
}  // namespace morphserve::kernels
