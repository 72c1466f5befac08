// Catches: a field, shape or number of a branches file that is believed instead of checked, a file
// of another base, rows of q and k in the wrong order, and parts of the stacked first product in
// another order than its columns say.
#include "engine/model/branches.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>

#include "engine/model/branches_file.h"
#include "engine/model/stored_plans.h"
#include "tests/engine/branches_builder.h"
#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kStateKinds[] = {"lightning", "gated_delta", "gated_delta_window"};

Sha256Digest BaseId() {
  Sha256Digest id;
  id.fill(0xaa);
  return id;
}

absl::StatusOr<BranchesFile> Read(const std::string& bytes) {
  return ReadBranchesFile(*OpenMemory(bytes), "x", BranchBase());
}

std::string Refusal(const std::string& bytes) {
  const auto read = Read(bytes);
  EXPECT_FALSE(read.ok());
  return read.ok() ? "" : std::string(read.status().message());
}

json Ranking() { return {{"selector", "flashmorph"}, {"order", {1, 0}}, {"default", true}}; }
json Quality() {
  return {{"selector", "flashmorph"},   {"k", 1}, {"layers", {1}}, {"kl", 0.5}, {"ppl", 9.5},
          {"recall", {{"pk_1k", 0.25}}}};
}

// Opens and loads a file on disk.
struct Loaded {
  explicit Loaded(const BranchesBuilder& builder, WeightsDType dtype = WeightsDType::kNative,
                  bool interleaved = false)
      : model(BranchBase(interleaved)) {
    folder.Write("b.safetensors", builder.Build());
    const auto header = OpenBranches(folder.Path("b.safetensors"), model);
    EXPECT_TRUE(header.ok()) << header.status();
    if (!header.ok()) return;
    bytes = BranchesBytes(*header, model, dtype);
    auto loaded = LoadBranches(*header, model, BaseId(), dtype);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    if (loaded.ok()) branches = *std::move(loaded);
  }
  TempFolder folder;
  ModelConfig model;
  int64_t bytes = 0;
  std::unique_ptr<Branches> branches;
};

std::vector<float> Row(const kernels::PackedMatrix& matrix, int32_t row) {
  std::vector<float> out(static_cast<size_t>(matrix.k));
  kernels::UnpackRow(matrix, row, out.data());
  return out;
}

std::vector<float> FileRow(const std::string& tensor, int64_t row, int64_t k) {
  std::vector<float> out;
  for (int64_t i = 0; i < k; ++i) out.push_back(BranchesBuilder::Value(tensor, row * k + i));
  return out;
}

TEST(Branches, EveryKindLoadsWithExactlyItsParts) {
  for (const std::string kind : kStateKinds) {
    for (const bool own : {false, true}) {
      SCOPED_TRACE(kind + (own ? " own" : " shared"));
      const Loaded loaded{BranchesBuilder(kind, own)};
      ASSERT_NE(loaded.branches, nullptr);
      const BranchesConfig& config = loaded.branches->header.config;
      EXPECT_EQ(BranchKindName(config.kind), kind);
      EXPECT_EQ(config.own, own);
      EXPECT_EQ(config.silu, kind != "lightning");
      EXPECT_EQ(config.qk_norm, kind == "lightning" ? kernels::QkNorm::kRms : kernels::QkNorm::kL2);
      const DownColumns down = MakeDownColumns(config);
      for (const LinearWeights& layer : loaded.branches->layers) {
        EXPECT_EQ(layer.down.n, down.width);
        EXPECT_EQ(layer.bq.data != nullptr, !own);
        EXPECT_EQ(layer.bo.data != nullptr, !own);
        EXPECT_EQ(layer.wq.data != nullptr, own);
        EXPECT_EQ(layer.wk.n, own ? 12 : 0);
        EXPECT_EQ(layer.slopes.size(), kind == "lightning" ? 4U : 0U);
        EXPECT_EQ(layer.a_log.size(), kind == "lightning" ? 0U : 4U);
        EXPECT_EQ(layer.bs.size(), kind == "gated_delta_window" ? 4U : 0U);
        EXPECT_EQ(layer.conv.size(), 3U * 72);
      }
      EXPECT_EQ(loaded.branches->storage.bytes(), loaded.bytes);
    }
  }
}

TEST(Branches, TheFirstProductIsStackedAsItsColumnsSay) {
  const Loaded loaded{BranchesBuilder("gated_delta_window")};
  ASSERT_NE(loaded.branches, nullptr);
  const DownColumns c = MakeDownColumns(loaded.branches->header.config);
  const std::tuple<const char*, int32_t, int32_t> parts[] = {
      {"aq", c.q, 3}, {"ak", c.k, 3}, {"av", c.v, 3},     {"gd", c.gate, 2},
      {"wa", c.a, 4}, {"wb", c.b, 4}, {"ws", c.window, 4}};
  int32_t rows = 0;
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (const auto& [name, first, count] : parts) {
      for (int32_t i = 0; i < count; ++i, ++rows) {
        EXPECT_EQ(Row(loaded.branches->layers[static_cast<size_t>(layer)].down, first + i),
                  FileRow(BranchTensorName(layer, name), i, 24))
            << name << " " << i;
      }
    }
  }
  EXPECT_EQ(rows, 2 * c.width);
}

TEST(Branches, TheFormatFollowsTheWeightsSetting) {
  for (const auto& [dtype, format] :
       {std::pair(WeightsDType::kNative, kernels::WeightFormat::kBF16),
        std::pair(WeightsDType::kBF16, kernels::WeightFormat::kBF16),
        std::pair(WeightsDType::kF32, kernels::WeightFormat::kF32)}) {
    const Loaded loaded(BranchesBuilder("gated_delta"), dtype);
    ASSERT_NE(loaded.branches, nullptr);
    const LinearWeights& layer = loaded.branches->layers[1];
    for (const auto* matrix : {&layer.down, &layer.bq, &layer.ao, &layer.bo, &layer.gu}) {
      EXPECT_EQ(matrix->format, format);
    }
    EXPECT_EQ(Row(layer.bo, 23), FileRow("layers.1.linear.bo", 23, 3));
  }
}

// Channel c of a head of 6 with pairs beside each other: 0 3 1 4 2 5 of the file's halves.
TEST(Branches, AnInterleavedBaseGetsRowsOfQAndKInItsOrder) {
  constexpr int64_t kOrder[] = {0, 3, 1, 4, 2, 5};
  const auto file_row = [&](int64_t row) { return row / 6 * 6 + kOrder[row % 6]; };
  const Loaded shared(BranchesBuilder("gated_delta_window"), WeightsDType::kNative, true);
  const Loaded own(BranchesBuilder("gated_delta_window", true), WeightsDType::kNative, true);
  ASSERT_TRUE(shared.branches != nullptr && own.branches != nullptr);
  const LinearWeights& s = shared.branches->layers[1];
  const LinearWeights& o = own.branches->layers[1];
  const std::string p = "layers.1.linear.";
  for (int32_t row = 0; row < 24; ++row) {
    EXPECT_EQ(Row(s.bq, row), FileRow(p + "bq", file_row(row), 3));
    EXPECT_EQ(Row(s.bk, row), FileRow(p + "bk", file_row(row), 3));
    EXPECT_EQ(Row(s.bv, row), FileRow(p + "bv", row, 3));
    EXPECT_EQ(Row(o.wq, row), FileRow(p + "wq", file_row(row), 24));
    if (row < 12) {
      EXPECT_EQ(Row(o.wk, row), FileRow(p + "wk", file_row(row), 24));
      EXPECT_EQ(Row(o.wv, row), FileRow(p + "wv", row, 24));
    }
    for (int64_t tap = 0; tap < 3; ++tap) {
      const auto conv = [&](int64_t channel) {
        return s.conv.host()[static_cast<size_t>(channel)];
      };
      const auto value = [&](int64_t i) { return BranchesBuilder::Value(p + "conv", i); };
      EXPECT_EQ(conv(tap * 72 + row), value(tap * 72 + file_row(row)));
      EXPECT_EQ(conv(tap * 72 + 24 + row), value(tap * 72 + 24 + file_row(row)));
      EXPECT_EQ(conv(tap * 72 + 48 + row), value(tap * 72 + 48 + row));
    }
  }
}

TEST(Branches, WindowNeedsNoFile) {
  const ModelConfig model = BranchBase();
  std::set<Sha256Digest> ids;
  for (const auto& [source, window, sinks] :
       {std::tuple("window:256", 256, 4), std::tuple("window:256:4", 256, 4),
        std::tuple("window:3", 3, 3), std::tuple("window:256:0", 256, 0)}) {
    const auto header = OpenBranches(source, model);
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->source, source);
    EXPECT_THAT(header->base_id, IsEmpty());
    EXPECT_EQ(header->config.window, window);
    EXPECT_EQ(header->config.sinks, sinks);
    EXPECT_EQ(BranchesBytes(*header, model, WeightsDType::kNative), 0);
    const auto branches = LoadBranches(*header, model, BaseId(), WeightsDType::kNative);
    ASSERT_TRUE(branches.ok()) << branches.status();
    EXPECT_EQ((*branches)->layers.size(), 2U);
    EXPECT_EQ((*branches)->layers[0].down.data, nullptr);
    ids.insert((*branches)->id);
    const kernels::SlotShape slot = MakeSlotShape(header->config, model, KvDType::kF16);
    EXPECT_EQ(kernels::SlotStateBytes(slot), 0);
    EXPECT_EQ(kernels::SlotRingBytes(slot), 2 * (window + sinks) * 2 * 6 * 2);
  }
  EXPECT_EQ(ids.size(), 3U);  // The first two are the same.
  for (const char* source : {"window:", "window:0", "window:-1", "window:65537", "window:4:5",
                             "window:4:", "window:4:-1", "window:4:2:1", "window: 4", "window:4x",
                             "window:99999999999"}) {
    EXPECT_EQ(OpenBranches(source, model).status().code(), absl::StatusCode::kInvalidArgument)
        << source;
  }
  EXPECT_EQ(OpenBranches("/no/such/file", model).status().code(), absl::StatusCode::kNotFound);
}

TEST(Branches, AFileOfWindowBranchesHoldsListsAndNoTensors) {
  BranchesBuilder builder("window");
  builder.metadata["rankings"] = {Ranking()};
  const Loaded loaded(builder);
  ASSERT_NE(loaded.branches, nullptr);
  EXPECT_EQ(loaded.branches->header.rankings.size(), 1U);
  EXPECT_EQ(loaded.bytes, 0);
  builder.Add("layers.0.linear.ws", {4, 24});
  EXPECT_THAT(Refusal(builder.Build()), HasSubstr("layers.0.linear.ws has no place in window"));
}

TEST(Branches, TheSlotOfTheDefaultBranchHasThePlannedSize) {
  ModelConfig model;
  model.heads = 9;
  model.kv_heads = 3;
  model.head_dim = 64;
  BranchesConfig config = {.kind = BranchKind::kGatedDeltaWindow,
                           .heads = 9,
                           .head_dim = 64,
                           .conv_taps = 4,
                           .window = 128,
                           .sinks = 4};
  const auto bytes = [&] {
    return kernels::MakeSlotLayout(MakeSlotShape(config, model, KvDType::kF16)).bytes;
  };
  EXPECT_EQ(bytes(), 259'328);  // 253 KiB
  config.kind = BranchKind::kGatedDelta;
  config.window = config.sinks = 0;
  EXPECT_EQ(bytes(), 157'952);  // 154 KiB
}

TEST(Branches, RankingsInteractionAndQualityAreRead) {
  BranchesBuilder builder("gated_delta");
  json ranking = Ranking();
  ranking.update({{"gates", {0.25, 1}}, {"context", 8192}, {"seed", 7}});
  const json sets = {{"selector", "interaction"}, {"sets", {{1}, {1, 0}}}, {"stale", true}};
  const json both = {{"selector", "interaction"}, {"order", {0, 1}}, {"sets", {{1}}}, {"seed", 1}};
  builder.metadata.update({{"rankings", {ranking, sets, both}},
                           {"Q", {{1.5, -2}, {-2, 3}}},
                           {"quality", {Quality()}},
                           {"training", {{"tokens", 100}}}});
  const auto file = Read(builder.Build());
  ASSERT_TRUE(file.ok()) << file.status();
  const BranchesHeader& header = file->header;
  EXPECT_EQ(header.base_name, "tiny base");
  ASSERT_EQ(header.rankings.size(), 3U);
  EXPECT_THAT(header.rankings[0].order, ElementsAre(1, 0));
  EXPECT_THAT(header.rankings[0].gates, ElementsAre(0.25, 1.0));
  EXPECT_EQ(header.rankings[0].context, 8192);
  EXPECT_EQ(header.rankings[0].seed, 7);
  EXPECT_TRUE(header.rankings[0].is_default && !header.rankings[0].stale);
  EXPECT_THAT(header.rankings[1].sets, ElementsAre(ElementsAre(1), ElementsAre(0, 1)));
  EXPECT_TRUE(header.rankings[1].stale && header.rankings[1].order.empty());
  EXPECT_EQ((*RankedKinds(&header.rankings[2], 2, 1))[1], LayerKind::kFull)
      << "the set holds for its size, not the order";
  EXPECT_EQ(FindRanking(header, "interaction/0/1"), &header.rankings[2]);
  EXPECT_EQ(FindRanking(header, "interaction"), &header.rankings[1]) << "the first";
  EXPECT_EQ(FindRanking(header, "halo"), nullptr);
  EXPECT_THAT(header.interaction, ElementsAre(ElementsAre(1.5, -2.0), ElementsAre(-2.0, 3.0)));
  ASSERT_EQ(header.quality.size(), 1U);
  EXPECT_THAT(header.quality[0].layers, ElementsAre(1));
  EXPECT_EQ(header.quality[0].ppl, 9.5);
  EXPECT_THAT(header.quality[0].recall, ElementsAre(std::pair<std::string, double>("pk_1k", 0.25)));
}

// {what to merge into the metadata (null removes), what the refusal says}.
using Damage = std::pair<json, const char*>;

void ExpectRefused(const std::string& kind, bool own, const std::vector<Damage>& damages) {
  for (const auto& [patch, why] : damages) {
    BranchesBuilder builder(kind, own);
    builder.metadata.merge_patch(patch);
    EXPECT_THAT(Refusal(builder.Build()), HasSubstr(why)) << patch;
  }
}

TEST(Branches, NamesTheFieldThatIsWrong) {
  ExpectRefused(
      "gated_delta_window", false,
      {{{{"format", 2}}, "branches.format: version 2"},
       {{{"format", nullptr}}, "branches.format: missing"},
       {{{"base_id", "abc"}}, "branches.base_id"},
       {{{"base_id", std::string(64, 'A')}}, "branches.base_id"},
       {{{"base_name", "a\nb"}}, "branches.base_name"},
       {{{"kind", "mamba2"}}, "branches.kind: unknown"},
       {{{"kind", nullptr}}, "branches.kind: unknown"},
       {{{"kind", 3}}, "branches.kind: not a string"},
       {{{"parameterisation", "both"}}, "branches.parameterisation"},
       {{{"parameterisation", nullptr}}, "branches.parameterisation"},
       {{{"heads", 3}}, "branches.heads: 3; the base has 4"},
       {{{"head_dim", 8}}, "branches.head_dim: 8; the base has 6"},
       {{{"rank", 0}}, "branches.rank: 0"},
       {{{"rank", 1025}}, "branches.rank: 1025"},
       {{{"rank", nullptr}}, "branches.rank: missing"},
       {{{"rank", 2.5}}, "branches.rank: not an integer"},
       {{{"gate_rank", -1}}, "branches.gate_rank: -1"},
       {{{"conv", 9}}, "branches.conv: 9"},
       {{{"conv", 1}}, "branches.conv: 1 tap"},
       {{{"window", 0}}, "branches.window: 0"},
       {{{"window", 65537}}, "branches.window: 65537"},
       {{{"window", 4294967296}}, "branches.window: out of range"},
       {{{"sinks", 6}}, "branches.sinks: 6"},
       {{{"sinks", nullptr}}, "branches.sinks: missing"},
       {{{"silu", 1}}, "branches.silu: not a boolean"},
       {{{"rope", "yes"}}, "branches.rope: not a boolean"},
       {{{"qk_norm", "layer"}}, "branches.qk_norm"},
       {{{"qk_norm", "none"}}, "branches.eps: gated_delta_window branches of this form have none"},
       {{{"eps", 1e-5}}, "branches.eps"},
       {{{"eps", nullptr}}, "branches.eps: missing"},
       {{{"norm_eps", 0}}, "branches.norm_eps: 0"},
       {{{"norm_eps", 2}}, "branches.norm_eps: 2"},
       {{{"scale", -1}}, "branches.scale: -1"},
       {{{"scale", nullptr}}, "branches.scale: missing"},
       {{{"training", "much"}}, "branches.training: not an object"},
       {{{"alpha", 1}}, "branches.alpha: unknown member"}});
  ExpectRefused("lightning", false,
                {{{{"window", 5}}, "branches.window: lightning"},
                 {{{"sinks", 1}}, "branches.sinks: lightning"},
                 {{{"eps", 1e-6}}, "norm_eps"}});
  ExpectRefused("gated_delta", true, {{{{"rank", 3}}, "branches.rank: gated_delta"}});
  ExpectRefused("window", false,
                {{{{"rank", 3}}, "branches.rank: window"},
                 {{{"gate_rank", 3}}, "branches.gate_rank: window"},
                 {{{"conv", 4}}, "branches.conv: window"},
                 {{{"scale", 1}}, "branches.scale: window"},
                 {{{"silu", false}}, "branches.silu: window"},
                 {{{"parameterisation", "own"}}, "branches.parameterisation: window"}});
}

TEST(Branches, NamesTheRankingThatIsWrong) {
  const auto expect = [](const json& patch, const char* why) {
    json second = {{"selector", "random"}, {"order", {0, 1}}};
    second.merge_patch(patch);
    ExpectRefused("gated_delta", false, {{{{"rankings", {Ranking(), second}}}, why}});
  };
  expect({{"order", {0}}}, "branches.rankings[1].order: 1 layers; the base has 2");
  expect({{"order", {0, 0}}}, "branches.rankings[1].order: layer 0 appears twice");
  expect({{"order", {0, 2}}}, "branches.rankings[1].order: holds what is no layer");
  expect({{"order", {0, -1}}}, "branches.rankings[1].order: holds what is no layer");
  expect({{"order", {0, 0.5}}}, "branches.rankings[1].order: holds what is no layer");
  expect({{"order", nullptr}}, "branches.rankings[1].order: order or sets are needed");
  expect({{"order", nullptr}, {"sets", json::array()}}, "branches.rankings[1].sets");
  expect({{"order", nullptr}, {"sets", {{0}, {1}}}}, "branches.rankings[1].sets[1]: sets are not");
  expect({{"order", nullptr}, {"sets", {{0, 0}}}}, "branches.rankings[1].sets[0]: layer 0");
  expect({{"gates", {0.5}}}, "branches.rankings[1].gates: not an array of 2");
  expect({{"gates", {0.5, 1.5}}}, "branches.rankings[1].gates[1]");
  expect({{"gates", {std::nan(""), 1}}}, "branches.rankings[1].gates[0]");  // Written as null.
  expect({{"context", -1}}, "branches.rankings[1].context");
  expect({{"seed", -1}}, "branches.rankings[1].seed");
  expect({{"seed", 18446744073709551615ULL}}, "branches.rankings[1].seed");
  expect({{"selector", "Flash Morph"}}, "branches.rankings[1].selector");
  expect({{"selector", nullptr}}, "branches.rankings[1].selector");
  expect({{"default", true}}, "branches.rankings: 2 are the default");
  expect({{"order", nullptr}, {"sets", {{0}}}, {"default", true}}, "branches.rankings[1].default");
  expect({{"note", ""}}, "branches.rankings[1].note: unknown member");
  json none = Ranking();
  none.erase("default");
  ExpectRefused("gated_delta", false,
                {{{{"rankings", {none}}}, "branches.rankings: 0 are the default"},
                 {{{"rankings", {7}}}, "branches.rankings[0]: not an object"},
                 {{{"rankings", 7}}, "branches.rankings: not an array"},
                 {{{"rankings", std::vector<json>(257, Ranking())}}, "at most 256"}});
}

TEST(Branches, NamesTheNumberOfTheTablesThatIsWrong) {
  ExpectRefused("gated_delta", false,
                {{{{"Q", {{1, 2}}}}, "branches.Q: not an array of 2 rows"},
                 {{{"Q", {{1, 2}, {1}}}}, "branches.Q[1]: not an array of 2"},
                 {{{"Q", {{1, 2}, {1, "x"}}}}, "branches.Q[1][1]"},
                 {{{"Q", {{1, 2}, {1e31, 1}}}}, "branches.Q[1][0]"}});
  const auto expect = [](const json& patch, const char* why) {
    json row = Quality();
    row.merge_patch(patch);
    ExpectRefused("gated_delta", false, {{{{"quality", {row}}}, why}});
  };
  expect({{"k", 2}}, "branches.quality[0].k: 2; it names 1 layers");
  expect({{"k", -1}}, "branches.quality[0].k");
  expect({{"layers", {2}}}, "branches.quality[0].layers");
  expect({{"layers", nullptr}}, "branches.quality[0].layers: missing");
  expect({{"kl", -0.5}}, "branches.quality[0].kl");
  expect({{"kl", nullptr}}, "branches.quality[0].kl: missing");
  expect({{"ppl", 0}}, "branches.quality[0].ppl");
  expect({{"recall", {{"pk_1k", 1.5}}}}, "branches.quality[0].recall.pk_1k");
  expect({{"recall", {{"pk 1k", 1}}}}, "branches.quality[0].recall");
  expect({{"recall", 3}}, "branches.quality[0].recall: not an object");
  expect({{"selector", 3}}, "branches.quality[0].selector");
  expect({{"speed", 3}}, "branches.quality[0].speed: unknown member");
}

TEST(Branches, RefusesMetadataThatIsNoneOfItsOwn) {
  const BranchesBuilder builder("gated_delta");
  EXPECT_THAT(Refusal(builder.BuildWith(nullptr)), HasSubstr("not a branches file"));
  EXPECT_THAT(Refusal(builder.BuildWith({{"format", "pt"}})), HasSubstr("not a branches file"));
  EXPECT_THAT(Refusal(builder.BuildWith("text")), HasSubstr("__metadata__ is not an object"));
  EXPECT_THAT(Refusal(builder.BuildWith({{"morphserve", 7}})), HasSubstr("strings by name"));
  EXPECT_THAT(Refusal(builder.BuildWith({{"morphserve", "[]"}})), HasSubstr("not a JSON object"));
  EXPECT_THAT(Refusal(builder.BuildWith({{"morphserve", builder.metadata.dump()}, {"x", "y"}})),
              HasSubstr("members other than"));
  std::string nan = builder.metadata.dump();
  nan.replace(nan.find("0.40824829"), 10, "NaN       ");
  EXPECT_THAT(Refusal(builder.BuildWith({{"morphserve", nan}})), HasSubstr("not a JSON object"));
}

TEST(Branches, NamesTheTensorThatIsWrong) {
  for (const std::string kind : kStateKinds) {
    for (const bool own : {false, true}) {
      const BranchesBuilder good(kind, own);
      ASSERT_TRUE(Read(good.Build()).ok());
      for (const auto& [name, tensor] : good.tensors) {
        BranchesBuilder bad = good;
        bad.tensors.erase(name);
        EXPECT_THAT(Refusal(bad.Build()), HasSubstr("tensor " + name + " is missing"));
        bad = good;
        bad.tensors[name].shape.back() += 1;
        bad.tensors[name].bytes += std::string(
            static_cast<size_t>(2 * (tensor.shape.size() == 1 ? 1 : tensor.shape[0])), '\0');
        EXPECT_THAT(Refusal(bad.Build()), HasSubstr("tensor " + name + " has shape"));
        bad = good;
        bad.tensors[name].dtype = "F16";
        EXPECT_THAT(Refusal(bad.Build()), HasSubstr("tensor " + name + " has type F16"));
      }
    }
  }
  BranchesBuilder builder("gated_delta");
  builder.Add("layers.2.linear.aq", {3, 24});
  EXPECT_THAT(Refusal(builder.Build()), HasSubstr("layers.2.linear.aq has no place"));
  builder = BranchesBuilder("gated_delta");
  builder.tensors["layers.0.linear.aq"].dtype = "F32";
  builder.tensors["layers.0.linear.aq"].bytes += std::string(144, '\0');
  EXPECT_THAT(Refusal(builder.Build()), HasSubstr("layers.0.linear.aq has type F32"));
  builder = BranchesBuilder("gated_delta");
  builder.tensors["layers.0.linear.gb"].dtype = "F32";
  builder.tensors["layers.0.linear.gb"].bytes += std::string(48, '\0');
  EXPECT_TRUE(Read(builder.Build()).ok());
}

TEST(Branches, RefusesAFileCutAnywhere) {
  const std::string bytes = BranchesBuilder("gated_delta_window").Build();
  for (size_t length = 0; length < bytes.size(); length += 7) {
    EXPECT_FALSE(Read(bytes.substr(0, length)).ok()) << length;
  }
}

// Loads a file whose tensor has one element replaced.
std::string LoadRefusal(const std::string& kind, const std::string& tensor, float value) {
  BranchesBuilder builder(kind);
  std::string element;
  BranchesBuilder::AppendBf16(&element, value);
  builder.tensors[tensor].bytes.replace(2, 2, element);
  const TempFolder folder;
  folder.Write("b", builder.Build());
  const auto header = OpenBranches(folder.Path("b"), BranchBase());
  EXPECT_TRUE(header.ok()) << header.status();
  const auto loaded = LoadBranches(*header, BranchBase(), BaseId(), WeightsDType::kNative);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kInvalidArgument) << tensor;
  return std::string(loaded.status().message());
}

TEST(Branches, NamesTheTensorWhoseNumbersAreNone) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto& [name, tensor] : BranchesBuilder("gated_delta_window").tensors) {
    for (const float value : {std::nanf(""), infinity, -infinity}) {
      EXPECT_THAT(LoadRefusal("gated_delta_window", name, value), HasSubstr("tensor " + name));
    }
  }
  EXPECT_THAT(LoadRefusal("lightning", "layers.1.linear.slopes", -0.5F), HasSubstr("slopes"));
  EXPECT_THAT(LoadRefusal("gated_delta", "layers.1.linear.a_log", 88), HasSubstr("a_log"));
}

TEST(Branches, AnotherBaseIsAFailedPreconditionThatNamesBoth) {
  const TempFolder folder;
  folder.Write("b", BranchesBuilder("gated_delta").Build());
  const auto header = OpenBranches(folder.Path("b"), BranchBase());
  ASSERT_TRUE(header.ok()) << header.status();
  Sha256Digest other = BaseId();
  other[31] = 0xab;
  const auto loaded = LoadBranches(*header, BranchBase(), other, WeightsDType::kNative);
  EXPECT_EQ(loaded.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(std::string(64, 'a')));
  EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(std::string(62, 'a') + "ab"));
}

TEST(Branches, AFileThatChangedAfterItsHeaderWasReadIsAborted) {
  const TempFolder folder;
  const std::string bytes = BranchesBuilder("gated_delta").Build();
  folder.Write("b", bytes);
  const auto header = OpenBranches(folder.Path("b"), BranchBase());
  ASSERT_TRUE(header.ok()) << header.status();
  folder.Write("b", bytes + " ");
  EXPECT_EQ(LoadBranches(*header, BranchBase(), BaseId(), WeightsDType::kNative).status().code(),
            absl::StatusCode::kAborted);
}

TEST(Branches, TheIdIsTheHashOfTheFile) {
  const BranchesBuilder builder("lightning");
  const Loaded loaded(builder);
  ASSERT_NE(loaded.branches, nullptr);
  Sha256 hash;
  hash.Update(builder.Build());
  EXPECT_EQ(loaded.branches->id, hash.Finish());
  EXPECT_EQ(loaded.branches->header.parameters,
            2 * (3 * 72 + 3 * 72 + 72 + 72 + 216 + 48 + 48 + 24 + 24 + 4));
}

}  // namespace
}  // namespace morphserve
