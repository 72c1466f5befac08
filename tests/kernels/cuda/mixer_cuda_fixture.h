// The mixers' layers of the CPU tests, run on the device: the memory that a call names is mirrored
// there, the call is made with the mirror's addresses, and everything is copied back. Thread rule:
// the test's thread.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "tests/kernels/cuda/mirror.h"
#include "tests/kernels/recurrent_mixer_fixture.h"
#include "tests/kernels/window_mixer_fixture.h"

namespace morphserve::kernels::cuda {

// Arguments that name host memory, and which memory that is.
template <class Base>
struct CudaArgs : Base {
  Mirror mirror;
  std::span<const std::byte> slots;
};

// What both mixers' calls have in common; `args` is changed to name the device's memory.
template <class Base>
void MirrorSegments(CudaArgs<Base>* args, int32_t* places) {
  Mirror& mirror = args->mirror;
  *places = 0;
  args->single_rows = false;
  for (const MixerSegment& s : args->segments) {
    args->single_rows = args->single_rows || s.row_count == 1;
    *places = std::max(*places, s.row_begin + s.row_count);
    if (args->rows_max < 2 && s.row_count < 2) ++args->first_chunk;
    args->rows_max = std::max(args->rows_max, s.row_count);
  }
  mirror.Add(args->slots.data(), args->slots.size());
  mirror.Add(args->segments.data(), args->segments.size_bytes());
  mirror.Add(args->emits.data(), args->emits.size_bytes());
  mirror.Add(args->row_list, static_cast<size_t>(*places) * sizeof(int32_t));
  mirror.Add(args->nonfinite, args->segments.size());
  mirror.Upload();
  args->slot_base = mirror.At(args->slot_base);
  args->segments = {mirror.At(args->segments.data()), args->segments.size()};
  args->emits = {mirror.At(args->emits.data()), args->emits.size()};
  args->row_list = mirror.At(args->row_list);
  args->nonfinite = mirror.At(args->nonfinite);
  args->cos = mirror.At(args->cos);
  args->sin = mirror.At(args->sin);
  args->out = mirror.At(args->out);
}

inline absl::Status RunMixer(CudaArgs<RecurrentMixerArgs> args, int32_t /*threads*/ = 1) {
  int32_t places = 0;
  MirrorSegments(&args, &places);
  for (const float** p : {&args.conv, &args.a, &args.b, &args.a_log, &args.dt_bias, &args.b_beta,
                          &args.slopes, &args.norm_weight, &args.z}) {
    *p = args.mirror.At(*p);
  }
  args.qkv = args.mirror.At(args.qkv);
  const DeviceArray<std::byte> workspace(static_cast<size_t>(
      CudaBackend()->recurrent_bytes(places, args.shape.heads, args.shape.head_dim, 0)));
  args.workspace = workspace.data();
  args.workspace_bytes = static_cast<int64_t>(workspace.size());
  absl::Status status = CudaBackend()->recurrent_mixer(args, {});
  if (status.ok()) status = Synchronize({});
  args.mirror.Download();
  return status;
}

inline absl::Status RunMixer(CudaArgs<WindowMixerArgs> args, int32_t /*threads*/ = 1) {
  int32_t places = 0;
  MirrorSegments(&args, &places);
  for (const float** p : {&args.v, &args.q_norm, &args.k_norm, &args.gate, &args.gate_bias}) {
    *p = args.mirror.At(*p);
  }
  args.q = args.mirror.At(args.q);
  args.k = args.mirror.At(args.k);
  const DeviceArray<std::byte> workspace(static_cast<size_t>(CudaBackend()->window_bytes(
      static_cast<int32_t>(args.segments.size()), places, args.shape, 0)));
  args.workspace = workspace.data();
  args.workspace_bytes = static_cast<int64_t>(workspace.size());
  absl::Status status = CudaBackend()->window_mixer(args, {});
  if (status.ok()) status = Synchronize({});
  args.mirror.Download();
  return status;
}

// A layer of the CPU tests whose calls run on the device.
template <class Layer>
struct CudaLayer : Layer {
  using Args = CudaArgs<typename Layer::Args>;
  using Layer::Layer;

  // Why there can be no test here; empty if there is no reason.
  static std::string Obstacle() {
    const absl::Status status = OpenDevice(0).status();
    const bool is_absent = absl::IsNotFound(status) || absl::IsUnimplemented(status);
    EXPECT_TRUE(status.ok() || is_absent) << status;
    return std::string(status.message());
  }

  Args MakeArgs(std::vector<float>* scratch, std::vector<float>* out) const {
    Args args;
    static_cast<typename Layer::Args&>(args) = Layer::MakeArgs(scratch, out);
    args.mirror.Add(*scratch);
    args.mirror.Add(*out);
    args.mirror.Add(this->rotary.cos);
    args.mirror.Add(this->rotary.sin);
    AddParameters(*this, &args.mirror);
    return args;
  }

 private:
  static void AddParameters(const RecurrentLayer& l, Mirror* mirror) {
    for (const auto* values :
         {&l.a, &l.b, &l.z, &l.conv, &l.a_log, &l.dt_bias, &l.b_beta, &l.slopes, &l.norm_weight}) {
      mirror->Add(*values);
    }
  }
  static void AddParameters(const WindowLayer& l, Mirror* mirror) {
    for (const auto* values : {&l.v, &l.gate, &l.gate_bias, &l.q_norm, &l.k_norm}) {
      mirror->Add(*values);
    }
  }
};

// Chunks of more than one row go through products of rounded operands, so that where they are cut
// shows.
struct CudaRecurrentLayer : CudaLayer<RecurrentLayer> {
  using CudaLayer<RecurrentLayer>::CudaLayer;
  static constexpr double kBound = 0.005;
};
using CudaWindowLayer = CudaLayer<WindowLayer>;

}  // namespace morphserve::kernels::cuda
