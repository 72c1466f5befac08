#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_format.h"
#include "engine/base/log.h"
#include "engine/base/machine.h"
#include "engine/base/status_macros.h"
#include "engine/base/text_view.h"
#include "engine/engine_impl.h"
#include "engine/memory_plan.h"
#include "engine/model/stored_plans.h"
#include "engine/model_place.h"
#include "engine/self_test.h"

namespace morphserve {

absl::Status WithReason(absl::Status status, std::string_view reason) {
  status.SetPayload(kReasonUrl, absl::Cord(std::string(reason)));
  return status;
}

std::string ReasonOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonUrl);
  return payload.has_value() ? std::string(*payload) : std::string();
}

absl::Status WithMetadata(absl::Status status, std::string_view key, std::string_view value) {
  status.SetPayload(absl::StrFormat("%s%s", kMetadataUrl, key), absl::Cord(ToAbsl(value)));
  return status;
}

std::string MetadataOf(const absl::Status& status, std::string_view key) {
  const auto payload = status.GetPayload(absl::StrFormat("%s%s", kMetadataUrl, key));
  return payload.has_value() ? std::string(*payload) : std::string();
}

namespace {

constexpr double kBalancedKlMax = 0.05;
constexpr double kFastestQualityMin = 0.95;

int32_t CountPieces(const Tokenizer* tokenizer, int32_t vocab) {
  if (tokenizer == nullptr) return vocab;
  int32_t pieces = std::min(vocab, tokenizer->vocab_size());
  while (pieces > 1 && !tokenizer->has_piece(pieces - 1)) --pieces;
  return pieces;
}

std::string WeightDTypeName(const ModelWeights& weights) {
  return kernels::WeightFormatName(weights.layers.front().q.format);
}

const char* KvDTypeName(KvDType type) {
  switch (type) {
    case KvDType::kF32: return "F32";
    case KvDType::kF16: return "F16";
    case KvDType::kBF16: return "BF16";
    case KvDType::kE4m3: return "F8_E4M3";
  }
  return "";
}

std::string DeviceName(const DevicePlace& place, const Machine& machine, int32_t threads) {
  if (place.on_device()) {
    return absl::StrFormat("%s, compute capability %d.%d, %d multiprocessors; host %s, %d threads",
                           place.info().name, place.info().compute_major,
                           place.info().compute_minor, place.info().multiprocessors,
                           machine.cpu_name, threads);
  }
  return absl::StrFormat("%s, %d threads, %s", machine.cpu_name, threads,
                         kernels::CpuDispatchDescription());
}

absl::StatusOr<std::optional<BranchesHeader>> OpenNamedBranches(const Checkpoint& checkpoint,
                                                                const EngineOptions& options) {
  if (options.branches.empty()) return std::nullopt;
  MS_ASSIGN_OR_RETURN(BranchesHeader header, OpenBranches(options.branches, checkpoint.config));
  return header;
}

void FillInfo(const Checkpoint& checkpoint, const ModelWeights& weights,
              const BranchesHeader* branches, KvDType kv_dtype, EngineInfo* info) {
  const ModelConfig& config = checkpoint.config;
  info->model_name = checkpoint.name;
  info->architecture = ArchitectureName(config.architecture);
  info->parameters = weights.parameters;
  info->base_id = HexDigest(weights.base_id);
  info->layers = config.layers;
  info->vocab = config.vocab;
  info->weight_dtype = WeightDTypeName(weights);
  info->kv_dtype = KvDTypeName(kv_dtype);
  info->kv_bytes_per_token = int64_t{config.layers} * info->memory.page_bytes / kPageTokens;
  if (branches == nullptr) return;
  info->branch_kind = BranchKindName(branches->config.kind);
  info->branch_parameters = branches->parameters;
}

// The plan that serves at the start; the tiers, as far as the branches file has figures for them.
absl::StatusOr<std::unique_ptr<PlanRegistry>> MakeRegistry(const EngineOptions& options,
                                                           const BranchesHeader* branches,
                                                           int32_t layers,
                                                           const Sha256Digest& base_id,
                                                           const Sha256Digest& branches_id) {
  const BranchesRanking* ranking = branches == nullptr ? nullptr : DefaultRanking(*branches);
  const auto make = [&](std::vector<LayerKind> kinds) {
    return std::make_shared<const LayerPlan>(std::move(kinds), base_id, branches_id);
  };
  MS_ASSIGN_OR_RETURN(std::vector<LayerKind> kinds,
                      ParseKinds(options.active_plan, ranking, layers));
  auto registry = std::make_unique<PlanRegistry>(make(std::move(kinds)), options.plans_table_max,
                                                 options.plans_history);
  const auto point = [&](PlanPointer pointer, std::optional<int32_t> k,
                         const char* label) -> absl::Status {
    MS_ASSIGN_OR_RETURN(std::vector<LayerKind> ranked,
                        RankedKinds(ranking, layers, k.value_or(layers)));
    MS_ASSIGN_OR_RETURN(const auto plan,
                        registry->Register(make(std::move(ranked)), label, "start"));
    MS_RETURN_IF_ERROR(registry->MarkReady(plan->id()));
    return registry->Point(pointer, plan->id()).status();
  };
  std::optional<int32_t> balanced, fastest;
  if (branches != nullptr) {
    balanced = SmallestBudgetByKl(*branches, kBalancedKlMax);
    fastest = SmallestBudgetByQuality(*branches, kFastestQualityMin);
  }
  MS_RETURN_IF_ERROR(point(PlanPointer::kHighest, layers, "full"));
  MS_RETURN_IF_ERROR(point(PlanPointer::kBalanced, balanced, "balanced"));
  MS_RETURN_IF_ERROR(point(PlanPointer::kFastest, fastest, "fastest"));
  return registry;
}

}  // namespace

absl::StatusOr<MemoryVerdict> Engine::Plan(const Checkpoint& checkpoint,
                                           const EngineOptions& options) {
  MS_ASSIGN_OR_RETURN(const std::optional<BranchesHeader> branches,
                      OpenNamedBranches(checkpoint, options));
  MS_ASSIGN_OR_RETURN(const DevicePlace place, DevicePlace::Open(options.device));
  return MakeMemoryVerdict(checkpoint, branches.has_value() ? &*branches : nullptr,
                           ResolveOptions(options, place.on_device()), ReadMachine(), place);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(Checkpoint checkpoint,
                                                       const EngineOptions& asked,
                                                       const Clock* clock, EngineObserver* observer,
                                                       std::function<void(double)> progress,
                                                       const std::atomic<bool>* cancel) {
  const Machine machine = ReadMachine();
  const ModelConfig config = checkpoint.config;
  EngineImpl::Parts parts;
  MS_ASSIGN_OR_RETURN(parts.device, DevicePlace::Open(asked.device));
  const DevicePlace& place = parts.device;
  if (!place.why().empty()) {
    MS_LOG(INFO) << "runs on the CPU: " << place.why();
  }
  const EngineOptions options = ResolveOptions(asked, place.on_device());
  parts.options = options;
  EngineInfo& info = parts.info;
  MS_ASSIGN_OR_RETURN(info.context_tokens, ResolveContext(checkpoint, options));
  MS_ASSIGN_OR_RETURN(const std::optional<BranchesHeader> header,
                      OpenNamedBranches(checkpoint, options));
  const BranchesHeader* named = header.has_value() ? &*header : nullptr;
  MS_ASSIGN_OR_RETURN(info.memory, MakeMemoryVerdict(checkpoint, named, options, machine, place));
  const int32_t threads = ResolveThreads(options, machine);
  parts.pool = kernels::cpu::ThreadPool::Create(
      threads, /*spin=*/threads <= machine.cores && !machine.fractional_quota);
  MS_ASSIGN_OR_RETURN(
      std::unique_ptr<ModelWeights> weights,
      LoadWeights(checkpoint, options.weights_dtype, parts.pool.get(), progress, cancel));
  parts.base_id = weights->base_id;
  std::unique_ptr<Branches> branches;
  if (named != nullptr) {
    MS_ASSIGN_OR_RETURN(branches,
                        LoadBranches(*named, config, weights->base_id, options.weights_dtype));
    parts.branches_id = branches->id;
  }
  const KvDType kv_dtype = ResolveKvDType(options, place);
  FillInfo(checkpoint, *weights, named, kv_dtype, &info);
  info.device_name = DeviceName(place, machine, threads);
  info.on_device = place.on_device();
  MS_ASSIGN_OR_RETURN(
      parts.plans, MakeRegistry(options, named, config.layers, parts.base_id, parts.branches_id));

  MS_ASSIGN_OR_RETURN(parts.arena, Arena::Create(info.memory.arena_bytes,
                                                 info.memory.super_block_bytes, place.memory()));
  const kernels::SlotShape slot =
      named == nullptr ? kernels::SlotShape{} : MakeSlotShape(named->config, config, kv_dtype);
  parts.memory = MakeUnitMemory(place, parts.arena->base(), slot);
  parts.caches = CacheManager::Create({.layers = config.layers,
                                       .page_bytes = info.memory.page_bytes,
                                       .slot_bytes = info.memory.slot_bytes,
                                       .prefix_cache = options.prefix_cache,
                                       .snapshot_share_max = options.snapshot_share_max,
                                       .snapshots_per_path = options.snapshots_per_path,
                                       .host_spill_bytes = options.host_spill_bytes},
                                      parts.arena.get(), parts.memory.get(), clock);
  const ModelLimits limits = MakeModelLimits(options, info.context_tokens, place.on_device());
  parts.device.bf16_copies = info.memory.bf16_copies_bytes > 0;
  MS_ASSIGN_OR_RETURN(std::unique_ptr<HybridModel> model,
                      PlaceModel(config, std::move(weights), std::move(branches), kv_dtype, limits,
                                 &parts.device, parts.pool.get()));
  parts.model = model.get();
  parts.tokenizer = std::move(checkpoint.tokenizer);
  MS_ASSIGN_OR_RETURN(parts.runner,
                      MakeRunner(place, std::move(model), parts.arena->base(), parts.pool.get(),
                                 CountPieces(parts.tokenizer.get(), config.vocab)));
  parts.cost = std::make_unique<StepCost>();
  // Both branch kinds of every layer are tried, whatever the plans of the start use.
  std::vector<std::shared_ptr<const LayerPlan>> tried = {parts.plans->active()};
  if (named != nullptr) {
    for (const LayerKind kind : {LayerKind::kFull, LayerKind::kLinear}) {
      tried.push_back(std::make_shared<const LayerPlan>(
          std::vector<LayerKind>(static_cast<size_t>(config.layers), kind), parts.base_id,
          parts.branches_id));
    }
  }
  MS_RETURN_IF_ERROR(RunSelfTest(tried, config.vocab, info.context_tokens, parts.caches.get(),
                                 parts.runner.get(), /*exact=*/!place.on_device(), parts.cost.get(),
                                 clock));
  return std::make_unique<EngineImpl>(std::move(parts), clock, observer);
}

}  // namespace morphserve
