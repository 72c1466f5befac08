// Toy models with random branches of every kind, in f32 and small enough that an fp64 oracle runs
// them whole, dozens of times a test.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/device_place.h"
#include "engine/model/branches.h"
#include "engine/model/device_weights.h"
#include "engine/model/weights.h"
#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"
#include "morph/calibration_data.h"
#include "morph/selection_model.h"
#include "morph/work_list.h"
#include "tests/engine/tiny_checkpoint.h"
#include "tests/kernels/kernel_test_util.h"

namespace morphserve {

struct ToyOptions {
  BranchKind kind = BranchKind::kGatedDeltaWindow;
  bool own = false;
  bool qk_norm = false;
  bool bias = false;
  bool interleaved = false;
  int32_t layers = 4;
  int32_t window = 7;
  int32_t sinks = 2;
  int32_t threads = 2;
  DeviceKind device = DeviceKind::kCpu;
};

inline const std::vector<ToyOptions>& AllToyKinds() {
  static const auto& kinds = *new std::vector<ToyOptions>{
      {.kind = BranchKind::kGatedDeltaWindow},
      {.kind = BranchKind::kGatedDeltaWindow, .own = true, .bias = true},
      {.kind = BranchKind::kGatedDelta, .qk_norm = true},
      {.kind = BranchKind::kGatedDelta, .own = true, .interleaved = true},
      {.kind = BranchKind::kLightning},
      {.kind = BranchKind::kLightning, .own = true, .bias = true},
      {.kind = BranchKind::kWindow, .qk_norm = true, .interleaved = true}};
  return kinds;
}

inline std::string ToyName(const ToyOptions& o) {
  return std::string(BranchKindName(o.kind)) + (o.own ? " own" : "");
}

class Toy {
 public:
  explicit Toy(const ToyOptions& options)
      : pool_(kernels::cpu::ThreadPool::Create(options.threads, false)) {
    Checkpoint checkpoint = MakeTinyCheckpoint({.layers = options.layers,
                                                .hidden = 20,
                                                .heads = 4,
                                                .kv_heads = 2,
                                                .head_dim = 6,
                                                .mlp_width = 24,
                                                .vocab = 60,
                                                .qkv_bias = options.bias,
                                                .qk_norm = options.qk_norm,
                                                .seed = 5});
    config = checkpoint.config;
    config.rope.interleaved = options.interleaved;
    weights = *LoadWeights(checkpoint, WeightsDType::kF32, pool_.get(), nullptr, nullptr);
    MakeBranches(options);
    if (options.device == DeviceKind::kCpu) return;
    auto place = DevicePlace::Open(options.device);
    EXPECT_TRUE(place.ok()) << place.status();
    place_ = *std::move(place);
    auto placed =
        PlaceOnDevice(weights.get(), &branches, /*bf16_copies=*/false, place_.stream(nullptr));
    EXPECT_TRUE(placed.ok()) << placed.status();
    place_.weights = *std::move(placed);
  }

  SelectionSource source() const {
    return {.config = &config,
            .weights = weights.get(),
            .branches = &branches,
            .backend = &place_.backend(),
            .selection = place_.selection(),
            .stream = place_.stream(pool_.get())};
  }

  // Random tokens, some of whose later positions are scored.
  CalibrationSample Sample(int32_t tokens, uint64_t seed) const {
    kernels::Numbers numbers(seed);
    CalibrationSample sample;
    for (int32_t i = 0; i < tokens; ++i) sample.tokens.push_back(numbers.Below(config.vocab));
    for (int32_t i = tokens / 2; i < tokens - 1; i += 4) sample.scored.push_back(i);
    return sample;
  }

  ModelConfig config;
  std::unique_ptr<ModelWeights> weights;
  Branches branches;

 private:
  void MakeBranches(const ToyOptions& o) {
    BranchesConfig& c = branches.header.config;
    const bool delta = o.kind != BranchKind::kLightning && o.kind != BranchKind::kWindow;
    c.kind = o.kind;
    c.own = o.own;
    c.heads = config.heads;
    c.head_dim = config.head_dim;
    if (c.has_window()) c.window = o.window, c.sinks = o.sinks;
    if (c.has_state()) {
      c.rank = o.own ? 0 : 3;
      c.gate_rank = 2;
      c.conv_taps = 3;
      c.norm_eps = 1e-3f;
      c.scale = 0.4f;
      c.silu = delta;
      c.qk_norm = delta ? kernels::QkNorm::kL2 : kernels::QkNorm::kRms;
    }
    for (int32_t l = 0; l < config.layers; ++l) branches.layers.push_back(MakeLayer(c));
  }

  LinearWeights MakeLayer(const BranchesConfig& c) {
    LinearWeights w;
    if (!c.has_state()) return w;
    const int32_t q = c.heads * c.head_dim;
    const int32_t kv = config.kv_heads * c.head_dim;
    const auto heads = static_cast<size_t>(c.heads), width = static_cast<size_t>(q);
    w.down = Matrix(MakeDownColumns(c).width, config.hidden, 1);
    w.gu = Matrix(q, c.gate_rank, 1);
    w.gb = numbers_.Normals(width);
    w.conv = numbers_.Normals(3 * 3 * width, 0.6f);
    w.nw = numbers_.Normals(width);
    if (c.own) {
      w.wq = Matrix(q, config.hidden, 1);
      w.wk = Matrix(kv, config.hidden, 1);
      w.wv = Matrix(kv, config.hidden, 1);
      w.wo = Matrix(config.hidden, q, 1);
    } else {
      for (kernels::PackedMatrix* m : {&w.bq, &w.bk, &w.bv}) *m = Matrix(q, c.rank, 0.5f);
      w.ao = Matrix(c.rank, q, 1);
      w.bo = Matrix(config.hidden, c.rank, 0.5f);
    }
    if (c.kind == BranchKind::kLightning) {
      for (size_t h = 0; h < heads; ++h)
        w.slopes.host().push_back(0.05f * static_cast<float>(h + 1));
    } else {
      w.a_log = numbers_.Normals(heads, 0.5f);
      w.dt_bias.host().assign(heads, -2.0f);
      w.b_beta = numbers_.Normals(heads);
    }
    if (c.has_window()) w.bs = numbers_.Normals(heads);
    return w;
  }

  kernels::PackedMatrix Matrix(int32_t n, int32_t k, float scale) {
    const auto values = numbers_.Normals(static_cast<size_t>(n) * static_cast<size_t>(k),
                                         scale / std::sqrt(static_cast<float>(k)));
    kernels::PackedMatrix matrix = {.format = kernels::WeightFormat::kF32, .n = n, .k = k};
    memory_.push_back(
        std::make_unique<kernels::Workspace>(kernels::PackedBytes(matrix.format, n, k)));
    matrix.data = memory_.back()->data();
    EXPECT_TRUE(kernels::PackRows(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), 0,
                                  n, matrix, memory_.back()->data())
                    .ok());
    return matrix;
  }

  std::unique_ptr<kernels::cpu::ThreadPool> pool_;
  DevicePlace place_;
  kernels::Numbers numbers_{3};
  std::vector<std::unique_ptr<kernels::Workspace>> memory_;
};

inline void RunAll(WorkList* list) {
  while (!list->empty()) {
    const absl::Status status = list->RunOne();
    ASSERT_TRUE(status.ok()) << status;
  }
}

}  // namespace morphserve
