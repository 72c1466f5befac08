// What a layer is told of its segments' sizes. Catches decode kernels that are left out though a
// segment has one row, and chunks that are taken for decode rows: on a device both lose outputs.
#include "engine/model/step_rows.h"

#include <vector>

#include "gtest/gtest.h"

namespace morphserve {
namespace {

LayerRows ViewOf(const std::vector<int32_t>& attention, const std::vector<int32_t>& mixer) {
  static StepRows rows;
  rows = StepRows();
  for (const int32_t count : attention) rows.attention.push_back({.row_count = count});
  for (const int32_t count : mixer) rows.mixer.push_back({.row_count = count});
  return rows.View();
}

TEST(StepRows, TellsWhereChunksBeginAndWhetherASegmentHasOneRow) {
  const struct {
    std::vector<int32_t> counts;
    int32_t first_chunk, rows_max;
    bool single_rows;
  } cases[] = {{{}, 0, 0, false},         {{1, 1}, 2, 1, true}, {{70}, 0, 70, false},
               {{1, 1, 9}, 2, 9, true},   {{9, 1}, 0, 9, true}, {{9, 2}, 0, 9, false},
               {{1, 2, 1, 3}, 1, 3, true}};
  for (const auto& c : cases) {
    const LayerRows full = ViewOf(c.counts, {}), linear = ViewOf({}, c.counts);
    EXPECT_EQ(full.attention_first_chunk, c.first_chunk);
    EXPECT_EQ(full.attention_rows_max, c.rows_max);
    EXPECT_EQ(full.attention_single_rows, c.single_rows);
    EXPECT_FALSE(full.mixer_single_rows);
    EXPECT_EQ(linear.mixer_first_chunk, c.first_chunk);
    EXPECT_EQ(linear.mixer_rows_max, c.rows_max);
    EXPECT_EQ(linear.mixer_single_rows, c.single_rows);
    EXPECT_FALSE(linear.attention_single_rows);
  }
}

}  // namespace
}  // namespace morphserve
