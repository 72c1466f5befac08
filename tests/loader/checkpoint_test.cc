// Catches: a tensor under the wrong name, a twin that reads differently from its folder, a missing,
// misshapen or left-over tensor that passes, and text files that are lost on the way.
#include "engine/loader/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "kernels/gemm.h"
#include "tests/loader/temp_folder.h"

namespace morphserve {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

std::string Tiny(const std::string& name) { return GoldenPath("tiny/" + name); }

std::vector<float> Values(const Checkpoint& checkpoint, const TensorInfo& tensor) {
  std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes));
  EXPECT_TRUE(checkpoint.tensors->Read(tensor, 0, bytes).ok());
  std::vector<float> values(static_cast<size_t>(tensor.elements()));
  kernels::Dequantize(tensor.dtype, bytes.data(), tensor.elements(), values.data());
  return values;
}

// Undoes the permutation that GGUF llama files apply to the rows of q and k.
std::vector<float> HalfSplit(const std::vector<float>& pairs, int64_t rows, int32_t head_dim) {
  std::vector<float> out(pairs.size());
  const int64_t columns = static_cast<int64_t>(pairs.size()) / rows;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t in_head = row % head_dim;
    const int64_t to = row - in_head + (in_head % 2) * (head_dim / 2) + in_head / 2;
    std::copy_n(pairs.begin() + row * columns, columns, out.begin() + to * columns);
  }
  return out;
}

// A writable copy of a tiny folder.
class FolderCopy : public TempFolder {
 public:
  explicit FolderCopy(const std::string& name) {
    for (const auto& entry : std::filesystem::directory_iterator(Tiny(name))) {
      std::filesystem::copy(entry.path(), path());
    }
  }
  void Replace(const std::string& file, const std::string& from, const std::string& to) const {
    std::string text = ReadBytes(Path(file));
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    Write(file, text.replace(at, from.size(), to));
  }
  std::string Refusal() const {
    const auto opened = OpenCheckpoint(path());
    EXPECT_FALSE(opened.ok());
    return opened.ok() ? "" : std::string(opened.status().message());
  }
};

TEST(Checkpoint, OpensEveryTinyCheckpoint) {
  int opened = 0;
  for (const auto& entry : std::filesystem::directory_iterator(Tiny(""))) {
    const auto checkpoint = OpenCheckpoint(entry.path().string());
    ASSERT_TRUE(checkpoint.ok()) << entry.path().filename() << ": " << checkpoint.status();
    EXPECT_TRUE(ValidateModelConfig(checkpoint->config).ok());
    EXPECT_NE(checkpoint->tensors->Find("token_embd.weight"), nullptr);
    EXPECT_NE(checkpoint->tensors->Find("blk.1.ffn_down.weight"), nullptr);
    EXPECT_EQ(checkpoint->tensors->Find("output.weight") == nullptr, checkpoint->config.tied_head);
    EXPECT_EQ(checkpoint->tensors->Find("rope_freqs.weight"), nullptr);
    EXPECT_TRUE(checkpoint->tensors->CheckUnchanged().ok());
    ++opened;
  }
  EXPECT_EQ(opened, 9);
}

TEST(Checkpoint, ReadsWhatDistinguishesTheArchitectures) {
  const auto mistral = OpenCheckpoint(Tiny("mistral-window-bf16"));
  EXPECT_THAT(mistral->config.window, Each(37));
  EXPECT_FALSE(mistral->config.tied_head);
  const auto qwen2 = OpenCheckpoint(Tiny("qwen2-bias-window-f16"));
  EXPECT_THAT(qwen2->config.window, ElementsAre(0, 50, 50));
  EXPECT_TRUE(qwen2->config.qkv_bias);
  const auto qwen3 = OpenCheckpoint(Tiny("qwen3-norm-sharded-bf16"));
  EXPECT_TRUE(qwen3->config.qk_norm);
  EXPECT_EQ(qwen3->config.head_dim, 24);
  const auto yarn = OpenCheckpoint(Tiny("llama-yarn-bias-bf16"));
  EXPECT_TRUE(yarn->config.output_bias);
  EXPECT_EQ(yarn->config.rope.scaling, RopeConfig::Scaling::kYarn);
  const auto linear = OpenCheckpoint(Tiny("llama-linear-text-f16"));
  EXPECT_EQ(linear->config.rope.scaling, RopeConfig::Scaling::kLinear);
  EXPECT_EQ(linear->config.rope.theta, 20000);
  EXPECT_EQ(linear->config.rope.factor, 2.5);
  const auto quantised = OpenCheckpoint(Tiny("llama-quantised.gguf"));
  EXPECT_EQ(quantised->config.head_dim, 24);
  EXPECT_EQ(quantised->name, "tiny quantised");
}

void ExpectTwins(const std::string& folder_name, const std::string& file_name) {
  const auto folder = OpenCheckpoint(Tiny(folder_name));
  const auto file = OpenCheckpoint(Tiny(file_name));
  ASSERT_TRUE(folder.ok() && file.ok()) << folder.status() << file.status();
  const ModelConfig& config = file->config;
  EXPECT_FALSE(folder->config.rope.interleaved);
  ASSERT_EQ(folder->tensors->tensors().size(), file->tensors->tensors().size());
  for (const TensorInfo& expected : folder->tensors->tensors()) {
    SCOPED_TRACE(expected.name);
    const TensorInfo* found = file->tensors->Find(expected.name);
    ASSERT_NE(found, nullptr);
    ASSERT_EQ(found->shape, expected.shape);
    std::vector<float> values = Values(*file, *found);
    const bool rotates = expected.name.find("attn_q.") != std::string::npos ||
                         expected.name.find("attn_k.") != std::string::npos;
    if (config.rope.interleaved && rotates) {
      values = HalfSplit(values, expected.shape[0], config.head_dim);
    }
    EXPECT_EQ(values, Values(*folder, expected));
  }
  const RopeTable a = MakeRopeTable(folder->config.rope);
  const RopeTable b = MakeRopeTable(config.rope);
  for (size_t i = 0; i < a.inverse_frequency.size(); ++i) {
    EXPECT_NEAR(a.inverse_frequency[i], b.inverse_frequency[i], 1e-6F * a.inverse_frequency[i]);
  }
}

TEST(Checkpoint, ALlamaFileAndItsFolderAreTheSameNetwork) {
  ExpectTwins("llama-llama3-tied-f32", "llama-llama3-tied-f32.gguf");
}

TEST(Checkpoint, AQwen3FileAndItsFolderAreTheSameNetwork) {
  ExpectTwins("qwen3-norm-sharded-bf16", "qwen3-norm-bf16.gguf");
}

TEST(Checkpoint, ReadsTokenizerTemplateAndGenerationDefaults) {
  const auto checkpoint = OpenCheckpoint(Tiny("llama-linear-text-f16"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_NE(checkpoint->tokenizer, nullptr);
  EXPECT_EQ(checkpoint->tokenizer->Encode("ab", {})->size(), 2U);
  EXPECT_THAT(checkpoint->tokenizer->special().end_of_generation, ElementsAre(2, 3));
  EXPECT_THAT(checkpoint->chat_template, HasSubstr("add_generation_prompt"));
  EXPECT_EQ(checkpoint->bos_token, "<s>");
  EXPECT_EQ(checkpoint->eos_token, "</s>");
  EXPECT_EQ(checkpoint->name, "llama-linear-text-f16");
  EXPECT_FLOAT_EQ(*checkpoint->generation.temperature, 0.7F);
  EXPECT_FLOAT_EQ(*checkpoint->generation.top_p, 0.9F);
  EXPECT_EQ(*checkpoint->generation.top_k, 40);
  EXPECT_FLOAT_EQ(*checkpoint->generation.repetition_penalty, 1.1F);
  EXPECT_FALSE(checkpoint->generation.min_p.has_value());
}

TEST(Checkpoint, EndTokensOfTheConfigurationStandIn) {
  const FolderCopy copy("llama-linear-text-f16");
  copy.Write("generation_config.json", "{}");
  const auto checkpoint = OpenCheckpoint(copy.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(checkpoint->tokenizer->special().end_of_generation, ElementsAre(2));
}

TEST(Checkpoint, ATemplateFileWinsOverTheConfiguration) {
  const FolderCopy copy("llama-linear-text-f16");
  copy.Write("chat_template.jinja", "{{ messages }}");
  EXPECT_EQ(OpenCheckpoint(copy.path())->chat_template, "{{ messages }}");
}

TEST(Checkpoint, ServesTokenIdsWithoutATokenizerButRefusesOneItCannotRead) {
  EXPECT_EQ(OpenCheckpoint(Tiny("mistral-window-bf16"))->tokenizer, nullptr);
  const FolderCopy copy("mistral-window-bf16");
  copy.Write("tokenizer.model", "x");
  EXPECT_THAT(copy.Refusal(), HasSubstr("tokenizer.model"));
  copy.Write("tokenizer.json", "{\"model\":{\"type\":\"Unigram\"}}");
  EXPECT_FALSE(OpenCheckpoint(copy.path()).ok());
}

TEST(Checkpoint, NamesTensorsThatAreMissingMisshapenOrLeftOver) {
  const FolderCopy copy("llama-llama3-tied-f32");
  copy.Replace("config.json", "\"vocab_size\": 101", "\"vocab_size\": 100");
  EXPECT_THAT(copy.Refusal(), HasSubstr("token_embd.weight has shape [101, 48]"));
  copy.Replace("config.json", "\"vocab_size\": 100", "\"vocab_size\": 101");
  copy.Replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
  EXPECT_THAT(copy.Refusal(), HasSubstr("blk.2.attn_norm.weight is missing"));
  copy.Replace("config.json", "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 1");
  EXPECT_THAT(copy.Refusal(), HasSubstr("tensor blk.1."));
  copy.Replace("config.json", "\"num_hidden_layers\": 1", "\"num_hidden_layers\": 2");
  copy.Replace("model.safetensors", "layers.1.mlp.up_proj", "layers.1.mlp.up_prox");
  EXPECT_THAT(copy.Refusal(), HasSubstr("up_prox.weight has no place"));
}

TEST(Checkpoint, UsesAStoredHeadThoughTheConfigurationTiesIt) {
  const FolderCopy copy("mistral-window-bf16");
  copy.Replace("config.json", "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
  const auto checkpoint = OpenCheckpoint(copy.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_FALSE(checkpoint->config.tied_head);
}

TEST(Checkpoint, NoticesAFileThatChangesAfterOpening) {
  const FolderCopy copy("qwen3-norm-sharded-bf16");
  const auto checkpoint = OpenCheckpoint(copy.path());
  ASSERT_TRUE(checkpoint.ok());
  std::filesystem::resize_file(copy.Path("model-00002-of-00003.safetensors"), 100);
  EXPECT_EQ(checkpoint->tensors->CheckUnchanged().code(), absl::StatusCode::kAborted);
}

TEST(Checkpoint, SaysWhatAPathIsNotWithoutNamingTheFolder) {
  const TempFolder folder;
  EXPECT_EQ(OpenCheckpoint(folder.Path("none.gguf")).status().code(), absl::StatusCode::kNotFound);
  const absl::Status empty = OpenCheckpoint(folder.path()).status();
  EXPECT_EQ(empty.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(empty.message()), HasSubstr("config.json"));
  EXPECT_EQ(std::string(empty.message()).find(folder.path()), std::string::npos);
  folder.Write("x.bin", "not a model");
  EXPECT_THAT(std::string(OpenCheckpoint(folder.Path("x.bin")).status().message()),
              HasSubstr("neither a GGUF file"));
}

}  // namespace
}  // namespace morphserve
