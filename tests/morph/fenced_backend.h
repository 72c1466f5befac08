// A CPU backend whose memory is as far away as a device's: between two operations the selection's
// buffers cannot be touched at all, and an operation may name nothing but them and the weights.
// What runs here keeps the memory rule of kernels/backend.h. One model at a time; the test's
// thread.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <initializer_list>
#include <vector>

#include "gtest/gtest.h"
#include "morph/selection_model.h"

namespace morphserve {

class Fence {
 public:
  static Fence& Get() {
    static Fence& fence = *new Fence;
    return fence;
  }

  // From now on; the buffers begin at `base`, and kept inputs will take `kept_bytes`.
  void Close(const SelectionSource& source, const float* base, int64_t bytes, int64_t kept_bytes) {
    kept_bytes_ = kept_bytes;
    fenced_ = {{reinterpret_cast<uintptr_t>(base), static_cast<size_t>(bytes)}};
    readable_.clear();
    Allow(source.weights->output_norm.host());
    for (const LayerWeights& w : source.weights->layers) {
      for (const Parameter* p : {&w.attn_norm, &w.q_bias, &w.k_bias, &w.v_bias, &w.q_norm,
                                 &w.k_norm, &w.output_bias, &w.ffn_norm}) {
        Allow(p->host());
      }
    }
    for (const LinearWeights& w : source.branches->layers) {
      for (const Parameter* p :
           {&w.gb, &w.conv, &w.a_log, &w.dt_bias, &w.b_beta, &w.slopes, &w.nw, &w.bs}) {
        Allow(p->host());
      }
    }
    // Nothing may count on zeros; what was put before this has to stay.
    std::memset(const_cast<float*>(base), 0xFF, static_cast<size_t>(bytes));
    for (const Early& early : early_) std::memcpy(early.to, early.bytes.data(), early.bytes.size());
    early_.clear();
    Protect(PROT_NONE);
  }
  void PutEarly(void* to, const void* host, int64_t bytes) {
    const auto* const from = static_cast<const std::byte*>(host);
    early_.push_back({to, {from, from + bytes}});
  }
  // Kept inputs are a second block, which the first copy into it makes known.
  void JoinKept(const void* begin) {
    if (fenced_.size() > 1 || Fenced(begin)) return;
    fenced_.push_back({reinterpret_cast<uintptr_t>(begin), static_cast<size_t>(kept_bytes_)});
  }
  void Open() {
    Protect(PROT_READ | PROT_WRITE);
    fenced_.clear();
  }

  void Protect(int how) const {
    for (const Range& range : fenced_) {
      const size_t pages = (range.bytes + 4095) / 4096 * 4096;
      ASSERT_EQ(mprotect(reinterpret_cast<void*>(range.begin), pages, how), 0);
    }
  }
  bool closed() const { return !fenced_.empty(); }
  bool Fenced(const void* address) const { return In(fenced_, address); }

  // What an operation's arguments name. Buffers are behind the fence, weights are what was loaded.
  void Buffers(std::initializer_list<const void*> pointers) const {
    if (!closed()) return;
    int place = 0;
    for (const void* pointer : pointers) {
      EXPECT_TRUE(pointer == nullptr || In(fenced_, pointer)) << "buffer " << place;
      ++place;
    }
  }
  void Weights(std::initializer_list<const void*> pointers) const {
    if (!closed()) return;
    for (const void* pointer : pointers) {
      EXPECT_TRUE(pointer == nullptr || In(readable_, pointer));
    }
  }

 private:
  struct Range {
    uintptr_t begin;
    size_t bytes;
  };
  struct Early {
    void* to;
    std::vector<std::byte> bytes;
  };
  static bool In(const std::vector<Range>& ranges, const void* address) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    for (const Range& range : ranges) {
      if (range.begin <= at && at < range.begin + range.bytes) return true;
    }
    return false;
  }
  void Allow(const void* begin, size_t bytes) {
    readable_.push_back({reinterpret_cast<uintptr_t>(begin), bytes});
  }
  template <typename T>
  void Allow(const std::vector<T>& values) {
    Allow(values.data(), values.size() * sizeof(T));
  }

  std::vector<Range> fenced_;
  std::vector<Range> readable_;
  std::vector<Early> early_;
  int64_t kept_bytes_ = 0;
};

template <typename T>
void CheckArgs(const Fence&, const T&) {}  // Numbers, shapes, streams.
inline void CheckArgs(const Fence& fence, const float* a) { fence.Buffers({a}); }
inline void CheckArgs(const Fence& fence, float* a) { fence.Buffers({a}); }
inline void CheckArgs(const Fence& fence, const kernels::EmbedArgs& a) {
  fence.Buffers({a.tokens, a.y});
}
inline void CheckArgs(const Fence& fence, const kernels::RopeRowsArgs& a) {
  fence.Buffers({a.positions, a.frequency, a.cos, a.sin});
}
inline void CheckArgs(const Fence& fence, const kernels::CopyRowsArgs& a) {
  fence.Buffers({a.x, a.row_list, a.y});
}
inline void CheckArgs(const Fence& fence, const kernels::MatmulArgs& a) {
  fence.Buffers({a.x, a.row_list, a.workspace});
  for (const kernels::MatmulPart& part : a.parts) {
    fence.Buffers({part.y});
    fence.Weights({part.bias});
  }
}
inline void CheckArgs(const Fence& fence, const kernels::RmsNormArgs& a) {
  fence.Buffers({a.x, a.residual, a.y, a.h_out});
  fence.Weights({a.weight});
}
inline void CheckArgs(const Fence& fence, const kernels::SwiGluArgs& a) {
  fence.Buffers({a.gate, a.up, a.y});
}
inline void CheckArgs(const Fence& fence, const kernels::GateMixArgs& a) {
  fence.Buffers({a.x, a.full, a.linear, a.y});
}
inline void CheckArgs(const Fence& fence, const kernels::GateGradArgs& a) {
  fence.Buffers({a.dy, a.full, a.linear, a.row_sums, a.sum});
}
inline void CheckArgs(const Fence& fence, const kernels::QkRopeShape& a) {
  fence.Buffers({a.cos, a.sin});
  fence.Weights({a.norm});
}
inline void CheckArgs(const Fence& fence, const kernels::QkRopeArgs& a) {
  CheckArgs(fence, a.shape);
  fence.Buffers({a.x, a.y});
}
inline void CheckArgs(const Fence& fence, const kernels::QkRopeGradArgs& a) {
  CheckArgs(fence, a.shape);
  fence.Buffers({a.x, a.dy, a.dx});
}
inline void CheckArgs(const Fence& fence, const kernels::SequenceAttentionArgs& a) {
  fence.Buffers({a.q, a.k, a.v, a.gate, a.out, a.workspace});
  fence.Weights({a.gate_bias});
}
inline void CheckArgs(const Fence& fence, const kernels::SequenceAttentionGradArgs& a) {
  fence.Buffers({a.q, a.k, a.v, a.gate, a.dout, a.dq, a.dk, a.dv, a.dgate, a.workspace});
  fence.Weights({a.gate_bias});
}
inline void CheckArgs(const Fence& fence, const kernels::RecurrentFeaturesShape& a) {
  fence.Buffers({a.cos, a.sin});
  fence.Weights({a.conv});
}
inline void CheckArgs(const Fence& fence, const kernels::RecurrentFeaturesArgs& a) {
  CheckArgs(fence, a.shape);
  fence.Buffers({a.x, a.y});
}
inline void CheckArgs(const Fence& fence, const kernels::RecurrentFeaturesGradArgs& a) {
  CheckArgs(fence, a.shape);
  fence.Buffers({a.x, a.dy, a.dx});
}
inline void CheckArgs(const Fence& fence, const kernels::RecurrentCoreShape& a) {
  fence.Weights({a.a_log, a.dt_bias, a.b_beta, a.slopes});
}
inline void CheckArgs(const Fence& fence, const kernels::RecurrentCoreArgs& a) {
  CheckArgs(fence, a.shape);
  fence.Buffers({a.qkv, a.a, a.b, a.o, a.states});
}
inline void CheckArgs(const Fence& fence, const kernels::RecurrentCoreGradArgs& a) {
  CheckArgs(fence, a.shape);
  fence.Buffers({a.qkv, a.a, a.b, a.states, a.d_o, a.dqkv, a.da, a.db, a.dstate, a.workspace});
}
inline void CheckArgs(const Fence& fence, const kernels::OutputNormArgs& a) {
  fence.Weights({a.shape.weight});
  fence.Buffers({a.o, a.z, a.y});
}
inline void CheckArgs(const Fence& fence, const kernels::OutputNormGradArgs& a) {
  fence.Weights({a.shape.weight});
  fence.Buffers({a.o, a.z, a.dy, a.d_o, a.dz});
}
inline void CheckArgs(const Fence& fence, const kernels::RmsNormGradArgs& a) {
  fence.Buffers({a.x, a.dy, a.dx});
  fence.Weights({a.weight});
}
inline void CheckArgs(const Fence& fence, const kernels::SwiGluGradArgs& a) {
  fence.Buffers({a.gate, a.up, a.dy, a.dgate, a.dup});
}
inline void CheckArgs(const Fence& fence, const kernels::MatmulGradArgs& a) {
  fence.Buffers({a.dy, a.dx, a.workspace});
}

// The operation of the CPU, for whose duration the fence is open.
template <typename Table, const Table& (*cpu)(), auto member, typename... Args>
absl::Status FencedCall(Args... args) {
  const Fence& fence = Fence::Get();
  (CheckArgs(fence, args), ...);
  fence.Protect(PROT_READ | PROT_WRITE);
  absl::Status status = (cpu().*member)(args...);
  fence.Protect(PROT_NONE);
  return status;
}

template <typename Table, const Table& (*cpu)(), auto member, typename... Args>
void FenceOne(Table* table, absl::Status (*Table::*)(Args...)) {
  table->*member = FencedCall<Table, cpu, member, Args...>;
}

template <typename Table, const Table& (*cpu)(), auto... members>
void FenceAll(Table* table) {
  (FenceOne<Table, cpu, members>(table, members), ...);
}

inline const kernels::Backend& FencedBackend() {
  using B = kernels::Backend;
  static const B& table = *[] {
    auto* const t = new B(kernels::CpuBackend());
    FenceAll<B, kernels::CpuBackend, &B::embed, &B::rope_rows, &B::copy_rows, &B::matmul,
             &B::rms_norm, &B::swiglu>(t);
    return t;
  }();
  return table;
}

// Jobs are of whole sequences, as on a device.
inline const kernels::SelectionBackend& FencedSelectionBackend() {
  using S = kernels::SelectionBackend;
  static const S& table = *[] {
    auto* const t = new S(kernels::CpuSelectionBackend());
    t->rows = t->product_rows = t->product_outputs = 0;
    FenceAll<S, kernels::CpuSelectionBackend, &S::gate_mix, &S::gate_grad, &S::scale,
             &S::spread_heads, &S::fold_heads, &S::qk_rope, &S::qk_rope_grad,
             &S::sequence_attention, &S::sequence_attention_grad, &S::recurrent_features,
             &S::recurrent_features_grad, &S::recurrent_core, &S::recurrent_core_grad,
             &S::output_norm, &S::output_norm_grad, &S::rms_norm_grad, &S::swiglu_grad,
             &S::matmul_grad>(t);
    // A copy has one side behind the fence, or both.
    t->put = [](void* to, const void* host, int64_t bytes, kernels::Stream) {
      if (!Fence::Get().closed()) {
        Fence::Get().PutEarly(to, host, bytes);
        return absl::OkStatus();
      }
      EXPECT_TRUE(Fence::Get().Fenced(to) && !Fence::Get().Fenced(host));
      Fence::Get().Protect(PROT_READ | PROT_WRITE);
      std::memcpy(to, host, static_cast<size_t>(bytes));
      Fence::Get().Protect(PROT_NONE);
      return absl::OkStatus();
    };
    t->get = [](void* host, const void* from, int64_t bytes, kernels::Stream) {
      EXPECT_TRUE(Fence::Get().Fenced(from) && !Fence::Get().Fenced(host));
      Fence::Get().Protect(PROT_READ | PROT_WRITE);
      std::memcpy(host, from, static_cast<size_t>(bytes));
      Fence::Get().Protect(PROT_NONE);
      return absl::OkStatus();
    };
    t->copy = [](void* to, const void* from, int64_t bytes, kernels::Stream) {
      Fence::Get().JoinKept(to);
      EXPECT_TRUE(Fence::Get().Fenced(from) && Fence::Get().Fenced(to));
      Fence::Get().Protect(PROT_READ | PROT_WRITE);
      std::memcpy(to, from, static_cast<size_t>(bytes));
      Fence::Get().Protect(PROT_NONE);
      return absl::OkStatus();
    };
    t->zero = [](void* data, int64_t bytes, kernels::Stream) {
      EXPECT_TRUE(Fence::Get().Fenced(data));
      Fence::Get().Protect(PROT_READ | PROT_WRITE);
      std::memset(data, 0, static_cast<size_t>(bytes));
      Fence::Get().Protect(PROT_NONE);
      return absl::OkStatus();
    };
    return t;
  }();
  return table;
}

}  // namespace morphserve
