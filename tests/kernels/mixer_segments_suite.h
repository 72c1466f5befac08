// What both mixers promise about segments, slots and emits (kernels/mixer_segment.h), as tests over
// a layer of either mixer on either backend. Catches a batch whose sequences see each other, a row
// list that is not followed, padding that touches a slot, a source that changes, an emit taken a
// row too early or late, a flag raised for the wrong sequence, and a write outside the mixer's own
// part of the named slots. Thread rule: the test's thread.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/kernels/recurrent_mixer_fixture.h"
#include "tests/kernels/window_mixer_fixture.h"

namespace morphserve::kernels {

inline constexpr int32_t kSegmentsRows = 120;

// Bytes of the part of a slot that is the mixer's own, by its first and last.
inline std::pair<int64_t, int64_t> OwnPart(const RecurrentLayer& layer) {
  const SlotShape shape = layer.Shape();
  return {0, MakeSlotLayout(shape).conv_offset + SlotConvBytes(shape)};
}
inline std::pair<int64_t, int64_t> OwnPart(const WindowLayer& layer) {
  const SlotShape shape = layer.Shape();
  const int64_t offset = MakeSlotLayout(shape).ring_offset;
  return {offset, offset + SlotRingBytes(shape)};
}

template <class L>
class MixerSegmentsTest : public testing::Test {
 protected:
  void SetUp() override {
    if constexpr (requires { L::Obstacle(); }) {
      if (const std::string obstacle = L::Obstacle(); !obstacle.empty()) GTEST_SKIP() << obstacle;
    }
  }
  MixerSegmentsTest() : layer_(typename L::Options(), kSegmentsRows), slots_(layer_.Shape(), 6) {
    args_ = layer_.MakeArgs(&scratch_, &out_);
    slots_.Attach(&args_);
  }

  absl::Status Go(const std::vector<MixerSegment>& segments, int32_t threads = 2) {
    const float* const before = scratch_.data();
    layer_.FillScratch(&scratch_);
    EXPECT_EQ(scratch_.data(), before);  // Where the arguments point.
    args_.segments = segments;
    return RunMixer(args_, threads);
  }

  // Runs rows [first, first + count) of a sequence whose position 0 is row `start`, in place.
  void Advance(int32_t start, int32_t first, int32_t count, int32_t slot) {
    ASSERT_TRUE(Go({{.row_begin = start + first,
                     .row_count = count,
                     .position = first,
                     .src_slot = slots_.At(slot),
                     .dst_slot = slots_.At(slot)}})
                    .ok());
  }

  // The slot after the first `rows` rows of the layer, from a run of its own.
  std::vector<std::byte> SlotAfter(int32_t start, int32_t rows) {
    return RunChunks(layer_, {rows}, 1, start).slot;
  }

  // How far two ways to the same result may differ: 0 means in no bit.
  static constexpr double Bound() {
    if constexpr (requires { L::kBound; }) return L::kBound;
    return 0;
  }

  // Only the state, which the slot starts with, may differ at all.
  void ExpectSlot(int32_t slot, const std::vector<std::byte>& expected) {
    const std::vector<std::byte> is = slots_.Copy(slot);
    if constexpr (Bound() == 0) {
      EXPECT_EQ(is, expected);
    } else {
      const auto count = static_cast<size_t>(SlotStateBytes(layer_.Shape())) / sizeof(float);
      std::vector<float> a(count), b(count);
      std::memcpy(a.data(), is.data(), count * sizeof(float));
      std::memcpy(b.data(), expected.data(), count * sizeof(float));
      EXPECT_LT(RelativeError(a, {b.begin(), b.end()}), Bound());
      const auto rest = static_cast<std::ptrdiff_t>(count * sizeof(float));
      EXPECT_TRUE(std::equal(is.begin() + rest, is.end(), expected.begin() + rest, expected.end()));
    }
  }

  void ExpectRows(const MixerResult& expected, int32_t first, int32_t count, const char* what) {
    const size_t at = static_cast<size_t>(first) * layer_.width;
    const size_t floats = static_cast<size_t>(count) * layer_.width;
    if constexpr (Bound() == 0) {
      EXPECT_TRUE(SameBits(&expected.out[at], &out_[at], floats)) << what;
    } else {
      const std::vector<float> is(&out_[at], &out_[at] + floats);
      EXPECT_LT(RelativeError(is, {&expected.out[at], &expected.out[at] + floats}), Bound())
          << what;
    }
  }

  L layer_;
  Slots slots_;
  std::vector<float> scratch_, out_;
  typename L::Args args_;
};

TYPED_TEST_SUITE_P(MixerSegmentsTest);

// Three sequences of 40 rows each.
TYPED_TEST_P(MixerSegmentsTest, SequencesInOneCallAreAsIfAlone) {
  for (int32_t threads : {1, 2, 3}) {
    this->Advance(0, 0, 30, 0);
    this->Advance(40, 0, 5, 1);
    const auto at = [&](int32_t i) { return this->slots_.At(i); };
    ASSERT_TRUE(this->Go({{.row_begin = 30,
                           .row_count = 1,
                           .position = 30,
                           .src_slot = at(0),
                           .dst_slot = at(0)},
                          {.row_begin = 119, .row_count = 0, .dst_slot = at(4)},
                          {.row_begin = 45,
                           .row_count = 17,
                           .position = 5,
                           .src_slot = at(1),
                           .dst_slot = at(1)},
                          {.row_begin = 80, .row_count = 38, .dst_slot = at(2)}},
                         threads)
                    .ok());
    this->ExpectRows(RunChunks(this->layer_, {30, 1}, 1, 0), 0, 31, "decode row");
    this->ExpectRows(RunChunks(this->layer_, {22}, 1, 40), 40, 22, "later chunk");
    this->ExpectRows(RunChunks(this->layer_, {38}, 1, 80), 80, 38, "first chunk");
    this->ExpectSlot(0, this->SlotAfter(0, 31));
    this->ExpectSlot(1, this->SlotAfter(40, 22));
    this->ExpectSlot(2, this->SlotAfter(80, 38));
  }
}

TYPED_TEST_P(MixerSegmentsTest, ARowListNamesTheRows) {
  // Places 0..19 stand for rows 5..24, behind them padding with and without a row.
  std::vector<int32_t> list;
  for (int32_t i = 0; i < 20; ++i) list.push_back(5 + i);
  list.insert(list.end(), {-1, 60, -1});
  this->args_.row_list = list.data();
  const auto before = this->out_;
  ASSERT_TRUE(this->Go({{.row_begin = 0, .row_count = 20, .dst_slot = this->slots_.At(3)},
                        {.row_begin = 20, .row_count = 3}})
                  .ok());
  this->ExpectRows(RunChunks(this->layer_, {20}, 1, 5), 5, 20, "listed rows");
  this->ExpectSlot(3, this->SlotAfter(5, 20));
  const size_t width = this->layer_.width;
  for (size_t row = 0; row < kSegmentsRows; ++row) {
    if (row >= 5 && row < 25) continue;
    const std::vector<float> zeros(width, 0.0f);
    EXPECT_TRUE(
        SameBits(&this->out_[row * width], row == 60 ? zeros.data() : &before[row * width], width))
        << row;
  }
}

TYPED_TEST_P(MixerSegmentsTest, PaddingWritesZerosAndTouchesNoSlot) {
  const auto before = this->slots_.All();
  ASSERT_TRUE(this->Go({{.row_begin = 2, .row_count = 3, .position = 7},
                        {.row_begin = 9, .row_count = 1, .src_slot = this->slots_.At(1)}})
                  .ok());
  EXPECT_EQ(this->slots_.All(), before);
  for (size_t row : {2, 3, 4, 9}) {
    for (size_t i = 0; i < this->layer_.width; ++i) {
      ASSERT_EQ(this->out_[row * this->layer_.width + i], 0.0f);
    }
  }
}

TYPED_TEST_P(MixerSegmentsTest, ASourceStaysAsItIs) {
  for (int32_t rows : {1, 33}) {
    this->Advance(0, 0, 50, 0);
    const auto source = this->slots_.Copy(0);
    // Two heirs of one source, in one call.
    ASSERT_TRUE(this->Go({{.row_begin = 50,
                           .row_count = rows,
                           .position = 50,
                           .src_slot = this->slots_.At(0),
                           .dst_slot = this->slots_.At(4)},
                          {.row_begin = 50 + rows,
                           .row_count = rows,
                           .position = 50,
                           .src_slot = this->slots_.At(0),
                           .dst_slot = this->slots_.At(2)}})
                    .ok());
    EXPECT_EQ(this->slots_.Copy(0), source);
    this->ExpectSlot(4, this->SlotAfter(0, 50 + rows));
    EXPECT_NE(this->slots_.Copy(2), this->slots_.Copy(4));
    this->ExpectRows(RunChunks(this->layer_, {50, rows}), 50, rows, "heir");
  }
}

TYPED_TEST_P(MixerSegmentsTest, EmitsAreWhatARunThatStoppedThereLeaves) {
  const auto at = [&](int32_t i) { return this->slots_.At(i); };
  const std::vector<StateEmit> emits = {{.rows = 1, .slot = at(1)},
                                        {.rows = 2, .slot = at(2)},
                                        {.rows = 49, .slot = at(3)},
                                        {.rows = 64, .slot = at(4)},
                                        {.rows = 1, .slot = at(5)}};
  this->args_.emits = emits;
  ASSERT_TRUE(this->Go({{.row_count = 64, .dst_slot = at(0), .emit_count = 4}}).ok());
  for (int32_t i = 0; i < 4; ++i) {
    this->ExpectSlot(i + 1, this->SlotAfter(0, emits[static_cast<size_t>(i)].rows));
  }
  EXPECT_EQ(this->slots_.Copy(0), this->slots_.Copy(4));
  this->ExpectRows(RunChunks(this->layer_, {64}), 0, 64, "outputs");
  // One row, and a chunk that continues.
  ASSERT_TRUE(this->Go({{.row_begin = 64,
                         .row_count = 1,
                         .position = 64,
                         .src_slot = at(0),
                         .dst_slot = at(0),
                         .emit_begin = 4,
                         .emit_count = 1}})
                  .ok());
  this->ExpectSlot(5, this->SlotAfter(0, 65));
  ASSERT_TRUE(this->Go({{.row_begin = 65,
                         .row_count = 55,
                         .position = 65,
                         .src_slot = at(5),
                         .dst_slot = at(0),
                         .emit_begin = 1,
                         .emit_count = 2}})
                  .ok());
  this->ExpectSlot(2, this->SlotAfter(0, 67));
  this->ExpectSlot(3, this->SlotAfter(0, 114));
  this->ExpectSlot(0, this->SlotAfter(0, 120));
}

TYPED_TEST_P(MixerSegmentsTest, WritesOnlyItsPartOfTheNamedSlots) {
  const auto before = this->slots_.All();
  const StateEmit emit = {.rows = 3, .slot = this->slots_.At(4)};
  this->args_.emits = {&emit, 1};
  ASSERT_TRUE(this->Go({{.row_count = 70, .dst_slot = this->slots_.At(1), .emit_count = 1}}).ok());
  const auto after = this->slots_.All();
  const auto [first, last] = OwnPart(this->layer_);
  int64_t changed = 0;
  for (size_t i = 0; i < after.size(); ++i) {
    bool is_own = false;
    for (int32_t slot : {1, 4}) {
      const int64_t offset = static_cast<int64_t>(i) - this->slots_.At(slot) * kArenaUnitBytes;
      is_own |= offset >= first && offset < last;
    }
    if (is_own) {
      changed += after[i] != before[i];
    } else {
      ASSERT_EQ(after[i], before[i]) << i;
    }
  }
  EXPECT_GT(changed, 2 * (last - first) * 9 / 10);
}

TYPED_TEST_P(MixerSegmentsTest, OnlyTheBadSegmentIsFlagged) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e38f}) {
    for (int32_t rows : {1, 20}) {
      // A value of row 25: of v, at the end of q | k | v.
      auto& values = [&]() -> std::vector<float>& {
        if constexpr (std::is_base_of_v<RecurrentLayer, TypeParam>) return this->layer_.qkv;
        if constexpr (std::is_base_of_v<WindowLayer, TypeParam>) return this->layer_.v;
      }();
      values[26 * values.size() / kSegmentsRows - 1] = bad;
      std::vector<uint8_t> flags = {0, 0, 0, 7};
      this->args_.nonfinite = flags.data();
      ASSERT_TRUE(this->Go({{.row_begin = 0, .row_count = 20, .dst_slot = this->slots_.At(0)},
                            {.row_begin = 25, .row_count = rows, .dst_slot = this->slots_.At(1)},
                            {.row_begin = 50, .row_count = 1, .dst_slot = this->slots_.At(2)},
                            {.row_begin = 60, .row_count = 1}})
                      .ok());
      EXPECT_EQ(flags, (std::vector<uint8_t>{0, 1, 0, 7})) << bad;
    }
  }
}

REGISTER_TYPED_TEST_SUITE_P(MixerSegmentsTest, SequencesInOneCallAreAsIfAlone, ARowListNamesTheRows,
                            PaddingWritesZerosAndTouchesNoSlot, ASourceStaysAsItIs,
                            EmitsAreWhatARunThatStoppedThereLeaves,
                            WritesOnlyItsPartOfTheNamedSlots, OnlyTheBadSegmentIsFlagged);

}  // namespace morphserve::kernels
