// The report as one HTML page: no script, no request to anywhere, light and dark by the reader's
// setting, fit for paper. A section without data says what is missing and how to get it.
// Pure functions of the data.
#pragma once

#include <string>
#include <string_view>

#include "server/ctl/report_data.h"

namespace morphserve::ctl {

std::string RenderReport(const ReportData& data);

// The sections, in the order of the page.
std::string NowSection(const ReportData& data);
std::string GatesSection(const ReportData& data);
std::string InteractionSection(const ReportData& data);
std::string QualitySection(const ReportData& data);
std::string CostsSection(const ReportData& data);
std::string StabilitySection(const ReportData& data);

// Where rankings or figures are missing, this makes some.
inline constexpr char kReselect[] = "morphctl morph --reselect --full-layers 8";

// Plain text as a paragraph.
std::string Paragraph(std::string_view text);
// In place of a plot: what is missing, and the command that gets it (none: empty).
std::string Missing(std::string_view text, std::string_view command);
// The same for what a server refused to tell: without branches that is how to get some.
std::string MissingHere(const ReportData& data, std::string_view why);

}  // namespace morphserve::ctl
