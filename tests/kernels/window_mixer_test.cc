// The window mixer against the fp64 oracle, and bit for bit against itself: one shot, chunks of odd
// sizes, token by token, any number of threads, every instruction set. Catches a window or a sink
// off by one, a sink counted twice, a ring that is read out of order or overwritten too early, and
// places that no position has filled.
#include "kernels/window_mixer.h"

#include "tests/kernels/window_mixer_fixture.h"

namespace morphserve::kernels {
namespace {

using Options = WindowOptions;
using Layer = WindowLayer;

TEST(WindowMixerTest, AgreesWithTheOracleForEveryOptionOnEveryTarget) {
  for (const Options& options : AllWindowOptions()) {
    const Layer layer(options, 150);
    const Doubles expected = layer.Expected();
    MixerResult fused;
    ForEachTarget([&](const std::string& target, bool has_fma) {
      const MixerResult result = RunChunks(layer, {layer.length});
      EXPECT_LT(RelativeError(result.out, expected), WindowBound(options.dtype))
          << target << " " << Name(options);
      if (!has_fma) return;
      if (fused.out.empty()) fused = result;
      EXPECT_TRUE(Same(fused, result)) << target << " " << Name(options);
    });
  }
}

TEST(WindowMixerTest, ASequenceHasTheSameBitsHoweverItIsCut) {
  for (const Options& options : AllWindowOptions()) {
    const Layer layer(options, 200);
    const MixerResult whole = RunChunks(layer, {layer.length});
    for (const auto& cut : Cuts(layer.length)) {
      EXPECT_TRUE(Same(whole, RunChunks(layer, cut)))
          << Name(options) << " from chunks of " << cut[0];
    }
    for (int32_t threads : {2, 3}) {
      EXPECT_TRUE(Same(whole, RunChunks(layer, {layer.length}, threads))) << Name(options);
      EXPECT_TRUE(Same(whole, RunChunks(layer, ChunksOf(layer.length, 1), threads)))
          << Name(options);
    }
  }
}

TEST(WindowMixerTest, EqualValuesComeBackWhateverTheScores) {
  Layer layer({.dtype = KvDType::kF32, .gate = false}, 90);
  for (float& q : layer.q) q *= 40;
  for (size_t i = 0; i < layer.v.size(); ++i) layer.v[i] = layer.v[i % layer.kv_width];
  const MixerResult result = RunChunks(layer, ChunksOf(90, 41));
  for (size_t i = 0; i < result.out.size(); ++i) {
    const size_t head = i % layer.width / 32 / 3;
    ASSERT_NEAR(result.out[i], layer.v[head * 32 + i % 32], 2e-6) << i;
  }
  // One key for all positions: every weight is the same.
  for (size_t i = 0; i < layer.k.size(); ++i) layer.k[i] = layer.k[i % layer.kv_width];
  EXPECT_LT(RelativeError(RunChunks(layer, {90}).out, layer.Expected()), 1e-6);
}

TEST(WindowMixerTest, BrokenLimitsAreNamedBeforeAnythingIsWritten) {
  const Layer layer({}, 3);
  Slots slots(layer.Shape(), 1);
  std::vector<float> scratch, out;
  WindowMixerArgs good = layer.MakeArgs(&scratch, &out);
  const MixerSegment segment = {.row_count = 3, .dst_slot = slots.At(0)};
  good.segments = {&segment, 1};
  good.slot_base = slots.base();
  const auto before = slots.All();
  const auto message = [&](auto&& change) {
    WindowMixerArgs args = good;
    change(args);
    return std::string(RunMixer(args).message());
  };
  EXPECT_EQ(message([](auto& a) { a.shape.head_dim = 257; }), "head_dim 257 is outside 1..256");
  EXPECT_EQ(message([](auto& a) { a.heads = 5; }), "heads 5 is not a multiple of kv_heads 2");
  EXPECT_EQ(message([](auto& a) { a.shape.window = 0; }), "window 0 and sinks 4 are out of range");
  EXPECT_EQ(message([](auto& a) { a.shape.sinks = 38; }),
            "window 37 and sinks 38 are out of range");
  EXPECT_EQ(message([](auto& a) { a.rotary_dim = 5; }),
            "rotary_dim 5 is not an even number in 0..32");
  EXPECT_EQ(message([](auto& a) { a.scale = INFINITY; }),
            "scale inf or norm_eps 1e-06 is out of range");
  EXPECT_EQ(message([](auto& a) { a.gate_bias = nullptr; }), "gate and gate_bias go together");
  EXPECT_EQ(message([](auto& a) { a.cos = nullptr; }),
            "an input, the output or the slots are missing");
  std::byte small[64];
  good.workspace = small;
  good.workspace_bytes = 63;
  const auto pool = cpu::ThreadPool::Create(1, false);
  EXPECT_EQ(cpu::WindowMixer(good, {.pool = pool.get()}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(slots.All(), before);
  EXPECT_TRUE(SameBits(out.data(), layer.before.data(), out.size()));
}

}  // namespace
}  // namespace morphserve::kernels
