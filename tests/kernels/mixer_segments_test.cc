// The suite of mixer_segments_suite.h over the CPU's mixers, and the checks that only they make:
// they see the segments.
#include "tests/kernels/mixer_segments_suite.h"

namespace morphserve::kernels {
namespace {

using Layers = testing::Types<RecurrentLayer, WindowLayer>;
INSTANTIATE_TYPED_TEST_SUITE_P(Cpu, MixerSegmentsTest, Layers);

template <class L>
using BrokenSegmentsTest = MixerSegmentsTest<L>;
TYPED_TEST_SUITE(BrokenSegmentsTest, Layers);

TYPED_TEST(BrokenSegmentsTest, BrokenSegmentsAreNamedBeforeAnythingIsWritten) {
  const auto before = this->slots_.All();
  const auto out = this->out_;
  const auto message = [&](const MixerSegment& segment) {
    return std::string(
        this->Go({{.row_begin = 100, .row_count = 2, .dst_slot = 0}, segment}).message());
  };
  EXPECT_EQ(message({.row_begin = -1, .row_count = 1}),
            "segment 1 has a size out of range (row_begin -1, row_count 1, position 0)");
  EXPECT_EQ(message({.row_count = 2, .position = std::numeric_limits<int32_t>::max() - 1}),
            "segment 1 has a size out of range (row_begin 0, row_count 2, position 2147483646)");
  EXPECT_EQ(message({.row_count = 1, .position = 4, .dst_slot = 6}),
            "segment 1 at position 4 goes from slot -1 to 6");
  EXPECT_EQ(message({.row_count = 1, .dst_slot = 6, .emit_begin = 1, .emit_count = 1}),
            "segment 1 has emits 1 + 1 of 0");
  const std::vector<StateEmit> emits = {{.rows = 2, .slot = 6}, {.rows = 2, .slot = 7}};
  this->args_.emits = emits;
  EXPECT_EQ(message({.row_count = 2, .dst_slot = 0, .emit_count = 2}),
            "segment 1 emits to slot 7 after 2 of 2 rows, and before after 2");
  EXPECT_EQ(message({.row_count = 1, .dst_slot = 0, .emit_count = 1}),
            "segment 1 emits to slot 6 after 2 of 1 rows, and before after 0");
  std::vector<int32_t> list(kSegmentsRows, 3);
  list[4] = -1;
  this->args_.row_list = list.data();
  EXPECT_EQ(message({.row_begin = 3, .row_count = 2, .dst_slot = 0}), "segment 1 has row -1 at 4");
  EXPECT_EQ(this->slots_.All(), before);
  EXPECT_TRUE(SameBits(out.data(), this->out_.data(), out.size()));
}

}  // namespace
}  // namespace morphserve::kernels
