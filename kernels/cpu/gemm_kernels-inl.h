// The inner kernels, written once over a small set of vector operations (`Ops`) and compiled once
// per instruction set. The including file has opened its target attributes and its own anonymous
// namespace, defined Ops there, and included everything this file needs: no #include here, because
// nothing may be compiled for a wider target by accident.
//
// Ops has kLanes outputs in a vector (8 or 16) and keeps at most kMaxTokens sums in registers:
//   F, I, B              kLanes floats, int32, 4 * kLanes bytes
//   DotUnsigned<bits, quads>(w, x)   sum over quads of w[j] (u8 < 2^bits) . x[4j..4j+3] (s8), exact
//   DotSigned(w, x, init)            w holds q + 128; *init is -128 * sum(x): sum of q . x, exact
//   LoadSmallE4m3(p)     2^-8 times the values of e4m3 codes, exact
//   Nibbles, bit planes, loads and conversions as named.
// The formats come from gemm_formats-inl.h, included before.

// One panel times one tile. Every sum is one chain over the groups in ascending order.
template <class Format, int kWidth>
void QuantisedPanel(const std::byte* panel, int64_t groups, const std::byte* tile, float* sums) {
  constexpr int kTokens = kWidth < Ops::kMaxTokens ? kWidth : Ops::kMaxTokens;
  for (int first = 0; first < kWidth; first += kTokens) {
    for (int lane = 0; lane < kPanelOutputs; lane += Ops::kLanes) {
      Ops::F acc[kTokens];
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) acc[t] = Ops::Zero();
      const std::byte* x = tile + first * 32;
      for (int64_t g = 0; g < groups; ++g, x += kWidth * kTileGroupBytes) {
        Prefetch(panel + g * Format::kBytes, Format::kBytes);
        GroupWeights group;
        Format::Load(panel, g, lane, &group);
        // The four vectors of facts about the rows, after the bytes of all rows.
        const std::byte* facts = x - first * 32 + kWidth * 32 + first * 4;
        const float* scale = reinterpret_cast<const float*>(facts);
        const float* scaled_sum = scale + kWidth;
        const int32_t* int_sums = reinterpret_cast<const int32_t*>(facts) + 2 * kWidth;
        const int8_t* q = reinterpret_cast<const int8_t*>(x);
#pragma GCC unroll 16
        for (int t = 0; t < kTokens; ++t) {
          const Ops::I dot = Format::Dot(group, q + 32 * t, int_sums + t, kWidth);
          acc[t] =
              Ops::MulAdd(Ops::Mul(group.scale, Ops::Splat(scale + t)), Ops::ToFloat(dot), acc[t]);
          if constexpr (Format::kHasMin) {
            acc[t] = Ops::MulAdd(group.min, Ops::Splat(scaled_sum + t), acc[t]);
          }
        }
      }
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) {
        Ops::Store(sums + (first + t) * kPanelOutputs + lane, acc[t]);
      }
    }
  }
}

template <class Format, int kWidth>
void QuantisedTile(const std::byte* panel, int64_t panel_bytes, int32_t panels, int64_t k,
                   const std::byte* tile, float* sums) {
  for (int32_t p = 0; p < panels; ++p) {
    QuantisedPanel<Format, kWidth>(panel + p * panel_bytes, k / kGroupInputs, tile,
                                   sums + p * kWidth * kPanelOutputs);
  }
}

// Formats of floats. With kScaled, inputs come in groups of kFp8Inputs behind their scales.
struct FormatF32 {
  static constexpr bool kScaled = false;
  static constexpr int64_t kBytes = 4;
  static Ops::F Load(const std::byte* p) { return Ops::LoadFloat(p); }
};
struct FormatF16 {
  static constexpr bool kScaled = false;
  static constexpr int64_t kBytes = 2;
  static Ops::F Load(const std::byte* p) { return Ops::LoadHalf(p); }
};
struct FormatBF16 {
  static constexpr bool kScaled = false;
  static constexpr int64_t kBytes = 2;
  static Ops::F Load(const std::byte* p) { return Ops::LoadBFloat16(p); }
};
struct FormatFp8 {
  static constexpr bool kScaled = true;
  static constexpr int64_t kBytes = 1;
  static Ops::F Load(const std::byte* p) { return Ops::LoadSmallE4m3(p); }
  // What Load leaves out is in the scale.
  static Ops::F LoadScale(const std::byte* p) {
    static constexpr float kRest = 256.0f;
    return Ops::Mul(Ops::LoadFloat(p), Ops::Splat(&kRest));
  }
};

// Inputs [0, count) of kVectors vectors of outputs, times x, onto the sums. `scale` is of kScaled.
template <class Format, int kWidth, int kTokens, int kVectors>
inline void AddFloats(const std::byte* const* vectors, int64_t count, const float* x,
                      const Ops::F (&scale)[kVectors], Ops::F (&acc)[kVectors][kTokens]) {
  constexpr int64_t kStep = Format::kBytes * kPanelOutputs;
  for (int64_t i = 0; i < count; ++i, x += kWidth) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const std::byte* p = vectors[v] + i * kStep;
      if (kWidth <= 8) __builtin_prefetch(p + kPrefetchBytes / 2);
      Ops::F w = Format::Load(p);
      if constexpr (Format::kScaled) w = Ops::Mul(w, scale[v]);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t) acc[v][t] = Ops::MulAdd(w, Ops::Splat(x + t), acc[v][t]);
    }
  }
}

// kVectors adjacent vectors of outputs (of one panel or of adjacent panels) times kTokens rows.
// With few rows several vectors run side by side, because one chain of FMAs waits for itself.
template <class Format, int kWidth, int kTokens, int kVectors>
void FloatVectors(const std::byte* const* panels, const int64_t* lanes, int64_t k, const float* x,
                  float* const* sums) {
  const std::byte* vectors[kVectors];
  Ops::F scale[kVectors];
  Ops::F acc[kVectors][kTokens];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) acc[v][t] = Ops::Zero();
  }
  const int64_t run = Format::kScaled ? kFp8Inputs : k;
  for (int64_t begin = 0; begin < k; begin += run) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      scale[v] = Ops::Zero();
      vectors[v] = panels[v] + lanes[v] * Format::kBytes;
      if constexpr (Format::kScaled) {
        const std::byte* group = panels[v] + begin / kFp8Inputs * kFp8GroupBytes;
        scale[v] = Format::LoadScale(group + lanes[v] * 4);
        vectors[v] = group + kFp8ScaleBytes + lanes[v];
      }
    }
    const int64_t count = k - begin < run ? k - begin : run;
    AddFloats<Format, kWidth, kTokens, kVectors>(vectors, count, x + begin * kWidth, scale, acc);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t) Ops::Store(sums[v] + t * kPanelOutputs, acc[v][t]);
  }
}

template <class Format, int kWidth>
void FloatTile(const std::byte* panel, int64_t panel_bytes, int32_t panels, int64_t k,
               const std::byte* tile, float* sums) {
  constexpr int kTokens = kWidth < Ops::kMaxTokens ? kWidth : Ops::kMaxTokens;
  constexpr int kPanelVectors = kPanelOutputs / Ops::kLanes;
  // Eight chains keep two FMA units of latency 4 busy.
  constexpr int kMost = kFloatPanels * kPanelVectors;
  constexpr int kEight = kTokens < 8 ? 8 / kTokens : 1;
  constexpr int kWanted = kEight < kMost ? kEight : kMost;
  const float* x = reinterpret_cast<const float*>(tile);
  const int32_t count = panels * kPanelVectors;
  for (int first = 0; first < kWidth; first += kTokens) {
    const std::byte* source[kWanted];
    int64_t lanes[kWanted];
    float* target[kWanted];
    const auto place = [&](int32_t vector, int slot) {
      const int32_t p = vector / kPanelVectors;
      const int64_t lane = vector % kPanelVectors * Ops::kLanes;
      source[slot] = panel + p * panel_bytes;
      lanes[slot] = lane;
      target[slot] = sums + (p * kWidth + first) * kPanelOutputs + lane;
    };
    int32_t v = 0;
    for (; v + kWanted <= count; v += kWanted) {
      for (int s = 0; s < kWanted; ++s) place(v + s, s);
      FloatVectors<Format, kWidth, kTokens, kWanted>(source, lanes, k, x + first, target);
    }
    for (; v < count; ++v) {
      place(v, 0);
      FloatVectors<Format, kWidth, kTokens, 1>(source, lanes, k, x + first, target);
    }
  }
}

// One row of x: scale = max|x| / 127, q = nearest even of x * (127 / max|x|). The largest magnitude
// is found on the bits, where NaN and infinity are larger than any number: such a group gets scale
// NaN, which every output of the row then shows. Below 2^-100 a group counts as zero: 127 / max
// would overflow.
inline void QuantiseRow(const float* x, int64_t k, std::byte* tile, int32_t slot, int32_t width) {
  std::byte* group = tile;
  for (int64_t i = 0; i < k; i += kGroupInputs, group += width * kTileGroupBytes) {
    const int32_t max_bits = Ops::MaxMagnitudeBits(x + i);
    const float max = std::bit_cast<float>(max_bits);
    int8_t* q = reinterpret_cast<int8_t*>(group) + slot * 32;
    float scale = 0.0f;
    int32_t first_sum = 0;
    int32_t second_sum = 0;
    if (max_bits >= 0x7f800000 || max < 0x1p-100f) {
      std::memset(q, 0, 32);
      scale = max_bits >= 0x7f800000 ? std::bit_cast<float>(0x7fc00000) : 0.0f;
    } else {
      scale = max / 127.0f;
      Ops::RoundGroup(x + i, 127.0f / max, q, &first_sum, &second_sum);
    }
    const int32_t sum = first_sum + second_sum;
    float* facts = reinterpret_cast<float*>(group + width * 32) + slot;
    facts[0] = scale;
    facts[width] = scale * static_cast<float>(sum);
    const int32_t sums[2] = {-128 * sum, -32 * first_sum};
    std::memcpy(facts + 2 * width, &sums[0], 4);
    std::memcpy(facts + 3 * width, &sums[1], 4);
  }
}

// Adds the bias, then the old y, and writes the outputs that exist.
inline void StoreBlock(const float* sums, const BlockOutput& out) {
  if (out.outputs == kPanelOutputs) {
    for (int lane = 0; lane < kPanelOutputs; lane += Ops::kLanes) {
      const Ops::F bias = out.bias != nullptr ? Ops::Load(out.bias + lane) : Ops::Zero();
      for (int32_t r = 0; r < out.rows; ++r) {
        Ops::F value = Ops::Load(sums + r * kPanelOutputs + lane);
        if (out.bias != nullptr) value = Ops::Add(value, bias);
        float* y = out.y[r] + lane;
        if (out.accumulate) value = Ops::Add(Ops::Load(y), value);
        Ops::Store(y, value);
      }
    }
    return;
  }
  for (int32_t r = 0; r < out.rows; ++r) {
    for (int32_t i = 0; i < out.outputs; ++i) {
      float value = sums[r * kPanelOutputs + i];
      if (out.bias != nullptr) value = value + out.bias[i];
      float* y = out.y[r] + i;
      *y = out.accumulate ? *y + value : value;
    }
  }
}

template <class Format>
void SetQuantised(WeightFormat format, GemmKernels* table) {
  GemmKernels::TileKernel* row = table->tile[static_cast<int>(format)];
  row[0] = QuantisedTile<Format, 1>;
  row[1] = QuantisedTile<Format, 2>;
  row[2] = QuantisedTile<Format, 4>;
  row[3] = QuantisedTile<Format, 8>;
  row[4] = QuantisedTile<Format, 16>;
}

template <class Format>
void SetFloat(WeightFormat format, GemmKernels* table) {
  GemmKernels::TileKernel* row = table->tile[static_cast<int>(format)];
  row[0] = FloatTile<Format, 1>;
  row[1] = FloatTile<Format, 2>;
  row[2] = FloatTile<Format, 4>;
  row[3] = FloatTile<Format, 8>;
  row[4] = FloatTile<Format, 16>;
}

inline GemmKernels MakeKernels() {
  GemmKernels table;
  table.quantise = QuantiseRow;
  table.store = StoreBlock;
  SetFloat<FormatF32>(WeightFormat::kF32, &table);
  SetFloat<FormatF16>(WeightFormat::kF16, &table);
  SetFloat<FormatBF16>(WeightFormat::kBF16, &table);
  SetFloat<FormatFp8>(WeightFormat::kFp8, &table);
  SetQuantised<FormatQ8>(WeightFormat::kQ8, &table);
  SetQuantised<FormatQ4>(WeightFormat::kQ4, &table);
  SetQuantised<FormatQ4K>(WeightFormat::kQ4K, &table);
  SetQuantised<FormatQ5K>(WeightFormat::kQ5K, &table);
  SetQuantised<FormatQ6K>(WeightFormat::kQ6K, &table);
  return table;
}
