#include "server/ctl/html_text.h"

#include "absl/strings/str_format.h"

namespace morphserve::ctl {
namespace {

constexpr size_t kShort = 40;  // Bytes of a cell that is never broken into lines.

bool IsFigure(const std::string& cell) {
  return !cell.empty() && cell.find_first_not_of("0123456789.+-e") == std::string::npos;
}

const char* ClassOf(const std::string& cell) {
  if (IsFigure(cell)) return " class=\"figure\"";
  return cell.size() > kShort ? " class=\"long\"" : "";
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default:
        const auto byte = static_cast<unsigned char>(c);
        const bool control = (byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f;
        control ? out += "\xEF\xBF\xBD" : out += c;
    }
  }
  return out;
}

std::string HtmlTable(const std::vector<std::vector<std::string>>& rows) {
  std::string out = "<div class=\"wide\"><table>\n";
  for (size_t r = 0; r < rows.size(); ++r) {
    out += r == 0 ? "<thead><tr>" : "<tr>";
    for (size_t c = 0; c < rows[r].size(); ++c) {
      // A heading stands over its column as the first row does.
      const std::string& like = r == 0 && rows.size() > 1 ? rows[1][c] : rows[r][c];
      const char* const tag = r == 0 ? "th" : "td";
      absl::StrAppendFormat(&out, "<%s%s>%s</%s>", tag, ClassOf(like), EscapeHtml(rows[r][c]), tag);
    }
    out += r == 0 ? "</tr></thead><tbody>\n" : "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

}  // namespace morphserve::ctl
