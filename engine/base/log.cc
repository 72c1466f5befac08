#include "engine/base/log.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace morphserve {
namespace {

std::atomic<LogLevel> g_level{LogLevel::kInfo};
std::atomic<LogFormat> g_format{LogFormat::kText};

constexpr const char* kNames[] = {"debug", "info", "warning", "error"};

std::string EscapeJson(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", static_cast<unsigned>(c));
      out += buffer;
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

void SetLogLevel(LogLevel level) { g_level.store(level, std::memory_order_relaxed); }
LogLevel GetLogLevel() { return g_level.load(std::memory_order_relaxed); }
void SetLogFormat(LogFormat format) { g_format.store(format, std::memory_order_relaxed); }

bool ParseLogLevel(std::string_view name, LogLevel* level) {
  for (int i = 0; i < 4; ++i) {
    if (name == kNames[i]) {
      *level = static_cast<LogLevel>(i);
      return true;
    }
  }
  return false;
}

namespace internal {

LogLine::~LogLine() {
  const char* slash = std::strrchr(file_, '/');
  const std::string file = slash != nullptr ? slash + 1 : file_;
  const std::string now =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  const char* level = kNames[static_cast<int>(level_)];
  std::string line;
  if (g_format.load(std::memory_order_relaxed) == LogFormat::kJson) {
    line = "{\"time\":\"" + now + "\",\"level\":\"" + level + "\",\"at\":\"" + file + ":" +
           std::to_string(line_) + "\",\"message\":\"" + EscapeJson(text_.str()) + "\"}\n";
  } else {
    std::string message = text_.str();
    for (char& c : message) {
      if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    }
    line = now + " " + level + " " + file + ":" + std::to_string(line_) + " " + message + "\n";
  }
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace internal
}  // namespace morphserve
