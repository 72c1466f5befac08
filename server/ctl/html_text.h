// Text of a server made safe to stand in a page: whatever it holds, it cannot become markup.
// Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace morphserve::ctl {

// For element content and quoted attributes: & < > " ' as references, control characters other than
// newline and tab as U+FFFD. Text must come in whole characters.
std::string EscapeHtml(std::string_view text);

// A table of texts that are escaped here; the first row is the heading. Cells of figures are
// right-aligned.
std::string HtmlTable(const std::vector<std::vector<std::string>>& rows);

}  // namespace morphserve::ctl
