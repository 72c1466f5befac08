#include "server/metric_families.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "server/arena_bytes.h"
#include "server/metric_table.h"

namespace morphserve {
namespace labels {
namespace {

std::string HelpOf(const char* name, MetricType type) {
  const MetricRow* row = FindMetric(name);
  MS_CHECK(row != nullptr && row->type == type);
  return std::string(row->help);
}

}  // namespace

Family<Counter>& Counters(prometheus::Registry& registry, const char* name) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(HelpOf(name, MetricType::kCounter))
      .Register(registry);
}
Family<Gauge>& Gauges(prometheus::Registry& registry, const char* name) {
  return prometheus::BuildGauge()
      .Name(name)
      .Help(HelpOf(name, MetricType::kGauge))
      .Register(registry);
}
Family<Histogram>& Histograms(prometheus::Registry& registry, const char* name) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(HelpOf(name, MetricType::kHistogram))
      .Register(registry);
}

}  // namespace labels

void RaiseTo(double value, Counter* counter) {
  counter->Increment(std::max(0.0, value - counter->Value()));
}

void ServerMetrics::Families::UpdateCache(const EngineLoad& load, const MemoryVerdict& memory) {
  const CacheUsage& use = load.cache;
  const ArenaBytes bytes = ArenaBytesOf(load, memory);
  const auto set = [](int64_t value, Gauge* gauge) { gauge->Set(static_cast<double>(value)); };
  cache_usage_now.Set(bytes.total > 0
                          ? static_cast<double>(bytes.running()) / static_cast<double>(bytes.total)
                          : 0);
  set(bytes.pages_running, &pages_running);
  set(bytes.pages_cached, &pages_cached);
  set(bytes.slots_running, &slots_running);
  set(bytes.slots_cached, &slots_cached);
  set(bytes.slots_quarantined, &slots_quarantined);
  set(bytes.free, &arena_free);
  set(use.slots_running, &slot_count_running);
  set(use.slots_cached, &slot_count_cached);
  set(use.slots_quarantined, &slot_count_quarantined);
  set(use.slots_free, &slot_count_free);
  set(use.snapshots, &snapshots_now);
  set(use.spilled_bytes, &spilled_now);
  RaiseTo(static_cast<double>(use.hit_copy_bytes), &copied_hit);
  RaiseTo(static_cast<double>(use.fork_copy_bytes), &copied_fork);
  RaiseTo(static_cast<double>(use.spill_bytes), &copied_spill);
  RaiseTo(static_cast<double>(use.reload_bytes), &copied_reload);
  RaiseTo(static_cast<double>(use.snapshots_evicted), &snapshots_evicted_all);
  for (size_t i = 0; i < labels::kPoints.size(); ++i) {
    RaiseTo(static_cast<double>(use.snapshots_stored[i]), stored_at[i]);
    RaiseTo(static_cast<double>(use.snapshots_hit[i]), hit_at[i]);
  }
}

void ServerMetrics::PlanGauges::Update(Families* families, Engine* engine, const EngineLoad& load) {
  for (size_t i = 0; i < labels::kPointers.size(); ++i) {
    const PlanVisit visit = engine->plans().History(static_cast<PlanPointer>(i)).back();
    Named& named = pointers[i];
    if (named.plan != visit.plan->id()) {
      if (named.info != nullptr) families->plan_info.Remove(named.info);
      named.plan = visit.plan->id();
      named.info =
          &families->plan_info.Add({{"plan", named.plan},
                                    {"pointer", labels::kPointers[i]},
                                    {"full_layers", std::to_string(visit.plan->full_layers())},
                                    {"layers", std::to_string(visit.plan->layers())}});
      named.info->Set(1);
    }
    if (named.epoch == nullptr)
      named.epoch = &families->plan_epoch.Add({{"pointer", labels::kPointers[i]}});
    named.epoch->Set(static_cast<double>(visit.epoch));
  }
  // A series for each plan of the table; sequences of plans that left it are told together.
  std::map<std::string, int32_t> now;
  for (const PlanEntry& entry : engine->plans().List()) now[entry.plan->id()] = 0;
  for (const auto& [plan, count] : load.running_by_plan) {
    now[now.count(plan) != 0 ? plan : "other"] += count;
  }
  for (auto known = running.begin(); known != running.end();) {
    if (now.count(known->first) != 0) {
      ++known;
    } else {
      families->plan_running.Remove(known->second);
      known = running.erase(known);
    }
  }
  for (const auto& [plan, count] : now) {
    Gauge*& gauge = running[plan];
    if (gauge == nullptr) gauge = &families->plan_running.Add({{"plan", plan}});
    gauge->Set(count);
  }
}

}  // namespace morphserve
