// The side file of a selection: what it has measured so far, so that it can go on. JSON, doubles to
// the last bit; written beside and renamed, so that a cut-off write leaves the older file.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/sha256.h"
#include "engine/base/status_macros.h"
#include "morph/selection.h"

namespace morphserve {
namespace {

using nlohmann::json;

constexpr int kFormat = 1;

json TotalsJson(const std::vector<PredictionTotals>& totals) {
  json out = json::array();
  for (const PredictionTotals& t : totals) {
    out.push_back({t.count, t.kl, t.nll, t.teacher_nll, t.right, t.teacher_right, t.agree});
  }
  return out;
}

// Reads `count` numbers from a JSON array; false when it is anything else.
template <typename T>
bool ReadNumbers(const json& from, size_t count, std::vector<T>* out) {
  if (!from.is_array() || from.size() != count) return false;
  out->clear();
  for (const json& value : from) {
    if (!value.is_number()) return false;
    out->push_back(value.get<T>());
  }
  return true;
}

bool ReadTotals(const json& from, std::vector<PredictionTotals>* out) {
  if (!from.is_array() || from.size() != out->size()) return false;
  for (size_t l = 0; l < out->size(); ++l) {
    std::vector<double> v;
    if (!ReadNumbers(from[l], 7, &v)) return false;
    const auto whole = [&](size_t i) { return static_cast<int64_t>(v[i]); };
    (*out)[l] = {.count = whole(0),
                 .kl = v[1],
                 .nll = v[2],
                 .teacher_nll = v[3],
                 .right = whole(4),
                 .teacher_right = whole(5),
                 .agree = whole(6)};
  }
  return true;
}

bool ReadSweep(const json& from, SweepTotals* out) {
  const auto layers = static_cast<size_t>(out->q.layers());
  if (!from.is_object() || !from.contains("samples") || !from["samples"].is_number_integer()) {
    return false;
  }
  out->samples = from["samples"].get<int32_t>();
  std::vector<double> q;
  if (!ReadNumbers(from.value("q", json()), layers * layers, &q)) return false;
  for (size_t i = 0; i < q.size(); ++i) {
    out->q.at(static_cast<int32_t>(i / layers), static_cast<int32_t>(i % layers)) = q[i];
  }
  return ReadNumbers(from.value("distance", json()), layers, &out->distance) &&
         ReadTotals(from.value("recall", json()), &out->recall) &&
         ReadTotals(from.value("plain", json()), &out->plain);
}

bool ReadGates(const json& from, size_t layers, GateState* out) {
  if (!from.is_object()) return false;
  std::vector<double> places;
  if (!ReadNumbers(from.value("places", json()), 3, &places)) return false;
  out->step = static_cast<int32_t>(places[0]);
  out->still_since = static_cast<int32_t>(places[1]);
  out->margin = places[2];
  const json top = from.value("top", json::array());
  return ReadNumbers(top, top.size(), &out->top) &&
         ReadNumbers(from.value("gates", json()), layers, &out->gates) &&
         ReadNumbers(from.value("first", json()), layers, &out->first) &&
         ReadNumbers(from.value("second", json()), layers, &out->second) &&
         ReadNumbers(from.value("gradient_sum", json()), layers, &out->gradient_sum);
}

}  // namespace

// Everything that the numbers of a checkpoint depend on.
std::string LayerSelection::Fingerprint() const {
  std::string text = absl::StrFormat(
      "%d seed %u reading %d steps %d rates %a %a watch %d lambda %a %a gates %d ", kFormat,
      options_.seed, static_cast<int>(options_.reading), options_.steps, options_.rate,
      options_.rate_end, options_.watched_k, options_.lambda, options_.mean_gate, options_.gates);
  for (const auto* samples : {&data_.recall, &data_.plain}) {
    for (const CalibrationSample& sample : *samples) {
      for (const auto* values : {&sample.tokens, &sample.scored}) {
        absl::StrAppendFormat(&text, "[%d]", values->size());
        for (const int32_t value : *values) absl::StrAppendFormat(&text, "%d,", value);
      }
    }
  }
  const SelectionSource& source = model_->source();
  absl::StrAppend(&text, source.backend->name, " ");
  text.append(source.weights->base_id.begin(), source.weights->base_id.end());
  text.append(source.branches->id.begin(), source.branches->id.end());
  Sha256 hash;
  hash.Update(text);
  return HexDigest(hash.Finish());
}

absl::Status LayerSelection::Save() const {
  const SweepTotals& totals = sweep_->totals();
  std::vector<double> q;
  for (int32_t m = 0; m < totals.q.layers(); ++m) {
    for (int32_t n = 0; n < totals.q.layers(); ++n) q.push_back(totals.q.at(m, n));
  }
  json file = {{"format", kFormat},
               {"fingerprint", Fingerprint()},
               {"phase", static_cast<int>(progress_.phase)},
               {"unit", progress_.unit},
               {"units", progress_.units},
               {"loss", progress_.loss},
               {"mean_gate", progress_.mean_gate},
               {"lambda", lambda_},
               {"sweep",
                {{"samples", totals.samples},
                 {"q", q},
                 {"distance", totals.distance},
                 {"recall", TotalsJson(totals.recall)},
                 {"plain", TotalsJson(totals.plain)}}}};
  for (const PhaseCost& c : costs_) {
    file["costs"].push_back({c.seconds, c.flops, static_cast<double>(c.tokens)});
  }
  if (optimizer_ != nullptr) {
    const GateState& s = optimizer_->state();
    file["gates"] = {
        {"places", {static_cast<double>(s.step), static_cast<double>(s.still_since), s.margin}},
        {"top", s.top},
        {"gates", std::vector<double>(s.gates.begin(), s.gates.end())},
        {"first", s.first},
        {"second", s.second},
        {"gradient_sum", s.gradient_sum}};
  }
  const std::string beside = options_.checkpoint + ".new";
  {
    std::ofstream out(beside, std::ios::binary | std::ios::trunc);
    out << file.dump();
    out.flush();
    if (!out) return absl::UnavailableError("cannot write the selection's checkpoint file");
  }
  std::error_code error;
  std::filesystem::rename(beside, options_.checkpoint, error);
  if (error) return absl::UnavailableError("cannot rename the selection's checkpoint file");
  return absl::OkStatus();
}

absl::Status LayerSelection::Resume() {
  std::ifstream in(options_.checkpoint, std::ios::binary);
  if (!in) return absl::OkStatus();  // Nothing yet.
  std::stringstream text;
  text << in.rdbuf();
  const json file = json::parse(text.str(), nullptr, false);
  const auto damaged = [] {
    return absl::FailedPreconditionError("the selection's checkpoint file is damaged");
  };
  if (!file.is_object()) return damaged();
  const json print = file.value("fingerprint", json());
  if (!print.is_string() || print.get_ref<const std::string&>() != Fingerprint()) {
    return absl::FailedPreconditionError(
        "the selection's checkpoint file belongs to another model, data or options");
  }
  const int32_t layers = model_->source().config->layers;
  SweepTotals totals(layers);
  std::vector<int32_t> places;
  std::vector<double> numbers;
  const json costs = file.value("costs", json());
  const json list = json::array(
      {file.value("phase", json()), file.value("unit", json()), file.value("units", json())});
  const json values = json::array(
      {file.value("loss", json()), file.value("mean_gate", json()), file.value("lambda", json())});
  if (!ReadNumbers(list, 3, &places) || !ReadNumbers(values, 3, &numbers) || places[0] < 0 ||
      places[0] > static_cast<int32_t>(SelectionPhase::kGates) ||
      !ReadSweep(file.value("sweep", json()), &totals) || !costs.is_array() || costs.size() != 3) {
    return damaged();
  }
  for (size_t i = 0; i < 3; ++i) {
    std::vector<double> cost_numbers;
    if (!ReadNumbers(costs[i], 3, &cost_numbers)) return damaged();
    costs_[i] = {cost_numbers[0], cost_numbers[1], static_cast<int64_t>(cost_numbers[2])};
  }
  if (file.contains("gates")) {
    GateState state;
    if (!ReadGates(file["gates"], static_cast<size_t>(layers), &state)) return damaged();
    optimizer_ =
        std::make_unique<GateOptimizer>(GateOptimizerOptions{.layers = layers,
                                                             .steps = options_.steps,
                                                             .rate = options_.rate,
                                                             .rate_end = options_.rate_end,
                                                             .watched_k = options_.watched_k},
                                        std::move(state));
  }
  sweep_ = std::make_unique<LayerSweep>(model_.get(), std::move(totals));
  progress_.phase = static_cast<SelectionPhase>(places[0]);
  progress_.unit = places[1];
  progress_.units = places[2];
  progress_.loss = numbers[0];
  progress_.mean_gate = numbers[1];
  lambda_ = numbers[2];
  return absl::OkStatus();
}

}  // namespace morphserve
