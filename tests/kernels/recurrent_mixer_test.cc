// The recurrent mixer against the fp64 oracle, and bit for bit against itself: one shot, chunks of
// odd sizes, token by token, any number of threads, every instruction set. Catches a convolution
// that forgets or repeats an input at a cut, a gate applied to the wrong token, a state column left
// behind, a slot written that was not named, and slot garbage that leaks into a new sequence.
#include "kernels/recurrent_mixer.h"

#include "tests/kernels/recurrent_mixer_fixture.h"

namespace morphserve::kernels {
namespace {

using Options = RecurrentOptions;
using Layer = RecurrentLayer;

Doubles StateOf(const MixerResult& result, const Layer& layer) {
  std::vector<float> state(layer.width * static_cast<size_t>(layer.options.dim));
  std::memcpy(state.data(), result.slot.data(), state.size() * sizeof(float));
  return {state.begin(), state.end()};
}

void ExpectNearOracle(const Layer& layer, const MixerResult& result, const std::string& what) {
  reference::Recurrent oracle = layer.Oracle();
  EXPECT_LT(RelativeError(result.out, layer.Expected(&oracle)), 1e-5) << what;
  const Doubles state = StateOf(result, layer);
  EXPECT_LT(RelativeError({state.begin(), state.end()}, oracle.state), 1e-5) << what;
}

TEST(RecurrentMixerTest, AgreesWithTheOracleForEveryOptionOnEveryTarget) {
  for (const Options& options : AllRecurrentOptions()) {
    const Layer layer(options, 70);
    MixerResult fused;
    ForEachTarget([&](const std::string& target, bool has_fma) {
      const MixerResult result = RunChunks(layer, {layer.length});
      ExpectNearOracle(layer, result, target + " " + Name(options));
      if (!has_fma) return;
      if (fused.out.empty()) fused = result;
      EXPECT_TRUE(Same(fused, result)) << target << " " << Name(options);
    });
  }
}

TEST(RecurrentMixerTest, ASequenceHasTheSameBitsHoweverItIsCut) {
  for (const Options& options : AllRecurrentOptions()) {
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

// The gates and keys that break chunked forms: they must be as right as any others.
TEST(RecurrentMixerTest, AgreesWithTheOracleAtTheEndsOfTheGates) {
  const auto check = [](const std::string& what, auto&& change) {
    Layer layer({}, 130);
    change(layer);
    const MixerResult result = RunChunks(layer, ChunksOf(layer.length, 47));
    reference::Recurrent oracle = layer.Oracle();
    EXPECT_LT(RelativeError(result.out, layer.Expected(&oracle)), 2e-5) << what;
    EXPECT_TRUE(Same(result, RunChunks(layer, ChunksOf(layer.length, 1)))) << what;
  };
  const auto fill = [](std::vector<float>& values, float value) {
    std::fill(values.begin(), values.end(), value);
  };
  check("g = 0", [&](Layer& l) { fill(l.a_log, -200); });
  check("g = -20", [&](Layer& l) {
    fill(l.a_log, 0);
    fill(l.dt_bias, 0);
    fill(l.a, 20);
  });
  check("softplus is linear and exp(g) zero", [&](Layer& l) { fill(l.a, 300); });
  check("softplus is tiny", [&](Layer& l) { fill(l.a, -40); });
  check("beta = 0", [&](Layer& l) { fill(l.b, -2000); });  // Zero in fp64 too.
  check("beta = 1", [&](Layer& l) { fill(l.b, 200); });
  check("identical keys, g = 0, beta = 1", [&](Layer& l) {
    fill(l.a_log, -200);
    fill(l.b, 200);
    for (size_t row = 0; row < 130; ++row) {
      std::copy_n(l.qkv.begin() + static_cast<std::ptrdiff_t>(l.width), l.width,
                  l.qkv.begin() + static_cast<std::ptrdiff_t>((3 * row + 1) * l.width));
    }
  });
  check("zero rows", [&](Layer& l) {
    std::fill_n(l.qkv.begin() + static_cast<std::ptrdiff_t>(30 * l.width), 90 * l.width, 0.0f);
  });
  check("all rows zero", [&](Layer& l) { fill(l.qkv, 0); });
}

TEST(RecurrentMixerTest, BrokenLimitsAreNamedBeforeAnythingIsWritten) {
  const Layer layer({}, 3);
  Slots slots(layer.Shape(), 1);
  std::vector<float> scratch, out;
  RecurrentMixerArgs good = layer.MakeArgs(&scratch, &out);
  const MixerSegment segment = {.row_count = 3, .dst_slot = slots.At(0)};
  good.segments = {&segment, 1};
  good.slot_base = slots.base();
  const auto before = slots.All();
  const auto message = [&](auto&& change) {
    RecurrentMixerArgs args = good;
    change(args);
    return std::string(RunMixer(args).message());
  };
  EXPECT_EQ(message([](auto& a) { a.shape.head_dim = 257; }), "head_dim 257 is outside 1..256");
  EXPECT_EQ(message([](auto& a) { a.shape.head_dim = 0; }), "head_dim 0 is outside 1..256");
  EXPECT_EQ(message([](auto& a) { a.shape.heads = 0; }), "heads 0 is not positive");
  EXPECT_EQ(message([](auto& a) { a.shape.conv_taps = 9; }), "conv_taps 9 is outside 0..8");
  EXPECT_EQ(message([](auto& a) { a.conv = nullptr; }), "4 taps lack their weights");
  EXPECT_EQ(message([](auto& a) { a.shape.conv_taps = 0; }), "0 taps do not go with their weights");
  EXPECT_EQ(message([](auto& a) { a.rotary_dim = 34; }),
            "rotary_dim 34 is not an even number in 0..32");
  EXPECT_EQ(message([](auto& a) { a.scale = NAN; }), "scale nan or eps 1e-05 is out of range");
  EXPECT_EQ(message([](auto& a) { a.b_beta = nullptr; }), "the gated delta rule lacks a gate");
  EXPECT_EQ(message([](auto& a) { a.kind = RecurrentKind::kLightning; }),
            "lightning attention lacks its slopes");
  EXPECT_EQ(message([](auto& a) { a.z = nullptr; }),
            "an input, the output or the slots are missing");
  std::byte small[64];
  good.workspace = small;
  good.workspace_bytes = 63;
  const auto pool = cpu::ThreadPool::Create(1, false);
  EXPECT_EQ(cpu::RecurrentMixer(good, {.pool = pool.get()}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(slots.All(), before);
  EXPECT_TRUE(SameBits(scratch.data(), layer.qkv.data(), scratch.size()));
}

}  // namespace
}  // namespace morphserve::kernels
