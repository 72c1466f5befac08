#include "engine/text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {

absl::StatusOr<std::unique_ptr<const AddedTokens>> AddedTokens::Create(
    std::vector<AddedToken> tokens) {
  size_t bytes = 0;
  for (const AddedToken& token : tokens) bytes += token.content.size();
  if (bytes > kContentBytesMax) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "added tokens have %d bytes of text; limit is %d", bytes, kContentBytesMax));
  }
  auto result = std::make_unique<AddedTokens>();
  result->tokens_ = std::move(tokens);
  result->nodes_.emplace_back();
  for (size_t i = 0; i < result->tokens_.size(); ++i) result->Insert(i);
  result->LinkFailures();
  return std::unique_ptr<const AddedTokens>(std::move(result));
}

int32_t AddedTokens::Child(int32_t node, unsigned char byte) const {
  if (node == 0) return root_children_[byte] == 0 ? -1 : root_children_[byte];
  int32_t child = nodes_[static_cast<size_t>(node)].first_child;
  while (child >= 0 && nodes_[static_cast<size_t>(child)].byte != byte) {
    child = nodes_[static_cast<size_t>(child)].next_sibling;
  }
  return child;
}

void AddedTokens::Insert(size_t token) {
  int32_t node = 0;
  for (const char c : tokens_[token].content) {
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
      if (node == 0) root_children_[byte] = child;
    }
    node = child;
  }
  Node& last = nodes_[static_cast<size_t>(node)];
  if (node != 0 && last.token < 0) last.token = static_cast<int32_t>(token);
}

// Breadth first, so that a node's fail target, which is shallower, is already linked.
void AddedTokens::LinkFailures() {
  std::vector<int32_t> queue = {0};
  for (size_t head = 0; head < queue.size(); ++head) {
    const int32_t parent = queue[head];
    for (int32_t child = nodes_[static_cast<size_t>(parent)].first_child; child >= 0;
         child = nodes_[static_cast<size_t>(child)].next_sibling) {
      Node& node = nodes_[static_cast<size_t>(child)];
      node.fail = parent == 0 ? 0 : Step(nodes_[static_cast<size_t>(parent)].fail, node.byte);
      const Node& fail = nodes_[static_cast<size_t>(node.fail)];
      node.suffix_match = fail.token >= 0 ? node.fail : fail.suffix_match;
      queue.push_back(child);
    }
  }
}

int32_t AddedTokens::Step(int32_t node, unsigned char byte) const {
  while (true) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
    node = nodes_[static_cast<size_t>(node)].fail;
  }
}

size_t AddedTokens::SplitState::EndOfWhiteSpace(std::string_view text, size_t from) {
  if (from < space_begin || from > space_end) {
    space_begin = from;
    space_end = from + LeadingWhiteSpace(text.substr(from));
  }
  return space_end;
}

AddedTokens::Match AddedTokens::Find(std::string_view text, size_t from, size_t to) const {
  Match best;
  int32_t node = 0;
  for (size_t i = from; i < to; ++i) {
    if (node == 0) {
      while (i < to && root_children_[static_cast<unsigned char>(text[i])] == 0) ++i;
      if (i == to) break;
    }
    node = Step(node, static_cast<unsigned char>(text[i]));
    const Node& state = nodes_[static_cast<size_t>(node)];
    // Whatever is still being read began after the best match: nothing can replace it.
    if (best.token >= 0 && i + 1 - state.depth > best.begin) break;
    const int32_t match = state.token >= 0 ? node : state.suffix_match;
    if (match < 0) continue;
    const Node& found = nodes_[static_cast<size_t>(match)];
    const size_t begin = i + 1 - found.depth;
    // A later end at the same start is the longer match.
    if (best.token < 0 || begin <= best.begin) best = {begin, i + 1, found.token};
  }
  return best;
}

void AddedTokens::SplitRange(std::string_view text, ByteRange range, SplitState* state,
                             std::vector<TextSegment>* segments) const {
  for (size_t from = range.begin; from < range.end;) {
    const Match match = Find(text, from, range.end);
    if (match.token < 0) return;
    from = match.end;
    const AddedToken& token = tokens_[static_cast<size_t>(match.token)];
    size_t begin = match.begin;
    size_t end = match.end;
    if (token.single_word) {
      size_t length = 0;
      const std::string_view before = text.substr(0, begin);
      const bool joined_left =
          begin > 0 &&
          IsWordCharacter(DecodeUtf8(before.substr(LastCharacterStart(before)), &length));
      const bool joined_right =
          end < text.size() && IsWordCharacter(DecodeUtf8(text.substr(end), &length));
      if (joined_left || joined_right) continue;
    }
    if (token.lstrip) {
      const size_t floor = std::min(state->done, begin);
      begin = std::max(begin - TrailingWhiteSpace(text.substr(floor, begin - floor)), state->done);
      if (begin >= end) continue;  // Its text was taken by the white space after the one before.
    }
    if (token.rstrip) end = state->EndOfWhiteSpace(text, end);
    if (state->done < begin) segments->push_back({state->done, begin, -1});
    segments->push_back({begin, end, token.id});
    // As in the reference: this may step back when the token before took white space that is a
    // token too.
    state->done = end;
  }
}

void AddedTokens::Split(std::string_view text, const std::vector<ByteRange>* trusted,
                        std::vector<TextSegment>* segments) const {
  SplitState state;
  if (!tokens_.empty()) {
    if (trusted == nullptr) {
      SplitRange(text, {0, text.size()}, &state, segments);
    } else {
      for (const ByteRange& range : *trusted) SplitRange(text, range, &state, segments);
    }
  }
  if (state.done < text.size()) segments->push_back({state.done, text.size(), -1});
}

}  // namespace morphserve
