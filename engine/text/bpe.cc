#include "engine/text/bpe.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "engine/base/check.h"
#include "engine/text/tokenizer_byte_alphabet.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

constexpr uint64_t kEmptyPair = ~uint64_t{0};
constexpr int32_t kMerged = -2;   // The id of a symbol that its left neighbour swallowed.
constexpr int32_t kNoToken = -1;  // A character that the model does not know.
constexpr uint64_t kHashFactor = 0x9E3779B97F4A7C15ULL;  // 2^64 / golden ratio.

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

std::unique_ptr<const Bpe> Bpe::Create(BpeSpec spec) {
  return std::unique_ptr<const Bpe>(new Bpe(std::move(spec)));
}

Bpe::Bpe(BpeSpec spec) : spec_(std::move(spec)) {
  MS_CHECK(spec_.tokens.size() == spec_.in_model.size());
  MS_CHECK(spec_.byte_ids.empty() || spec_.byte_ids.size() == 256);
  BuildVocabulary();
  BuildMerges();
  BuildByteSymbols();
}

void Bpe::BuildVocabulary() {
  ids_.reserve(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    if (!spec_.in_model[id]) continue;
    ids_.emplace(spec_.tokens[id], static_cast<int32_t>(id));
    longest_token_bytes_ = std::max(longest_token_bytes_, spec_.tokens[id].size());
  }
  for (size_t i = 0; i < spec_.characters_without_token.size(); ++i) {
    characters_.emplace(spec_.characters_without_token[i],
                        static_cast<int32_t>(spec_.tokens.size() + i));
  }
  protected_.assign(spec_.tokens.size(), false);
  for (const int32_t id : spec_.protected_ids) {
    MS_CHECK(id >= 0 && static_cast<size_t>(id) < spec_.tokens.size());
    protected_[static_cast<size_t>(id)] = true;
  }
}

void Bpe::BuildMerges() {
  const size_t symbols = spec_.tokens.size() + spec_.characters_without_token.size();
  const size_t capacity = std::bit_ceil(std::max<size_t>(16, spec_.merges.size() * 2));
  merges_.assign(capacity, Slot{kEmptyPair, 0, 0});
  merges_shift_ = 64 - std::countr_zero(capacity);
  for (const BpeMerge& merge : spec_.merges) {
    MS_CHECK(merge.left >= 0 && static_cast<size_t>(merge.left) < symbols);
    MS_CHECK(merge.right >= 0 && static_cast<size_t>(merge.right) < symbols);
    MS_CHECK(merge.result >= 0 && static_cast<size_t>(merge.result) < spec_.tokens.size());
    if (protected_[static_cast<size_t>(merge.result)]) protection_matters_ = true;
    const uint64_t pair = PairKey(merge.left, merge.right);
    size_t slot = static_cast<size_t>(pair * kHashFactor >> merges_shift_);
    while (merges_[slot].pair != kEmptyPair && merges_[slot].pair != pair) {
      slot = (slot + 1) & (capacity - 1);
    }
    merges_[slot] = Slot{pair, merge.rank, merge.result};  // The last of equal pairs holds.
  }
  spec_.merges.clear();
  spec_.merges.shrink_to_fit();
}

void Bpe::BuildByteSymbols() {
  byte_symbols_.fill(kNoToken);
  if (!spec_.byte_level || !spec_.continuing_prefix.empty() || !spec_.word_suffix.empty()) return;
  bool complete = true;
  for (size_t byte = 0; byte < 256; ++byte) {
    std::string character;
    AppendUtf8(ByteToAlphabet(static_cast<uint8_t>(byte)), &character);
    byte_symbols_[byte] = Find(character).value_or(kNoToken);
    complete = complete && byte_symbols_[byte] != kNoToken;
  }
  plain_bytes_ = complete || (spec_.byte_ids.empty() && !spec_.unknown.has_value());
}

std::optional<int32_t> Bpe::Find(std::string_view text) const {
  const auto it = ids_.find(text);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

const Bpe::Slot* Bpe::FindMerge(int32_t left, int32_t right) const {
  if (left < 0 || right < 0) return nullptr;
  const uint64_t pair = PairKey(left, right);
  size_t slot = static_cast<size_t>(pair * kHashFactor >> merges_shift_);
  while (merges_[slot].pair != kEmptyPair) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    slot = (slot + 1) & (merges_.size() - 1);
  }
  return nullptr;
}

std::optional<int32_t> Bpe::FindWhole(std::string_view piece, bool protect,
                                      BpeScratch* scratch) const {
  if (!spec_.ignore_merges || piece.size() > longest_token_bytes_) return std::nullopt;
  std::string_view text = piece;
  if (spec_.byte_level) {
    scratch->text_ = ToByteAlphabet(piece);
    text = scratch->text_;
  }
  const std::optional<int32_t> id = Find(text);
  if (id.has_value() && protect && protected_[static_cast<size_t>(*id)]) return std::nullopt;
  return id;
}

void Bpe::AddSymbol(int32_t id, size_t begin, BpeScratch* scratch) const {
  const auto position = static_cast<int32_t>(scratch->symbols_.size());
  if (position > 0) scratch->symbols_.back().next = position;
  scratch->symbols_.push_back({id, position - 1, -1, static_cast<uint32_t>(begin)});
}

void Bpe::SplitBytes(std::string_view piece, BpeScratch* scratch, size_t* dropped) const {
  for (size_t i = 0; i < piece.size(); ++i) {
    const int32_t id = byte_symbols_[static_cast<unsigned char>(piece[i])];
    if (id == kNoToken) {
      ++*dropped;
    } else {
      AddSymbol(id, i, scratch);
    }
  }
}

bool Bpe::AddByteTokens(std::string_view text, size_t begin, BpeScratch* scratch) const {
  if (spec_.byte_ids.empty()) return false;
  for (const char byte : text) {
    if (spec_.byte_ids[static_cast<unsigned char>(byte)] < 0) return false;
  }
  for (const char byte : text) {
    AddSymbol(spec_.byte_ids[static_cast<unsigned char>(byte)], begin, scratch);
  }
  return true;
}

// The general case: characters, with affixes, byte fallback and the unknown token. The reference
// adds an unknown token only when the next known character, or the end, comes; byte tokens overtake
// it.
void Bpe::SplitCharacters(std::string_view piece, BpeScratch* scratch, size_t* dropped) const {
  bool unknown_pending = false;
  size_t unknown_begin = 0;
  const auto flush_unknown = [&] {
    if (unknown_pending) AddSymbol(*spec_.unknown, unknown_begin, scratch);
    unknown_pending = false;
  };
  std::string affixed;
  for (size_t begin = 0; begin < piece.size();) {
    const size_t length = Utf8Length(piece[begin]);
    std::string_view text = piece.substr(begin, length);
    if ((begin > 0 && !spec_.continuing_prefix.empty()) ||
        (begin + length == piece.size() && !spec_.word_suffix.empty())) {
      affixed.clear();
      if (begin > 0) affixed += spec_.continuing_prefix;
      affixed += text;
      if (begin + length == piece.size()) affixed += spec_.word_suffix;
      text = affixed;
    }
    if (const std::optional<int32_t> id = Find(text); id.has_value()) {
      flush_unknown();
      AddSymbol(*id, begin, scratch);
    } else if (spec_.fallback_last) {
      const auto it = characters_.find(text);
      AddSymbol(it == characters_.end() ? kNoToken : it->second, begin, scratch);
    } else if (AddByteTokens(text, begin, scratch)) {
      // Nothing more to do: the bytes stand for the character.
    } else if (spec_.unknown.has_value()) {
      if (!spec_.fuse_unknown) flush_unknown();
      if (!unknown_pending) unknown_begin = begin;
      unknown_pending = true;
    } else {
      *dropped += spec_.byte_level ? 1 : length;
    }
    begin += length;
  }
  flush_unknown();
}

void Bpe::PushCandidate(int32_t position, bool protect, BpeScratch* scratch) const {
  const BpeScratch::Symbol& left = scratch->symbols_[static_cast<size_t>(position)];
  if (left.next < 0) return;
  const Slot* merge = FindMerge(left.id, scratch->symbols_[static_cast<size_t>(left.next)].id);
  if (merge == nullptr) return;
  if (protect && protected_[static_cast<size_t>(merge->result)]) return;
  scratch->heap_.push_back({merge->rank, position, merge->result});
}

void Bpe::MergeAll(bool protect, BpeScratch* scratch) const {
  auto& symbols = scratch->symbols_;
  auto& heap = scratch->heap_;
  const auto later = [](const BpeScratch::Candidate& a, const BpeScratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  heap.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    PushCandidate(static_cast<int32_t>(i), protect, scratch);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const BpeScratch::Candidate top = heap.back();
    heap.pop_back();
    BpeScratch::Symbol& left = symbols[static_cast<size_t>(top.position)];
    if (left.id == kMerged || left.next < 0) continue;
    BpeScratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    // A candidate goes stale when one of its two symbols has merged with another since. No two
    // pairs at one place give the same token, since the later text is longer.
    const Slot* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->result != top.result) continue;
    left.id = top.result;
    left.next = right.next;
    right.id = kMerged;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.position;
    for (const int32_t position : {left.previous, top.position}) {
      if (position < 0) continue;
      const size_t size = heap.size();
      PushCandidate(position, protect, scratch);
      if (heap.size() != size) std::push_heap(heap.begin(), heap.end(), later);
    }
  }
}

// Characters that no merge took up become their bytes, or the unknown token.
size_t Bpe::EmitWithFallback(std::string_view piece, const BpeScratch& scratch,
                             std::vector<int32_t>* ids) const {
  size_t dropped = 0;
  bool after_unknown = false;
  for (int32_t i = 0; i >= 0; i = scratch.symbols_[static_cast<size_t>(i)].next) {
    const BpeScratch::Symbol& symbol = scratch.symbols_[static_cast<size_t>(i)];
    if (symbol.id >= 0 && static_cast<size_t>(symbol.id) < spec_.tokens.size()) {
      ids->push_back(symbol.id);
      after_unknown = false;
      continue;
    }
    const std::string_view text = piece.substr(symbol.begin, Utf8Length(piece[symbol.begin]));
    const bool has_bytes =
        !spec_.byte_ids.empty() && std::all_of(text.begin(), text.end(), [this](char byte) {
          return spec_.byte_ids[static_cast<unsigned char>(byte)] >= 0;
        });
    if (has_bytes) {
      for (const char byte : text) {
        ids->push_back(spec_.byte_ids[static_cast<unsigned char>(byte)]);
      }
    } else if (spec_.unknown.has_value()) {
      if (!after_unknown || !spec_.fuse_unknown) ids->push_back(*spec_.unknown);
    } else {
      dropped += text.size();
    }
    after_unknown = !has_bytes;
  }
  return dropped;
}

size_t Bpe::Encode(std::string_view piece, bool protect, BpeScratch* scratch,
                   std::vector<int32_t>* ids) const {
  MS_CHECK(piece.size() <= INT32_MAX / 2);
  size_t dropped = 0;
  scratch->symbols_.clear();
  if (plain_bytes_) {
    SplitBytes(piece, scratch, &dropped);
  } else if (spec_.byte_level) {
    scratch->text_ = ToByteAlphabet(piece);
    SplitCharacters(scratch->text_, scratch, &dropped);
  } else {
    SplitCharacters(piece, scratch, &dropped);
  }
  if (scratch->symbols_.empty()) return dropped;
  MergeAll(protect && protection_matters_, scratch);
  if (spec_.fallback_last) return dropped + EmitWithFallback(piece, *scratch, ids);
  for (int32_t i = 0; i >= 0; i = scratch->symbols_[static_cast<size_t>(i)].next) {
    ids->push_back(scratch->symbols_[static_cast<size_t>(i)].id);
  }
  return dropped;
}

}  // namespace morphserve
