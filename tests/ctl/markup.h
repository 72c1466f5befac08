// A check of HTML with inline SVG that needs no library: tags nest, attributes are quoted, no
// script and no address of anything elsewhere. For tests/ctl only.
#pragma once

#include <cctype>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace morphserve::ctl::testing {

inline int CountOf(std::string_view text, std::string_view part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string_view::npos;
       at = text.find(part, at + part.size())) {
    ++count;
  }
  return count;
}

// The first fault with a piece of the text around it, or "".
inline std::string MarkupFault(std::string_view text) {
  static const std::set<std::string_view> kVoid = {"meta", "br", "!DOCTYPE"};
  std::vector<std::string_view> open;
  for (size_t at = text.find('<'); at != std::string_view::npos; at = text.find('<', at)) {
    const size_t end = text.find('>', at);
    const auto fault = [&](const char* what) {
      return what + (": " + std::string(text.substr(at, 80)));
    };
    if (end == std::string_view::npos) return fault("a tag without an end");
    const std::string_view tag = text.substr(at + 1, end - at - 1);
    if (tag.find('<') != std::string_view::npos) return fault("a tag within a tag");
    const bool closes = !tag.empty() && tag[0] == '/';
    const std::string_view name = tag.substr(closes, tag.find_first_of(" \n/", 1) - closes);
    if (name == "script" || name == "link" || name == "img") return fault("a tag that loads");
    if (closes) {
      if (open.empty() || open.back() != name) return fault("closes what is not open");
      open.pop_back();
    } else if (tag.back() != '/' && !kVoid.contains(name)) {
      open.push_back(name);
    }
    if (CountOf(tag, "\"") % 2 != 0) return fault("an attribute without its quote");
    at = end;
    if (name == "style" && !closes) at = text.find("</style>", at);
  }
  if (CountOf(text, "http:") + CountOf(text, "https:") + CountOf(text, "url(") > 0) {
    return "an address of something elsewhere";
  }
  return open.empty() ? "" : "not closed: " + std::string(open.back());
}

}  // namespace morphserve::ctl::testing
