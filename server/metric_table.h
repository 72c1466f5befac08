// Every metric family of the server: name, type and help. ServerMetrics registers exactly these;
// the tables of server/README.md and the dashboards are checked against them.
#pragma once

#include <span>
#include <string_view>

namespace morphserve {

enum class MetricType { kCounter, kGauge, kHistogram };

struct MetricRow {
  std::string_view name;
  MetricType type;
  std::string_view help;
};

std::span<const MetricRow> MetricTable();
const MetricRow* FindMetric(std::string_view name);  // Null: no such family.

}  // namespace morphserve
