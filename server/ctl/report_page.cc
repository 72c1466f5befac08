#include "server/ctl/report_page.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "server/ctl/html_text.h"

namespace morphserve::ctl {
namespace {

// Series colours are those of Okabe and Ito, which colour-blind readers tell apart, darkened for
// white and lightened for black; every series has a dash and a marker of its own besides.
constexpr char kStyle[] = R"(
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1c2024; --soft: #59636e; --rule: #d5dae0; --panel: #f6f8fa;
  --s0: #0072b2; --s1: #d55e00; --s2: #00805e; --s3: #b0508a; --s4: #a87400; --s5: #59636e;
  --warm: #00548a; --cold: #b84a00; --strong: #0072b2; --weak: #b6c9d8; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14181d; --ink: #e6eaee; --soft: #a2acb7; --rule: #39424c; --panel: #1c2229;
  --s0: #5cb8f0; --s1: #ff9b52; --s2: #3fcf9f; --s3: #e79ac6; --s4: #f0c04a; --s5: #a2acb7;
  --warm: #6cc0f5; --cold: #ff9b52; --strong: #5cb8f0; --weak: #3a5062; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 1060px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 20px; margin: 44px 0 8px; padding-top: 10px; border-top: 1px solid var(--rule); }
h3 { font-size: 16px; margin: 24px 0 6px; }
p { max-width: 78ch; margin: 8px 0; }
nav { margin: 12px 0; } nav a { margin-right: 16px; color: var(--s0); }
.soft, figcaption { color: var(--soft); }
code { font: 13px ui-monospace, "SFMono-Regular", Menlo, Consolas, monospace;
  background: var(--panel); padding: 1px 4px; border-radius: 3px; overflow-wrap: anywhere; }
.missing { border-left: 4px solid var(--s4); padding: 6px 12px; background: var(--panel); }
.verdict { border-left: 4px solid var(--s0); padding: 6px 12px; background: var(--panel); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 12px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 10px 0; font-size: 14px; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; } .long { white-space: normal; }
th { color: var(--soft); font-weight: 600; } .figure { text-align: right;
  font-variant-numeric: tabular-nums; }
.charts { display: flex; flex-wrap: wrap; gap: 14px 30px; }
figure { margin: 12px 0; max-width: 100%; }
figcaption { font-size: 14px; margin-bottom: 4px; }
figcaption b { color: var(--ink); }
svg { display: block; } svg.chart { max-width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums; }
svg .label { fill: var(--soft); } svg .mid { text-anchor: middle; } svg .end { text-anchor: end; }
svg .mark { font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
svg .on { fill: var(--paper); } svg .off { fill: var(--ink); }
.grid { stroke: var(--rule); stroke-width: 1; } .axis { stroke: var(--soft); stroke-width: 1;
  fill: none; }
.line { fill: none; stroke-width: 2; stroke: currentColor; }
.dot { fill: currentColor; stroke: var(--paper); stroke-width: 1; }
.ring { fill: none; stroke: var(--ink); stroke-width: 2; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); }
.s3 { color: var(--s3); } .s4 { color: var(--s4); } .s5 { color: var(--s5); }
.line.s1 { stroke-dasharray: 8 3; } .line.s2 { stroke-dasharray: 3 3; }
.line.s3 { stroke-dasharray: 10 3 2 3; } .line.s4 { stroke-dasharray: 14 4; }
.line.s5 { stroke-dasharray: 1 4; stroke-linecap: round; }
.strong { fill: var(--strong); background: var(--strong); }
.weak { fill: var(--weak); background: var(--weak); }
.hollow { fill: var(--panel); stroke: var(--soft); background: var(--panel); }
.warm { fill: var(--warm); } .cold { fill: var(--cold); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; }
.legend rect { stroke: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend i { width: 14px; height: 12px; display: inline-block; border: 1px solid var(--soft); }
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --panel: #f4f4f4;
    --s0: #0072b2; --s1: #d55e00; --s2: #00805e; --s3: #b0508a; --s4: #a87400; --s5: #444;
    --warm: #00548a; --cold: #b84a00; --strong: #0072b2; --weak: #b6c9d8; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 11pt; } nav { display: none; }
  figure, tr, .verdict, .missing { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
)";

struct Part {
  const char* id;
  const char* title;
  std::string (*render)(const ReportData&);
};

constexpr Part kParts[] = {
    {"now", "What runs now", NowSection},
    {"layers", "Layers", GatesSection},
    {"interaction", "Interaction of layers", InteractionSection},
    {"quality", "Quality against budget", QualitySection},
    {"costs", "Cost against budget", CostsSection},
    {"stability", "Stability", StabilitySection},
};

}  // namespace

std::string Paragraph(std::string_view text) { return "<p>" + EscapeHtml(text) + "</p>\n"; }

std::string Missing(std::string_view text, std::string_view command) {
  std::string out = "<p class=\"missing\">" + EscapeHtml(text);
  if (!command.empty()) out += " <code>" + EscapeHtml(command) + "</code>";
  return out + "</p>\n";
}

std::string MissingHere(const ReportData& data, std::string_view why) {
  if (data.model.morphable()) return Missing(why, "");
  return Missing(
      "The model was loaded without linear branches, so that there is one plan and nothing to "
      "choose "
      "or to compare. With trained branches, or with windows that need no training:",
      "morphserve --model MODEL --branches FILE|window:256");
}

uint32_t FocusBudget(const ReportData& data) {
  const uint32_t layers = data.model.layers();
  const uint32_t active = data.active.plan().full_layers();
  const uint32_t wanted = active > 0 && active < layers ? active : std::max(layers / 4, 1u);
  // The budget next to it that the most rankings have a set for.
  uint32_t best = wanted;
  size_t most = 0;
  const auto distance = [wanted](uint32_t k) { return k > wanted ? k - wanted : wanted - k; };
  for (uint32_t k = 1; k < layers; ++k) {
    const auto with = static_cast<size_t>(
        std::count_if(data.rankings.begin(), data.rankings.end(),
                      [k](const RankedLayers& one) { return one.sets.contains(k); }));
    if (with > most || (with == most && distance(k) < distance(best))) best = k, most = with;
  }
  return best;
}

std::string RenderReport(const ReportData& data) {
  const std::string title = "morphserve: " + data.model.name();
  std::string out =
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" "
      "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n";
  out += "<title>" + EscapeHtml(title) + "</title>\n<style>" + kStyle + "</style>\n</head>\n";
  out += "<body>\n<h1>" + EscapeHtml(title) + "</h1>\n";
  absl::StrAppendFormat(
      &out, "<p class=\"soft\">Layer plans of a running server, as it told them on %s.</p>\n<nav>",
      absl::FormatTime("%Y-%m-%d %H:%M UTC", data.made_at, absl::UTCTimeZone()));
  for (const Part& part : kParts) {
    absl::StrAppendFormat(&out, "<a href=\"#%s\">%s</a>\n", part.id, EscapeHtml(part.title));
  }
  out += "</nav>\n";
  for (const Part& part : kParts) {
    absl::StrAppendFormat(&out, "<section id=\"%s\">\n<h2>%s</h2>\n", part.id,
                          EscapeHtml(part.title));
    out += part.render(data) + "</section>\n";
  }
  return out + "</body>\n</html>\n";
}

}  // namespace morphserve::ctl
