// Stand-ins for the parts behind the services: a tokenizer of bytes, a template that writes control
// tokens, an engine that a test drives by hand. For tests/server only.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/mutex.h"
#include "engine/engine.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"
#include "tests/server/plan_fakes.h"

namespace morphserve::testing {

// Ids 0..255 are bytes; 256 is <|end|>, 257 is <|start|>; 258 and 259 lack a piece.
class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr int32_t kEnd = 256;
  static constexpr int32_t kStart = 257;
  static constexpr int32_t kVocab = 260;

  ByteTokenizer() {
    for (int i = 0; i < 256; ++i) pieces_.push_back(std::string(1, static_cast<char>(i)));
    pieces_.push_back("<|end|>");
    pieces_.push_back("<|start|>");
    special_.eos = kEnd;
    special_.end_of_generation = {kEnd};
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override {
    if (on_encode) on_encode();
    std::vector<int32_t> ids;
    if (options.add_special_tokens) ids.push_back(kStart);
    for (size_t at = 0; at < text.size();) {
      const int32_t added = AddedTokenAt(text, at, options);
      ids.push_back(added >= 0 ? added : static_cast<uint8_t>(text[at]));
      at += added >= 0 ? piece_bytes(added).size() : 1;
    }
    return ids;
  }
  int32_t vocab_size() const override { return kVocab; }
  bool has_piece(int32_t id) const override { return id <= kStart; }
  std::string_view piece_bytes(int32_t id) const override {
    return pieces_[static_cast<size_t>(id)];
  }
  bool is_special(int32_t id) const override { return id >= kEnd; }
  bool is_byte_fallback(int32_t) const override { return false; }
  bool strips_leading_space() const override { return false; }
  std::optional<int32_t> FindToken(std::string_view) const override { return std::nullopt; }
  const SpecialTokens& special() const override { return special_; }
  size_t longest_piece_bytes() const override { return 9; }
  std::string Describe() const override { return "bytes"; }

  std::function<void()> on_encode;  // Set before any thread encodes.

 private:
  int32_t AddedTokenAt(std::string_view text, size_t at, const EncodeOptions& options) const {
    for (const int32_t id : {kEnd, kStart}) {
      const std::string_view piece = piece_bytes(id);
      if (text.substr(at, piece.size()) != piece) continue;
      if (options.trusted == nullptr) return id;
      for (const ByteRange& range : *options.trusted) {
        if (range.begin <= at && at + piece.size() <= range.end) return id;
      }
    }
    return -1;
  }

  std::vector<std::string> pieces_;
  SpecialTokens special_;
};

// "<|start|>role:content<|end|>" for each message, "<|start|>assistant:" to generate. A message of
// the role "bad" raises.
class SimpleTemplate final : public ChatTemplate {
 public:
  absl::StatusOr<RenderedChat> Render(const ChatInput& input,
                                      const TemplateLimits& limits) const override {
    RenderedChat out;
    const auto trusted = [&out](std::string_view text) {
      out.trusted.push_back({out.text.size(), out.text.size() + text.size()});
      out.text += text;
    };
    for (size_t i = 0; i < input.messages.size(); ++i) {
      const ChatMessage& message = input.messages[i];
      if (message.role == "bad") return absl::InvalidArgumentError("roles must alternate");
      trusted("<|start|>");
      out.text += message.role + ":" + message.content;
      const bool last = i + 1 == input.messages.size();
      if (!(last && input.continue_final_message)) trusted("<|end|>");
    }
    if (input.add_generation_prompt) trusted("<|start|>assistant:");
    if (static_cast<int64_t>(out.text.size()) > limits.output_bytes_max) {
      return absl::InvalidArgumentError("output limit");
    }
    return out;
  }
  const std::vector<std::string>& capabilities() const override { return capabilities_; }

 private:
  const std::vector<std::string> capabilities_ = {"system_role", "generation_prompt"};
};

// Keeps what is submitted; the test plays the engine thread. Cancel answers the sink at once, from
// the thread that calls it, which is harsher than an engine is.
class FakeEngine final : public PlannedEngine {
 public:
  struct Live {
    Request request;
    std::shared_ptr<TokenSink> sink;
  };

  explicit FakeEngine(const Tokenizer* tokenizer, int32_t plans_max = 8)
      : PlannedEngine(3, plans_max), tokenizer_(tokenizer) {
    info_.model_name = "tiny";
    info_.architecture = "llama";
    info_.parameters = 1234;
    info_.layers = 3;
    info_.vocab = ByteTokenizer::kVocab;
    info_.context_tokens = 512;
    info_.weight_dtype = "F32";
    info_.kv_dtype = "F16";
    info_.device_name = "test";
    info_.kv_bytes_per_token = 3 * 16;
    info_.memory.page_bytes = 64 * 16;
    info_.memory.arena_bytes = 1 << 20;
    info_.memory.sequences_max = 5;
  }

  const Tokenizer* tokenizer() const override { return tokenizer_; }
  const EngineInfo& info() const override { return info_; }
  EngineInfo* mutable_info() { return &info_; }

  absl::Status Submit(Request request, std::shared_ptr<TokenSink> sink) override {
    MutexLock lock(&mutex_);
    if (!refusal_.ok()) return refusal_;
    submitted_.push_back({std::move(request), std::move(sink)});
    changed_.NotifyAll();
    return absl::OkStatus();
  }
  bool Cancel(const std::string& id, absl::Status status) override {
    std::shared_ptr<TokenSink> sink;
    {
      MutexLock lock(&mutex_);
      cancelled_.emplace_back(id, status);
      changed_.NotifyAll();
      if (!answer_cancels_) return true;
      for (const Live& live : taken_) {
        if (live.request.id == id) sink = live.sink;
      }
    }
    if (sink != nullptr) sink->OnError(status);
    return sink != nullptr;
  }
  void StopAdmission() override {}
  EngineLoad GetLoad() const override { return {}; }

  void Refuse(absl::Status status) {
    MutexLock lock(&mutex_);
    refusal_ = std::move(status);
  }
  void AnswerCancels(bool answer) {
    MutexLock lock(&mutex_);
    answer_cancels_ = answer;
  }
  // Waits for the next submission; empty after 20 s.
  std::optional<Live> Take() {
    MutexLock lock(&mutex_);
    for (int i = 0; submitted_.empty() && i < 200; ++i) {
      changed_.WaitFor(&mutex_, std::chrono::milliseconds(100));
    }
    if (submitted_.empty()) return std::nullopt;
    Live live = std::move(submitted_.front());
    submitted_.pop_front();
    taken_.push_back(live);
    return live;
  }
  // Waits until `count` cancellations came; what came.
  std::vector<std::pair<std::string, absl::Status>> WaitForCancels(size_t count) {
    MutexLock lock(&mutex_);
    for (int i = 0; cancelled_.size() < count && i < 200; ++i) {
      changed_.WaitFor(&mutex_, std::chrono::milliseconds(100));
    }
    return cancelled_;
  }
  // Lets go of every sink, as an engine does when a request has ended.
  void Forget() {
    MutexLock lock(&mutex_);
    taken_.clear();
  }
  size_t submitted() const {
    MutexLock lock(&mutex_);
    return submitted_.size();
  }

 private:
  const Tokenizer* const tokenizer_;
  EngineInfo info_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<Live> submitted_ ABSL_GUARDED_BY(mutex_);
  std::vector<Live> taken_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<std::string, absl::Status>> cancelled_ ABSL_GUARDED_BY(mutex_);
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  bool answer_cancels_ ABSL_GUARDED_BY(mutex_) = true;
};

}  // namespace morphserve::testing
