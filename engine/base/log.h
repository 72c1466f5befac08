// Structured one-line logging to standard error: `time level file:line message`. INFO is for the
// life cycle of the process; nothing here ever carries prompt or output text.
// Thread rule: any thread; a line is written whole.
//   MS_LOG(INFO) << "ready model=" << name;
#pragma once

#include <sstream>
#include <string_view>

namespace morphserve {

enum class LogLevel : int { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3 };
enum class LogFormat : int { kText = 0, kJson = 1 };

void SetLogLevel(LogLevel level);
LogLevel GetLogLevel();
void SetLogFormat(LogFormat format);
// False when `name` is none of debug, info, warning, error.
bool ParseLogLevel(std::string_view name, LogLevel* level);

namespace internal {

class LogLine {
 public:
  LogLine(LogLevel level, const char* file, int line) : level_(level), file_(file), line_(line) {}
  ~LogLine();
  std::ostream& stream() { return text_; }

 private:
  const LogLevel level_;
  const char* const file_;
  const int line_;
  std::ostringstream text_;
};

inline constexpr LogLevel kLevelDEBUG = LogLevel::kDebug;
inline constexpr LogLevel kLevelINFO = LogLevel::kInfo;
inline constexpr LogLevel kLevelWARNING = LogLevel::kWarning;
inline constexpr LogLevel kLevelERROR = LogLevel::kError;

}  // namespace internal
}  // namespace morphserve

#define MS_LOG(level)                                                                          \
  if (::morphserve::internal::kLevel##level < ::morphserve::GetLogLevel()) {                   \
  } else                                                                                       \
    ::morphserve::internal::LogLine(::morphserve::internal::kLevel##level, __FILE__, __LINE__) \
        .stream()
