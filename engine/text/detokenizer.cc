#include "engine/text/detokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

// A run of byte tokens is judged as a whole once it has ended; a longer one is judged in parts.
constexpr size_t kByteRunMax = 64;

}  // namespace

Detokenizer::Detokenizer(const Tokenizer* tokenizer, bool skip_special, bool at_text_start)
    : tokenizer_(tokenizer),
      skip_special_(skip_special),
      at_first_token_(at_text_start),
      strip_next_space_(at_text_start && tokenizer->strips_leading_space()) {}

void Detokenizer::Append(int32_t id, std::string* out) {
  if (id < 0 || id >= tokenizer_->vocab_size() || !tokenizer_->has_piece(id)) return;
  if (skip_special_ && tokenizer_->is_special(id)) return;
  const std::string_view bytes = std::exchange(at_first_token_, false)
                                     ? tokenizer_->first_piece_bytes(id)
                                     : tokenizer_->piece_bytes(id);
  if (tokenizer_->is_byte_fallback(id)) {
    AppendToByteRun(bytes, out);
  } else {
    if (in_byte_run_) EndByteRun(out);
    AppendBytes(bytes, out);
  }
}

void Detokenizer::Flush(std::string* out) {
  if (in_byte_run_) {
    EndByteRun(out);
  } else if (!held_.empty()) {
    held_.clear();
    Emit(kReplacementCharacter, out);
  }
}

void Detokenizer::Emit(std::string_view text, std::string* out) {
  if (text.empty()) return;
  if (std::exchange(strip_next_space_, false) && text.front() == ' ') text.remove_prefix(1);
  out->append(text);
}

void Detokenizer::AppendBytes(std::string_view bytes, std::string* out) {
  held_.append(bytes);
  const std::string_view text = held_;
  size_t done = 0;
  size_t i = 0;
  while (i < text.size()) {
    const Utf8Step step = ClassifyUtf8(text.substr(i));
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    if (step.kind == Utf8Step::Kind::kInvalid) {
      Emit(text.substr(done, i - done), out);
      Emit(kReplacementCharacter, out);
      done = i + step.length;
    }
    i += step.length;
  }
  Emit(text.substr(done, i - done), out);
  held_.erase(0, i);
}

void Detokenizer::AppendToByteRun(std::string_view byte, std::string* out) {
  if (!in_byte_run_ && !held_.empty()) Flush(out);
  in_byte_run_ = true;
  held_.append(byte);
  if (held_.size() < kByteRunMax) return;
  // Judge all but a character that may be unfinished at the end.
  const size_t last = LastCharacterStart(held_);
  const bool unfinished =
      ClassifyUtf8(std::string_view(held_).substr(last)).kind == Utf8Step::Kind::kIncomplete;
  std::string rest = unfinished && last > 0 ? held_.substr(last) : std::string();
  held_.resize(held_.size() - rest.size());
  EndByteRun(out);
  held_ = std::move(rest);
  in_byte_run_ = true;
}

void Detokenizer::EndByteRun(std::string* out) {
  if (FindInvalidUtf8(held_) == std::string_view::npos) {
    Emit(held_, out);
  } else {
    for (size_t i = 0; i < held_.size(); ++i) Emit(kReplacementCharacter, out);
  }
  held_.clear();
  in_byte_run_ = false;
}

std::string Decode(const Tokenizer& tokenizer, std::span<const int32_t> ids, bool skip_special) {
  std::string text;
  Detokenizer detokenizer(&tokenizer, skip_special, /*at_text_start=*/true);
  for (const int32_t id : ids) detokenizer.Append(id, &text);
  detokenizer.Flush(&text);
  return text;
}

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)), nodes_(1) {
  for (size_t stop = 0; stop < stops_.size(); ++stop) {
    int32_t node = 0;
    for (const char c : stops_[stop]) {
      const auto byte = static_cast<unsigned char>(c);
      int32_t child = Child(node, byte);
      if (child < 0) {
        child = static_cast<int32_t>(nodes_.size());
        Node added;
        added.byte = byte;
        added.depth = nodes_[static_cast<size_t>(node)].depth + 1;
        added.next_sibling = nodes_[static_cast<size_t>(node)].first_child;
        nodes_.push_back(added);
        nodes_[static_cast<size_t>(node)].first_child = child;
      }
      node = child;
    }
    Node& last = nodes_[static_cast<size_t>(node)];
    if (node != 0 && last.stop < 0) last.stop = static_cast<int32_t>(stop);
  }
  // Breadth first: a fail target is shallower, so it is complete when it is asked for.
  std::vector<int32_t> queue = {0};
  for (size_t head = 0; head < queue.size(); ++head) {
    const int32_t parent = queue[head];
    for (int32_t child = nodes_[static_cast<size_t>(parent)].first_child; child >= 0;
         child = nodes_[static_cast<size_t>(child)].next_sibling) {
      Node& node = nodes_[static_cast<size_t>(child)];
      node.fail = parent == 0 ? 0 : Step(nodes_[static_cast<size_t>(parent)].fail, node.byte);
      if (node.stop < 0) node.stop = nodes_[static_cast<size_t>(node.fail)].stop;
      queue.push_back(child);
    }
  }
}

int32_t StopMatcher::Child(int32_t node, unsigned char byte) const {
  int32_t child = nodes_[static_cast<size_t>(node)].first_child;
  while (child >= 0 && nodes_[static_cast<size_t>(child)].byte != byte) {
    child = nodes_[static_cast<size_t>(child)].next_sibling;
  }
  return child;
}

int32_t StopMatcher::Step(int32_t node, unsigned char byte) const {
  while (true) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
    node = nodes_[static_cast<size_t>(node)].fail;
  }
}

std::optional<StopMatcher::Match> StopMatcher::Append(std::string_view text, bool include_stop,
                                                      std::string* out) {
  held_.append(text);
  for (size_t i = held_.size() - text.size(); i < held_.size(); ++i) {
    node_ = Step(node_, static_cast<unsigned char>(held_[i]));
    const int32_t stop = nodes_[static_cast<size_t>(node_)].stop;
    if (stop < 0) continue;
    const auto index = static_cast<size_t>(stop);
    const size_t cut = include_stop ? i + 1 : i + 1 - stops_[index].size();
    out->append(held_, 0, cut);
    held_.clear();
    node_ = 0;
    return Match{index};
  }
  const size_t keep = nodes_[static_cast<size_t>(node_)].depth;
  out->append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return std::nullopt;
}

void StopMatcher::Flush(std::string* out) {
  out->append(held_);
  held_.clear();
  node_ = 0;
}

}  // namespace morphserve
