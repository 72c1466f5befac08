// Catches a client that foretells other times than its server: the proto states a rule, and both
// sides follow it.
#include "server/ctl/cost_curve.h"

#include <gtest/gtest.h>

#include <vector>

#include "morph/cost_model.h"
#include "server/morph_messages.h"

namespace morphserve::ctl {
namespace {

CostModel ServersModel() {
  std::vector<CostPoint> points;
  for (const int32_t rows : {1, 4, 16}) {
    for (const int32_t k : {0, 15, 30}) {
      for (const double context : {128.0, 4096.0}) {
        points.push_back({false, k, rows, context,
                          4.0 + 0.3 * rows + k * (rows * 0.01 - 0.05 + rows * 4e-5 * context)});
      }
    }
  }
  for (const int32_t rows : {64, 256}) {
    for (const int32_t k : {0, 30}) {
      for (const double context : {32.0, 2048.0}) {
        points.push_back({true, k, rows, context, 3.0 + 0.5 * rows + k * rows * 1e-5 * context});
      }
    }
  }
  auto model = CostModel::Fit(30, std::move(points));
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

TEST(CostCurve, ForetellsWhatTheServerForetells) {
  const CostModel model = ServersModel();
  const CostCurve curve(WriteCosts(model));
  for (const int32_t k : {0, 7, 30}) {
    for (const double running : {0.5, 1.0, 2.5, 16.0, 40.0}) {
      for (const double context : {1.0, 1000.0, 60000.0}) {
        EXPECT_DOUBLE_EQ(*curve.DecodeMs(k, running, context), model.DecodeMs(k, running, context));
      }
    }
    for (const int32_t prompt : {1, 63, 256, 257, 5000}) {
      EXPECT_DOUBLE_EQ(*curve.PrefillMs(k, prompt), model.PrefillMs(k, prompt));
    }
  }
  for (const double running : {1.0, 4.0, 9.0}) {
    EXPECT_EQ(curve.BreakEvenTokens(running), model.BreakEvenContext(running));
  }
}

TEST(CostCurve, WithoutTermsNothingIsForetold) {
  const CostCurve curve((v1::GetCostsResponse()));
  EXPECT_FALSE(curve.DecodeMs(1, 1, 1).has_value());
  EXPECT_FALSE(curve.PrefillMs(1, 1).has_value());
  EXPECT_FALSE(curve.BreakEvenTokens(1).has_value());
}

}  // namespace
}  // namespace morphserve::ctl
