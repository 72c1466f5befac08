// Norm, rotation and append on the device against fp64, for both pairings, every cache type,
// partial rotation, and head sizes of both layouts of a page. Rows that are not listed and all
// other places of the pages keep their bytes.
#include <set>
#include <vector>

#include "tests/kernels/cuda/attention_cuda_fixture.h"
#include "tests/reference/elementwise_reference.h"

namespace morphserve::kernels::cuda {
namespace {

using QkRopeAppendCudaTest = CudaTest;

struct Shape {
  int32_t heads, kv_heads, dim, rotary;
};

constexpr int32_t kRows = 9;

// One call over a list of rows, and what must come out.
struct Case {
  Case(const Shape& s, KvDType type, bool interleaved, bool norms)
      : shape(s), pages(type, s.kv_heads, s.dim, 8, CudaPlaceInHead), numbers(3) {
    q = numbers.Normals(static_cast<size_t>(kRows * s.heads * s.dim));
    k = numbers.Normals(static_cast<size_t>(kRows * s.kv_heads * s.dim));
    v = numbers.Normals(static_cast<size_t>(kRows * s.kv_heads * s.dim));
    q_norm = numbers.Normals(static_cast<size_t>(s.dim));
    k_norm = numbers.Normals(static_cast<size_t>(s.dim));
    for (int32_t i = 0; i < kRows * (s.rotary / 2); ++i) {
      const double angle = 10.0 * static_cast<double>(numbers.Normal());
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
    for (int32_t r = 0; r < kRows; ++r) {
      page_of_row.push_back(r == 7 ? -1 : pages.Address(r * 8 / kRows));
      offset_of_row.push_back(r * 7 % kPageTokens);
    }
    args = {.q_stride = s.heads * s.dim,
            .k_stride = s.kv_heads * s.dim,
            .v_stride = s.kv_heads * s.dim,
            .norm_eps = 1e-6f,
            .rotary_dim = s.rotary,
            .interleaved = interleaved,
            .kv_dtype = type,
            .heads = s.heads,
            .kv_heads = s.kv_heads,
            .head_dim = s.dim};
    has_norms = norms;
  }

  // Runs the listed rows; q, k and the pages are then those of the device.
  void Run(const Backend& ops, const std::vector<int32_t>& list) {
    const DeviceArray<float> dq(q), dk(k), dv(v), dqn(q_norm), dkn(k_norm), dc(cos), ds(sin);
    const DeviceArray<int32_t> dpage(page_of_row), doffset(offset_of_row), dlist(list);
    const DeviceArray<std::byte> dpages(
        std::vector<std::byte>(pages.base(), pages.base() + pages.bytes()));
    args.q = dq.data();
    args.k = dk.data();
    args.v = dv.data();
    args.q_norm = has_norms ? dqn.data() : nullptr;
    args.k_norm = has_norms ? dkn.data() : nullptr;
    args.cos = dc.data();
    args.sin = ds.data();
    args.rows = static_cast<int32_t>(list.size());
    args.row_list = dlist.data();
    args.page_of_row = dpage.data();
    args.offset_of_row = doffset.data();
    args.kv_base = dpages.data();
    ASSERT_TRUE(ops.qk_rope_append(args, {}).ok());
    ASSERT_TRUE(Synchronize({}).ok());
    q = dq.Read();
    k = dk.Read();
    const auto bytes = dpages.Read();
    std::copy(bytes.begin(), bytes.end(), pages.base());
  }

  std::vector<double> Expected(const std::vector<float>& from, int32_t heads, int32_t row,
                               int32_t head, const std::vector<float>& norm) const {
    const float* const start = from.data() + (row * heads + head) * shape.dim;
    std::vector<double> h(start, start + shape.dim);
    if (has_norms) h = reference::RmsNorm(h, {norm.begin(), norm.end()}, 1e-6);
    const auto pairs = static_cast<std::ptrdiff_t>(shape.rotary / 2);
    reference::Rope(&h, {cos.begin() + row * pairs, cos.begin() + (row + 1) * pairs},
                    {sin.begin() + row * pairs, sin.begin() + (row + 1) * pairs}, args.interleaved);
    return h;
  }

  Shape shape;
  bool has_norms = false;
  KvPages pages;
  Numbers numbers;
  std::vector<float> q, k, v, q_norm, k_norm, cos, sin;
  std::vector<int32_t> page_of_row, offset_of_row;
  QkRopeAppendArgs args;
};

double Rounding(KvDType type, double value) {
  if (type == KvDType::kF32) return 0;
  if (type == KvDType::kE4m3) return std::max(std::ldexp(std::abs(value), -4), 0x1p-10);
  return std::ldexp(std::abs(value), type == KvDType::kF16 ? -11 : -8) + std::ldexp(1.0, -25);
}

void CheckRow(Case* c, const std::vector<float>& q, const std::vector<float>& k, int32_t row) {
  const Shape& s = c->shape;
  for (int32_t head = 0; head < s.heads; ++head) {
    const auto expected = c->Expected(q, s.heads, row, head, c->q_norm);
    for (int32_t i = 0; i < s.dim; ++i) {
      ASSERT_NEAR(c->q[static_cast<size_t>((row * s.heads + head) * s.dim + i)],
                  expected[static_cast<size_t>(i)], 6e-6);
    }
  }
  const int32_t page = c->page_of_row[static_cast<size_t>(row)];
  const int32_t offset = c->offset_of_row[static_cast<size_t>(row)];
  for (int32_t head = 0; head < s.kv_heads; ++head) {
    const auto expected = c->Expected(k, s.kv_heads, row, head, c->k_norm);
    for (int32_t i = 0; i < s.dim; ++i) {
      const auto at = static_cast<size_t>((row * s.kv_heads + head) * s.dim + i);
      const double e = expected[static_cast<size_t>(i)], v = static_cast<double>(c->v[at]);
      ASSERT_NEAR(c->k[at], e, 6e-6);
      ASSERT_NEAR(c->pages.K(page, head, offset, i), e,
                  6e-6 + 1.001 * Rounding(c->args.kv_dtype, e));
      ASSERT_NEAR(c->pages.V(page, head, offset, i), v, Rounding(c->args.kv_dtype, v));
    }
  }
}

TEST_F(QkRopeAppendCudaTest, AgreesWithTheOracleAndTouchesOnlyTheListedRows) {
  // Heads that are taken as whole pieces, a few or many in a row; that could be but for what of
  // them is rotated; and others.
  const Shape shapes[] = {{9, 3, 64, 64},   {2, 1, 64, 0},   {16, 8, 128, 128}, {2, 2, 128, 40},
                          {2, 1, 256, 256}, {6, 3, 256, 64}, {4, 2, 64, 20},    {2, 2, 128, 6},
                          {2, 1, 256, 252}, {4, 4, 40, 40},  {8, 1, 80, 80},    {4, 2, 96, 48},
                          {3, 3, 7, 6},     {2, 1, 1, 0}};
  const std::vector<int32_t> list = {3, -1, 0, 7, 1, -1, 8};
  const std::set<int32_t> done = {0, 1, 3, 8};  // Row 7 has no page.
  for (const Shape& s : shapes) {
    for (KvDType type : {KvDType::kF32, KvDType::kF16, KvDType::kBF16, KvDType::kE4m3}) {
      for (int mode = 0; mode < 4; ++mode) {
        Case c(s, type, (mode & 1) != 0, (mode & 2) != 0);
        const auto q = c.q, k = c.k;
        const std::vector<std::byte> before(c.pages.base(), c.pages.base() + c.pages.bytes());
        c.Run(ops(), list);
        const auto q_width = static_cast<size_t>(s.heads * s.dim);
        const auto k_width = static_cast<size_t>(s.kv_heads * s.dim);
        for (int32_t row = 0; row < kRows; ++row) {
          if (done.contains(row)) {
            CheckRow(&c, q, k, row);
            if (HasFatalFailure()) FAIL() << "d " << s.dim << " mode " << mode << " row " << row;
            continue;
          }
          const auto r = static_cast<size_t>(row);
          EXPECT_TRUE(SameBits(&q[r * q_width], &c.q[r * q_width], q_width));
          EXPECT_TRUE(SameBits(&k[r * k_width], &c.k[r * k_width], k_width));
        }
        int64_t changed = 0;
        for (int64_t i = 0; i < c.pages.bytes(); ++i) {
          changed += c.pages.base()[i] != before[static_cast<size_t>(i)];
        }
        EXPECT_LE(changed, 4 * 2 * s.kv_heads * s.dim * KvDTypeBytes(type));
      }
    }
  }
}

TEST_F(QkRopeAppendCudaTest, ValuesBeyondTheLargestOfE4m3AreTheLargest) {
  Case c({2, 2, 64, 0}, KvDType::kE4m3, false, false);
  const auto k_width = static_cast<size_t>(c.shape.kv_heads * c.shape.dim);
  const std::vector<float> values = {448, 463, 465, -1e9f, std::numeric_limits<float>::infinity()};
  for (size_t i = 0; i < values.size(); ++i) c.k[i] = c.v[k_width - 1 - i] = values[i];
  c.k[values.size()] = std::numeric_limits<float>::quiet_NaN();
  c.Run(ops(), {0});
  const int32_t page = c.page_of_row[0], offset = c.offset_of_row[0];
  for (int32_t i = 0; i < 5; ++i) {
    const double expected = values[static_cast<size_t>(i)] < 0 ? -448 : 448;
    EXPECT_EQ(c.pages.K(page, 0, offset, i), expected) << i;
    EXPECT_EQ(c.pages.V(page, 1, offset, c.shape.dim - 1 - i), expected) << i;
  }
  EXPECT_TRUE(std::isnan(c.pages.K(page, 0, offset, 5)));
}

}  // namespace
}  // namespace morphserve::kernels::cuda
