// Catches: plan ids that differ between replicas, or are equal for different plans or files.
#include "engine/model/layer_plan.h"

#include <gtest/gtest.h>

#include "engine/model/plan_registry.h"

namespace morphserve {
namespace {

TEST(LayerPlan, IdIsAHashOfKindsAndFiles) {
  const Digest base = {1};
  const Digest branches = {2};
  const LayerPlan full = LayerPlan::AllFull(4, base);
  EXPECT_EQ(full.id(), LayerPlan::AllFull(4, base).id());
  EXPECT_EQ(full.id().size(), 18u);
  EXPECT_EQ(full.id().substr(0, 2), "p-");
  EXPECT_NE(full.id(), LayerPlan::AllFull(5, base).id());
  EXPECT_NE(full.id(), LayerPlan::AllFull(4, Digest{9}).id());
  EXPECT_NE(full.id(), LayerPlan::AllFull(4, base, branches).id());
  const LayerPlan mixed({LayerKind::kFull, LayerKind::kLinear, LayerKind::kFull, LayerKind::kFull},
                        base, {});
  EXPECT_NE(mixed.id(), full.id());
  EXPECT_EQ(mixed.full_layers(), 3);
}

// The bytes that are hashed are a contract with other programs: 32 + 32 + one a layer.
TEST(LayerPlan, IdIsThatOfTheDocumentedBytes) {
  // sha256 of 68 zero bytes, computed with sha256sum.
  EXPECT_EQ(LayerPlan::AllFull(4, Digest{}).id(), "p-1751ac12e70e15b4");
}

TEST(PlanRegistry, FindsByIdAndUniquePrefixOnly) {
  auto plan = std::make_shared<const LayerPlan>(LayerPlan::AllFull(4, Digest{}));
  const PlanRegistry registry(plan);
  EXPECT_EQ(*registry.Find(plan->id()), plan);
  EXPECT_EQ(*registry.Find(plan->id().substr(0, 8)), plan);
  EXPECT_EQ(registry.Find("p-").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(registry.Find("p-ffffffffffffffff").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(registry.epoch(), 1u);
}

}  // namespace
}  // namespace morphserve
