// Layer plans as messages of the API: the plan table with what the engine and the branches file
// know of each plan. Every answer is made at once from what is in memory.
// Thread rule: functions without state, any thread.
#pragma once

#include <google/protobuf/repeated_ptr_field.h>
#include <morphserve/v1/common.pb.h>

#include <vector>

#include "engine/engine.h"

namespace morphserve {

// The whole plan table, in order of registration.
void FillPlans(const Engine& engine, google::protobuf::RepeatedPtrField<v1::Plan>* out);

// What all pointers name now.
void FillPointers(Engine* engine, v1::PlanPointers* out);

// One row of the table.
void FillPlan(const Engine& engine, const PlanStatus& status, v1::Plan* out);

// A plan that need not be in the table: kinds, counts, memory, stored quality; no state.
void FillBarePlan(const Engine& engine, const LayerPlan& plan, v1::Plan* out);

// A visit of a pointer, as PlanRegistry::History tells it.
v1::PlanRef MakePlanRef(const PlanVisit& visit);

}  // namespace morphserve
