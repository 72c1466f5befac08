// What morphctl shows on a terminal: tables, a progress line, and text from a model made safe to
// print.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace morphserve::ctl {

// Columns aligned by their widest cell; the first row is the heading. Numbers are right-aligned.
std::string RenderTable(const std::vector<std::vector<std::string>>& rows);

// Control characters other than newline and tab, which could drive the terminal, become U+FFFD.
// Text must come in whole characters.
std::string SafeForTerminal(std::string_view text);

// One line on standard error that rewrites itself; silent when standard error is not a terminal.
// Thread rule: one thread at a time.
class ProgressLine {
 public:
  ProgressLine();
  void Show(int64_t done, int64_t total, std::string_view note);
  bool enabled() const { return enabled_; }
  void Clear();  // Before other output; the next Show draws it anew.

 private:
  const bool enabled_;
  bool shown_ = false;
};

}  // namespace morphserve::ctl
