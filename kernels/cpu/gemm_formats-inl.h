// The quantised formats over `Ops`: how a group of a panel becomes eight quads of bytes and its
// scales, and the exact integer dot with 32 activations. Included once per instruction set, in the
// same way as gemm_kernels-inl.h, which says what Ops has.

// How far ahead of its use a line of weights is asked for. The hardware follows a stream only to
// the end of a 4 KiB page.
inline constexpr int64_t kPrefetchBytes = 3072;

inline void Prefetch(const std::byte* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + kPrefetchBytes + i);
}

// What one group of a panel brings: eight quads of bytes, scale and minimum.
struct GroupWeights {
  Ops::B w[8];
  Ops::F scale;
  Ops::F min;
  Ops::I first;  // Q6K: integer scales of the two halves.
  Ops::I second;
};

// `base` points at nibble rows, at the first output of the lanes in use.
inline void LoadNibbles(const std::byte* base, GroupWeights* out) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Ops::B bytes = Ops::LoadBytes(base + j * kQuadBytes);
    out->w[j] = Ops::LowNibbles(bytes);
    out->w[j + 4] = Ops::HighNibbles(bytes);
  }
}

// Formats. kBytes: of one group, on average. kBiased: bytes are q + 128. Load reads group g for
// kLanes outputs from `lane` on; Dot is the exact integer dot with the 32 inputs at x. `sums`
// points at this row's -128 * sum; -32 * sum of the first half is `width` elements further.
struct FormatQ8 {
  static constexpr bool kHasMin = false;
  static constexpr bool kBiased = true;
  static constexpr int64_t kBytes = kQ8PairBytes / 2;
  static void Load(const std::byte* panel, int64_t g, int lane, GroupWeights* out) {
    const std::byte* data = panel + Q8DataOffset(g) + 4 * lane;
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) out->w[j] = Ops::LoadBytes(data + j * kQuadBytes);
    out->scale = Ops::LoadHalf(panel + Q8ScaleOffset(g) + 2 * lane);
  }
  static Ops::I Dot(const GroupWeights& group, const int8_t* x, const int32_t* sums, int) {
    return Ops::DotSigned(group.w, x, sums);
  }
};

struct FormatQ4 {
  static constexpr bool kHasMin = true;
  static constexpr bool kBiased = false;
  static constexpr int64_t kBytes = kQ4GroupBytes;
  static void Load(const std::byte* panel, int64_t g, int lane, GroupWeights* out) {
    const std::byte* group = panel + g * kQ4GroupBytes;
    LoadNibbles(group + 2 * kHalfVectorBytes + 4 * lane, out);
    out->scale = Ops::LoadHalf(group + 2 * lane);
    out->min = Ops::LoadHalf(group + kHalfVectorBytes + 2 * lane);
  }
  static Ops::I Dot(const GroupWeights& group, const int8_t* x, const int32_t*, int) {
    return Ops::DotUnsigned<4, 8>(group.w, x);
  }
};

// d * scale and dmin * min have at most 17 significant bits: exact in f32.
inline void LoadSuperScales(const std::byte* super, int64_t in_super, int lane, GroupWeights* out) {
  const int64_t at = in_super * kPanelOutputs + lane;
  out->scale = Ops::Mul(Ops::LoadHalf(super + 2 * lane), Ops::LoadU8(super + kSuperScales + at));
  out->min = Ops::Negate(Ops::Mul(Ops::LoadHalf(super + kSuperMinBytes + 2 * lane),
                                  Ops::LoadU8(super + kSuperMins + at)));
}

struct FormatQ4K {
  static constexpr bool kHasMin = true;
  static constexpr bool kBiased = false;
  static constexpr int64_t kBytes = SuperBytes(kQ4KGroupBytes) / kSuperGroups;
  static void Load(const std::byte* panel, int64_t g, int lane, GroupWeights* out) {
    const std::byte* super = panel + g / kSuperGroups * SuperBytes(kQ4KGroupBytes);
    const int64_t in_super = g % kSuperGroups;
    LoadNibbles(super + kSuperData + in_super * kQ4KGroupBytes + 4 * lane, out);
    LoadSuperScales(super, in_super, lane, out);
  }
  static Ops::I Dot(const GroupWeights& group, const int8_t* x, const int32_t*, int) {
    return Ops::DotUnsigned<4, 8>(group.w, x);
  }
};

struct FormatQ5K {
  static constexpr bool kHasMin = true;
  static constexpr bool kBiased = false;
  static constexpr int64_t kBytes = SuperBytes(kQ5KGroupBytes) / kSuperGroups;
  static void Load(const std::byte* panel, int64_t g, int lane, GroupWeights* out) {
    const std::byte* super = panel + g / kSuperGroups * SuperBytes(kQ5KGroupBytes);
    const int64_t in_super = g % kSuperGroups;
    const std::byte* data = super + kSuperData + in_super * kQ5KGroupBytes + 4 * lane;
    LoadNibbles(data, out);
    const Ops::B plane = Ops::LoadBytes(data + kNibbleBytes);
    out->w[0] = Ops::Or(out->w[0], Ops::Bit4<0>(plane));
    out->w[1] = Ops::Or(out->w[1], Ops::Bit4<1>(plane));
    out->w[2] = Ops::Or(out->w[2], Ops::Bit4<2>(plane));
    out->w[3] = Ops::Or(out->w[3], Ops::Bit4<3>(plane));
    out->w[4] = Ops::Or(out->w[4], Ops::Bit4<4>(plane));
    out->w[5] = Ops::Or(out->w[5], Ops::Bit4<5>(plane));
    out->w[6] = Ops::Or(out->w[6], Ops::Bit4<6>(plane));
    out->w[7] = Ops::Or(out->w[7], Ops::Bit4<7>(plane));
    LoadSuperScales(super, in_super, lane, out);
  }
  static Ops::I Dot(const GroupWeights& group, const int8_t* x, const int32_t*, int) {
    return Ops::DotUnsigned<5, 8>(group.w, x);
  }
};

struct FormatQ6K {
  static constexpr bool kHasMin = false;
  static constexpr bool kBiased = false;
  static constexpr int64_t kBytes = SuperBytes(kQ6KGroupBytes) / kSuperGroups;
  static void Load(const std::byte* panel, int64_t g, int lane, GroupWeights* out) {
    const std::byte* super = panel + g / kSuperGroups * SuperBytes(kQ6KGroupBytes);
    const int64_t in_super = g % kSuperGroups;
    const std::byte* data = super + kSuperData + in_super * kQ6KGroupBytes + 4 * lane;
    LoadNibbles(data, out);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Ops::B plane = Ops::LoadBytes(data + kNibbleBytes + half * kQuadBytes);
      Ops::B* w = out->w + 4 * half;
      w[0] = Ops::Or(w[0], Ops::Bits45<0>(plane));
      w[1] = Ops::Or(w[1], Ops::Bits45<1>(plane));
      w[2] = Ops::Or(w[2], Ops::Bits45<2>(plane));
      w[3] = Ops::Or(w[3], Ops::Bits45<3>(plane));
    }
    out->scale = Ops::LoadHalf(super + 2 * lane);
    const std::byte* scales = super + kSuperScales + 2 * in_super * kPanelOutputs + lane;
    out->first = Ops::LoadS8(scales);
    out->second = Ops::LoadS8(scales + kPanelOutputs);
  }
  // |dot of 16| <= 65024 and |scale| <= 128: the sum of both halves stays below 2^24, exact in f32.
  static Ops::I Dot(const GroupWeights& group, const int8_t* x, const int32_t* sums, int width) {
    const int32_t first_sum = sums[width];
    const int32_t second_sum = sums[0] / 4 - first_sum;
    const Ops::I first = Ops::AddInt(Ops::DotUnsigned<6, 4>(group.w, x), Ops::SplatInt(first_sum));
    const Ops::I second =
        Ops::AddInt(Ops::DotUnsigned<6, 4>(group.w + 4, x + 16), Ops::SplatInt(second_sum));
    return Ops::AddInt(Ops::MulInt(first, group.first), Ops::MulInt(second, group.second));
  }
};
