// The mixers on the device: what the suite of the CPU's tests asks about segments, slots and emits,
// and agreement with the fp64 oracles for every option, every cut into chunks, and the gates and
// keys that break chunked forms. Repeated calls give the same bits.
#include <numeric>

#include "tests/kernels/cuda/mixer_cuda_fixture.h"
#include "tests/kernels/mixer_segments_suite.h"

namespace morphserve::kernels {

namespace cuda {

// So many heads that a block a head fills the device, and chunks go in one kernel.
struct ManyHeads : RecurrentOptions {
  ManyHeads() { heads = 96; }
};
struct CudaWideRecurrentLayer : CudaRecurrentLayer {
  using Options = ManyHeads;
  using CudaRecurrentLayer::CudaRecurrentLayer;
};

}  // namespace cuda

using CudaLayers =
    testing::Types<cuda::CudaRecurrentLayer, cuda::CudaWideRecurrentLayer, cuda::CudaWindowLayer>;
INSTANTIATE_TYPED_TEST_SUITE_P(Cuda, MixerSegmentsTest, CudaLayers);

namespace cuda {
namespace {

using MixersCudaTest = CudaTest;

// Of token by token, in f32.
constexpr double kTokenBound = 1e-4;

// As the launcher decides.
bool IsChunked(const RecurrentOptions& o) {
  return o.dtype != KvDType::kF32 && o.dim >= 32 && o.dim <= 128 &&
         (o.kind == RecurrentKind::kLightning || o.qk_norm == QkNorm::kL2);
}

// The state in the order of the oracle: the device keeps [head][value][key].
std::vector<float> StateOf(const MixerResult& result, const RecurrentLayer& layer) {
  const auto d = static_cast<size_t>(layer.options.dim);
  std::vector<float> stored(layer.width * d), state(layer.width * d);
  std::memcpy(stored.data(), result.slot.data(), stored.size() * sizeof(float));
  for (size_t i = 0; i < stored.size(); ++i) {
    const size_t head = i / (d * d), value = i / d % d, key = i % d;
    state[(head * d + key) * d + value] = stored[i];
  }
  return state;
}

// What a layer must give, computed once.
struct Expected {
  explicit Expected(const CudaRecurrentLayer& layer) {
    reference::Recurrent oracle = layer.Oracle();
    out = layer.Expected(&oracle);
    state = oracle.state;
  }
  void Check(const CudaRecurrentLayer& layer, const MixerResult& result, double bound,
             const std::string& what) const {
    EXPECT_LT(RelativeError(result.out, out), bound) << what;
    EXPECT_LT(RelativeError(StateOf(result, layer), state), bound) << what;
  }
  Doubles out, state;
};

TEST_F(MixersCudaTest, TheRecurrentMixerAgreesWithTheOracleHoweverASequenceIsCut) {
  for (const RecurrentOptions& options : AllRecurrentOptions()) {
    // Keys that are not normed make states grow beyond f32 in longer sequences.
    const CudaRecurrentLayer layer(options, IsChunked(options) ? 140 : 70);
    const Expected expected(layer);
    for (const auto& cut : Cuts(layer.length)) {
      const MixerResult result = RunChunks(layer, cut);
      const bool is_chunked = *std::max_element(cut.begin(), cut.end()) > 1 && IsChunked(options);
      expected.Check(layer, result, is_chunked ? CudaRecurrentLayer::kBound : kTokenBound,
                     Name(options) + " from chunks of " + std::to_string(cut[0]));
      if (cut[0] == 1) continue;
      EXPECT_TRUE(Same(result, RunChunks(layer, cut))) << Name(options);
    }
  }
}

TEST_F(MixersCudaTest, TheRecurrentMixerIsRightAtTheEndsOfTheGates) {
  const auto check = [](const std::string& what, auto&& change, double factor = 1) {
    CudaRecurrentLayer layer(RecurrentOptions{.dim = 64, .rotary = 64}, 130);
    change(layer);
    const Expected expected(layer);
    expected.Check(layer, RunChunks(layer, ChunksOf(layer.length, 100)),
                   factor * CudaRecurrentLayer::kBound, what);
    expected.Check(layer, RunChunks(layer, ChunksOf(layer.length, 1)), kTokenBound, what);
  };
  const auto fill = [](std::vector<float>& values, float value) {
    std::fill(values.begin(), values.end(), value);
  };
  check("g = 0", [&](RecurrentLayer& l) { fill(l.a_log, -200); });
  check("g = -20", [&](RecurrentLayer& l) {
    fill(l.a_log, 0);
    fill(l.dt_bias, 0);
    fill(l.a, 20);
  });
  check("softplus is linear and exp(g) zero", [&](RecurrentLayer& l) { fill(l.a, 300); });
  check("beta = 0", [&](RecurrentLayer& l) { fill(l.b, -2000); });
  check("beta = 1", [&](RecurrentLayer& l) { fill(l.b, 200); });
  // All of a token lies in one direction, where roundings of operands do not average out.
  check(
      "identical keys, g = 0, beta = 1",
      [&](RecurrentLayer& l) {
        fill(l.a_log, -200);
        fill(l.b, 200);
        for (size_t row = 0; row < 130; ++row) {
          std::copy_n(l.qkv.begin() + static_cast<std::ptrdiff_t>(l.width), l.width,
                      l.qkv.begin() + static_cast<std::ptrdiff_t>((3 * row + 1) * l.width));
        }
      },
      2);
  check("zero rows", [&](RecurrentLayer& l) {
    std::fill_n(l.qkv.begin() + static_cast<std::ptrdiff_t>(30 * l.width), 90 * l.width, 0.0f);
  });
}

TEST_F(MixersCudaTest, ManyHeadsAgreeWithTheOracle) {
  for (const RecurrentOptions& options : std::vector<RecurrentOptions>{
           {.heads = 96, .dim = 64, .dtype = KvDType::kBF16, .rotary = 64},
           {.heads = 96, .dim = 64, .rotary = 20},
           {.heads = 96, .dim = 64, .rotary = 36, .interleaved = true},
           {.heads = 96, .dim = 128, .rotary = 32, .interleaved = true},
           {.heads = 96, .dim = 120, .rotary = 0, .per_head_norm = false}}) {
    const CudaRecurrentLayer layer(options, 140);
    const Expected expected(layer);
    for (const std::vector<int32_t>& cut :
         {std::vector<int32_t>{140}, std::vector<int32_t>{70, 1, 69}}) {
      const MixerResult result = RunChunks(layer, cut);
      expected.Check(layer, result, CudaRecurrentLayer::kBound, Name(options));
      EXPECT_TRUE(Same(result, RunChunks(layer, cut))) << Name(options);
    }
  }
}

TEST_F(MixersCudaTest, TheWindowMixerAgreesWithTheOracleHoweverASequenceIsCut) {
  std::vector<WindowOptions> all = AllWindowOptions();
  // Heads of each width of the form for 16-bit rings.
  for (const auto& [dim, type] :
       {std::pair{128, KvDType::kF16}, {256, KvDType::kBF16}, {40, KvDType::kBF16}}) {
    all.push_back({.heads = 4,
                   .kv_heads = 2,
                   .dim = dim,
                   .window = 70,
                   .sinks = 5,
                   .dtype = type,
                   .rotary = dim,
                   .norm = true});
  }
  for (const WindowOptions& options : all) {
    const CudaWindowLayer layer(options, 140);
    const MixerResult whole = RunChunks(layer, {layer.length});
    const Doubles expected = layer.Expected();
    EXPECT_LT(RelativeError(whole.out, expected), 2 * WindowBound(options.dtype)) << Name(options);
    for (const auto& cut : Cuts(layer.length)) {
      const std::string what = Name(options) + " from chunks of " + std::to_string(cut[0]);
      const MixerResult result = RunChunks(layer, cut);
      EXPECT_TRUE(Same(result, RunChunks(layer, cut))) << what;
      EXPECT_LT(RelativeError(result.out, expected), 2 * WindowBound(options.dtype)) << what;
      // A single row shares its positions out over warps, so its sums come in another order.
      if (std::find(cut.begin(), cut.end(), 1) == cut.end()) {
        EXPECT_TRUE(Same(result, whole)) << what;
      }
    }
  }
}

// Sequences of as many rows as `cut` has, in one call each time.
template <class Layer>
void ExpectTheSameInCompany(const Layer& layer, const std::vector<int32_t>& cut) {
  const int32_t rows = std::accumulate(cut.begin(), cut.end(), 0);
  const int32_t sequences = layer.length / rows;
  Slots slots(layer.Shape(), sequences);
  std::vector<float> scratch, out;
  typename Layer::Args args = layer.MakeArgs(&scratch, &out);
  slots.Attach(&args);
  int32_t done = 0;
  for (const int32_t count : cut) {
    std::vector<MixerSegment> segments;
    for (int32_t i = 0; i < sequences; ++i) {
      segments.push_back({.row_begin = i * rows + done,
                          .row_count = count,
                          .position = done,
                          .src_slot = slots.At(i),
                          .dst_slot = slots.At(i)});
    }
    layer.FillScratch(&scratch);
    args.segments = segments;
    ASSERT_TRUE(RunMixer(args).ok());
    done += count;
  }
  for (int32_t i = 0; i < sequences; ++i) {
    const MixerResult alone = RunChunks(layer, cut, 1, i * rows);
    const size_t at = static_cast<size_t>(i * rows) * layer.width;
    const size_t count = static_cast<size_t>(rows) * layer.width;
    const std::vector<float> own(&alone.out[at], &alone.out[at] + count);
    EXPECT_TRUE(SameBits(own.data(), &out[at], count))
        << i << ": " << RelativeError(own, Doubles(&out[at], &out[at] + count));
    const auto [begin, end] = OwnPart(layer);
    const std::vector<std::byte> slot = slots.Copy(i);
    EXPECT_TRUE(std::equal(slot.begin() + begin, slot.begin() + end, alone.slot.begin() + begin))
        << i;
  }
}

// Few heads are shared out over more blocks than many, and many rows over fewer than there are.
TEST_F(MixersCudaTest, ASequenceHasTheSameBitsAloneAndInCompany) {
  for (const int32_t dim : {64, 128, 96}) {
    SCOPED_TRACE(dim);
    ExpectTheSameInCompany(
        CudaRecurrentLayer({.heads = 49, .dim = dim, .dtype = KvDType::kBF16, .rotary = 0}, 280),
        {69, 1});
    ExpectTheSameInCompany(CudaRecurrentLayer({.heads = 20, .dim = dim, .rotary = 0}, 150),
                           {2, 1, 1, 1, 1});
  }
  for (const int32_t group : {1, 2, 3, 4}) {
    ExpectTheSameInCompany(
        CudaWindowLayer({.heads = 4 * group, .kv_heads = 4, .dim = 64, .window = 5, .sinks = 2},
                        8 * 70),
        {6, 1, 1});
  }
}

}  // namespace
}  // namespace cuda
}  // namespace morphserve::kernels
