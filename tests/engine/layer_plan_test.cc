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

std::shared_ptr<const LayerPlan> PlanOf(std::string_view kinds) {
  std::vector<LayerKind> list;
  for (const char c : kinds) list.push_back(c == 'F' ? LayerKind::kFull : LayerKind::kLinear);
  return std::make_shared<const LayerPlan>(std::move(list), Digest{}, Digest{1});
}

// Catches: a plan known twice, an epoch that does not move, a pointer that moves others.
TEST(PlanRegistry, PointersMoveAloneAndEveryMoveIsAnEpoch) {
  PlanRegistry registry(PlanOf("FFF"));
  const auto hybrid = *registry.Register(PlanOf("FLF"), "hybrid", "test");
  EXPECT_EQ(*registry.Register(PlanOf("FLF"), "again", "test"), hybrid);
  EXPECT_EQ(registry.List().size(), 2u);
  EXPECT_EQ(*registry.Point(PlanPointer::kActive, hybrid->id()), 2u);
  EXPECT_EQ(registry.active(), hybrid);
  EXPECT_EQ(registry.Get(PlanPointer::kHighest)->full_layers(), 3);
  EXPECT_EQ(registry.History(PlanPointer::kActive).size(), 2u);
  EXPECT_EQ(registry.Point(PlanPointer::kActive, "p-0").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(registry.Remove(hybrid->id()).code(), absl::StatusCode::kFailedPrecondition);
}

// Catches: a withdrawn plan that goes on serving, or pointers left without a plan.
TEST(PlanRegistry, WithdrawingAPlanSendsItsPointersBack) {
  PlanRegistry registry(PlanOf("FFF"));
  const auto first = *registry.Register(PlanOf("FLF"), "", "test");
  const auto second = *registry.Register(PlanOf("LLL"), "", "test");
  ASSERT_TRUE(registry.Point(PlanPointer::kActive, first->id()).ok());
  ASSERT_TRUE(registry.Point(PlanPointer::kActive, second->id()).ok());
  ASSERT_TRUE(registry.Withdraw(second->id(), "3 guard trips").ok());
  EXPECT_EQ(registry.active(), first);
  EXPECT_EQ(registry.Find(second->id()).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(registry.Point(PlanPointer::kActive, second->id()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(registry.Withdraw(first->id(), "tests").ok());
  EXPECT_EQ(registry.active()->full_layers(), 3);
  EXPECT_EQ(registry.Withdraw(registry.active()->id(), "tests").code(),
            absl::StatusCode::kFailedPrecondition);
}

// Catches: a table that grows without a bound, or that drops what a pointer can roll back to.
TEST(PlanRegistry, AFullTableDropsTheOldestPlanThatNothingNames) {
  PlanRegistry registry(PlanOf("FFF"), /*table_max=*/3);
  const auto named = *registry.Register(PlanOf("LFF"), "", "test");
  ASSERT_TRUE(registry.Point(PlanPointer::kActive, named->id()).ok());
  const auto idle = *registry.Register(PlanOf("FLF"), "", "test");
  ASSERT_TRUE(registry.Register(PlanOf("FFL"), "", "test").ok());
  EXPECT_EQ(registry.Find(idle->id()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(registry.Find(named->id()).ok());
  const auto last = *registry.Register(PlanOf("LLF"), "", "test");
  ASSERT_TRUE(registry.Point(PlanPointer::kFastest, last->id()).ok());
  EXPECT_EQ(registry.Register(PlanOf("LLL"), "", "test").status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace morphserve
