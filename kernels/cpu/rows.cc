// The operations that only move rows: embedding look-up, rotary angles, gathering.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_format.h"
#include "kernels/copy_rows.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/embed.h"
#include "kernels/rope_rows.h"

namespace morphserve::kernels::cpu {

absl::Status Embed(const EmbedArgs& args, Stream stream) {
  for (int32_t row = 0; row < args.rows; ++row) {
    if (args.tokens[row] < -1 || args.tokens[row] >= args.table->n) {
      return absl::InvalidArgumentError(absl::StrFormat("Embed: token %d; the table has %d rows",
                                                        args.tokens[row], args.table->n));
    }
  }
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) {
      float* y = args.y + row * args.y_stride;
      if (args.tokens[row] < 0) {
        std::fill_n(y, args.table->k, 0.0f);
      } else {
        UnpackRow(*args.table, args.tokens[row], y);
      }
    }
  });
  return absl::OkStatus();
}

absl::Status RopeRows(const RopeRowsArgs& args, Stream stream) {
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.half, worker);
    for (int64_t row = 0; row < args.rows; ++row) {
      const auto position = static_cast<float>(args.positions[row]);
      for (int64_t i = part.begin; i < part.end; ++i) {
        // Evaluated in double: positions are large and f32 would lose the phase.
        const auto angle = static_cast<double>(position * args.frequency[i]);
        args.cos[row * args.half + i] = static_cast<float>(std::cos(angle)) * args.magnitude;
        args.sin[row * args.half + i] = static_cast<float>(std::sin(angle)) * args.magnitude;
      }
    }
  });
  return absl::OkStatus();
}

absl::Status CopyRows(const CopyRowsArgs& args, Stream stream) {
  stream.pool->ForEachWorker([&](int32_t worker) {
    const auto part = stream.pool->Part(args.rows, worker);
    for (int64_t row = part.begin; row < part.end; ++row) {
      float* y = args.y + row * args.y_stride;
      if (args.row_list[row] < 0) {
        std::fill_n(y, args.width, 0.0f);
      } else {
        std::memcpy(y, args.x + int64_t{args.row_list[row]} * args.x_stride,
                    static_cast<size_t>(args.width) * sizeof(float));
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace morphserve::kernels::cpu
