#include "server/log_bridge.h"

#include <google/protobuf/stubs/common.h>
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include <cstdint>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/log.h"
#include "engine/base/mutex.h"

namespace morphserve {
namespace {

constexpr int kLinesPerSecond = 10;

// Whether one more line fits into this second; `*dropped` are those that did not, told once.
class RateLimit {
 public:
  bool Allow(int64_t* dropped) {
    const int64_t second = absl::ToUnixSeconds(absl::Now());
    MutexLock lock(&mutex_);
    *dropped = 0;
    if (second != second_) {
      *dropped = std::exchange(dropped_, 0);
      second_ = second;
      lines_ = 0;
    }
    if (lines_ >= kLinesPerSecond) {
      ++dropped_;
      return false;
    }
    ++lines_;
    return true;
  }

 private:
  Mutex mutex_;
  int64_t second_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t dropped_ ABSL_GUARDED_BY(mutex_) = 0;
  int lines_ ABSL_GUARDED_BY(mutex_) = 0;
};

RateLimit& Limit() {
  static RateLimit* const limit = new RateLimit;  // Never destroyed: libraries log until the end.
  return *limit;
}

void Write(LogLevel level, const char* library, const char* file, int line,
           const std::string& message) {
  if (level < GetLogLevel()) return;
  int64_t dropped = 0;
  if (!Limit().Allow(&dropped)) return;
  if (dropped > 0) {
    MS_LOG(WARNING) << dropped << " lines of libraries were left out";
  }
  internal::LogLine(level, file, line).stream() << library << ": " << message;
}

void OnGrpc(gpr_log_func_args* args) {
  const LogLevel level = args->severity == GPR_LOG_SEVERITY_ERROR  ? LogLevel::kError
                         : args->severity == GPR_LOG_SEVERITY_INFO ? LogLevel::kInfo
                                                                   : LogLevel::kDebug;
  Write(level, "grpc", args->file, args->line, args->message);
}

void OnProtobuf(google::protobuf::LogLevel level, const char* file, int line,
                const std::string& message) {
  // A string that is not UTF-8 is a client's fault and answered as such; here it is detail.
  const LogLevel ours =
      level == google::protobuf::LOGLEVEL_FATAL ? LogLevel::kError : LogLevel::kDebug;
  Write(ours, "protobuf", file, line, message);
}

}  // namespace

void InstallLogBridge() {
  gpr_set_log_function(&OnGrpc);
  google::protobuf::SetLogHandler(&OnProtobuf);
}

}  // namespace morphserve
