#include "engine/text/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/hash/hash.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/text/tokenizer_pieces.h"
#include "engine/text/tokenizer_spec.h"
#include "engine/text/tokenizer_utf8.h"

namespace morphserve {
namespace {

// Ids of pieces encoded before; a place is overwritten by the next piece that hashes to it. 16 K
// entries cover 98 % of the pieces of ordinary text; pieces past kCachedBytesMax are rarely seen
// twice.
class PieceCache {
 public:
  static constexpr size_t kEntries = 16 << 10;
  static constexpr size_t kCachedBytesMax = 256;

  struct Entry {
    std::string piece;  // Empty: free.
    std::vector<int32_t> ids;
  };

  // The entry where `piece` belongs, of tokenizer `owner`; another owner's entries are dropped.
  Entry& At(uint64_t owner, std::string_view piece) {
    if (owner_ != owner) {
      entries_.assign(kEntries, Entry());
      owner_ = owner;
    }
    return entries_[absl::HashOf(piece) % kEntries];
  }

 private:
  uint64_t owner_ = 0;
  std::vector<Entry> entries_;
};

// What one Encode works in. One a thread, so that little is allocated and nothing locked per call.
struct EncodeScratch {
  RegexScratch regex;
  PreTokenizerScratch pre_tokenizer;
  BpeScratch bpe;
  PieceCache cache;
  std::vector<TextSegment> raw_segments;
  std::vector<TextSegment> segments;
};

// The thread's scratch while one text is encoded. What a long text made it grow to is given back: a
// text of 4 MiB needs some 300 MiB, which no idle thread should keep.
class ScratchLease {
 public:
  explicit ScratchLease(size_t text_bytes) : text_bytes_(text_bytes) {}
  ~ScratchLease() {
    if (text_bytes_ <= kKeptTextBytes) return;
    scratch_.pre_tokenizer = PreTokenizerScratch();
    scratch_.bpe = BpeScratch();
    scratch_.raw_segments = {};
    scratch_.segments = {};
  }
  ScratchLease(const ScratchLease&) = delete;
  ScratchLease& operator=(const ScratchLease&) = delete;

  EncodeScratch& operator*() { return scratch_; }

 private:
  static constexpr size_t kKeptTextBytes = 256 << 10;
  static EncodeScratch& OfThread() {
    thread_local EncodeScratch scratch;
    return scratch;
  }
  const size_t text_bytes_;
  EncodeScratch& scratch_ = OfThread();
};

uint64_t NextOwner() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

// Ranges that touch become one: a token may span two writes of the template.
std::vector<ByteRange> JoinRanges(const std::vector<ByteRange>& ranges, size_t text_size) {
  std::vector<ByteRange> joined;
  for (const ByteRange& range : ranges) {
    MS_CHECK(range.begin <= range.end && range.end <= text_size);
    MS_CHECK(joined.empty() || joined.back().end <= range.begin);
    if (range.begin == range.end) continue;
    if (!joined.empty() && joined.back().end == range.begin) {
      joined.back().end = range.end;
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

std::vector<ByteRange> TrustedRanges(std::string_view flags) {
  std::vector<ByteRange> ranges;
  for (size_t begin = flags.find('\1'); begin != std::string_view::npos;) {
    const size_t end = std::min(flags.find('\0', begin), flags.size());
    ranges.push_back({begin, end});
    begin = flags.find('\1', end);
  }
  return ranges;
}

class SpecTokenizer final : public Tokenizer {
 public:
  SpecTokenizer(TokenizerSpec spec, PieceTable pieces, std::unique_ptr<const AddedTokens> raw,
                std::unique_ptr<const AddedTokens> normalized);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(present_.size()); }
  bool has_piece(int32_t id) const override { return present_[Index(id)]; }
  std::string_view piece_bytes(int32_t id) const override { return Index(id), pieces_.bytes(id); }
  std::string_view first_piece_bytes(int32_t id) const override {
    return Index(id), pieces_.first_bytes(id);
  }
  bool is_special(int32_t id) const override { return special_flags_[Index(id)]; }
  bool is_byte_fallback(int32_t id) const override { return Index(id), pieces_.is_byte(id); }
  bool strips_leading_space() const override { return strips_leading_space_; }
  std::optional<int32_t> FindToken(std::string_view content) const override;
  const SpecialTokens& special() const override { return special_; }
  size_t longest_piece_bytes() const override { return pieces_.longest(); }
  int64_t dropped_bytes_total() const override {
    return dropped_bytes_.load(std::memory_order_relaxed);
  }
  std::string Describe() const override;

 private:
  size_t Index(int32_t id) const {
    MS_CHECK(id >= 0 && static_cast<size_t>(id) < present_.size());
    return static_cast<size_t>(id);
  }
  // Segment of the text before normalisation. `parse`: added tokens match (inside `trusted`, if not
  // null).
  absl::Status EncodeSegment(std::string_view text, TextSegment segment, bool parse,
                             const std::vector<ByteRange>* trusted, EncodeScratch* scratch,
                             std::vector<int32_t>* ids) const;
  // Normalised text between added tokens.
  absl::Status EncodeText(std::string_view text, bool at_start, bool protect,
                          EncodeScratch* scratch, std::vector<int32_t>* ids) const;
  void EncodePiece(std::string_view piece, bool protect, EncodeScratch* scratch,
                   std::vector<int32_t>* ids) const;

  // All constant after construction but dropped_bytes_.
  const uint64_t owner_ = NextOwner();
  std::string description_;
  std::vector<bool> present_;
  std::vector<bool> special_flags_;
  PieceTable pieces_;
  std::unique_ptr<const AddedTokens> raw_added_;
  std::unique_ptr<const AddedTokens> normalized_added_;
  absl::flat_hash_map<std::string, int32_t> added_ids_;
  Normalizer normalizer_;
  bool normalizes_;
  PreTokenizer pre_tokenizer_;
  std::unique_ptr<const Bpe> bpe_;
  PostProcessor post_processor_;
  bool strips_leading_space_;
  SpecialTokens special_;
  mutable std::atomic<int64_t> dropped_bytes_{0};
};

SpecTokenizer::SpecTokenizer(TokenizerSpec spec, PieceTable pieces,
                             std::unique_ptr<const AddedTokens> raw,
                             std::unique_ptr<const AddedTokens> normalized)
    : description_(std::move(spec.description)),
      present_(std::move(spec.present)),
      special_flags_(present_.size()),
      pieces_(std::move(pieces)),
      raw_added_(std::move(raw)),
      normalized_added_(std::move(normalized)),
      normalizer_(spec.normalizer),
      normalizes_(!spec.normalizer.empty()),
      pre_tokenizer_(std::move(spec.pre_tokenizer)),
      post_processor_(std::move(spec.post_processor)),
      strips_leading_space_(spec.decoder.strip_leading_space),
      special_(std::move(spec.special)) {
  spec.model.protected_ids.clear();
  for (const AddedToken& token : spec.added) {
    added_ids_.emplace(token.content, token.id);
    if (!token.special) continue;
    special_flags_[Index(token.id)] = true;
    // Tokens beyond the model's own cannot come out of it.
    if (Index(token.id) < spec.model.tokens.size()) spec.model.protected_ids.push_back(token.id);
  }
  bpe_ = Bpe::Create(std::move(spec.model));
}

std::optional<int32_t> SpecTokenizer::FindToken(std::string_view content) const {
  if (const auto it = added_ids_.find(std::string(content)); it != added_ids_.end()) {
    return it->second;
  }
  return bpe_->Find(content);
}

std::string SpecTokenizer::Describe() const {
  const auto count = std::count(present_.begin(), present_.end(), true);
  return absl::StrFormat("%s, %d tokens", description_, count);
}

void SpecTokenizer::EncodePiece(std::string_view piece, bool protect, EncodeScratch* scratch,
                                std::vector<int32_t>* ids) const {
  if (const auto whole = bpe_->FindWhole(piece, protect, &scratch->bpe); whole.has_value()) {
    ids->push_back(*whole);
    return;
  }
  const bool cacheable =
      piece.size() <= PieceCache::kCachedBytesMax && !(protect && bpe_->protection_matters());
  PieceCache::Entry* entry = cacheable ? &scratch->cache.At(owner_, piece) : nullptr;
  if (entry != nullptr && entry->piece == piece) {
    ids->insert(ids->end(), entry->ids.begin(), entry->ids.end());
    return;
  }
  const size_t before = ids->size();
  const size_t dropped = bpe_->Encode(piece, protect, &scratch->bpe, ids);
  if (dropped > 0) {
    // Not cached: each time it occurs its bytes are counted.
    dropped_bytes_.fetch_add(static_cast<int64_t>(dropped), std::memory_order_relaxed);
  } else if (entry != nullptr) {
    entry->piece.assign(piece);
    entry->ids.assign(ids->begin() + static_cast<std::ptrdiff_t>(before), ids->end());
  }
}

absl::Status SpecTokenizer::EncodeText(std::string_view text, bool at_start, bool protect,
                                       EncodeScratch* scratch, std::vector<int32_t>* ids) const {
  return pre_tokenizer_.Split(
      text, at_start, &scratch->regex, &scratch->pre_tokenizer,
      [&](std::string_view piece) { EncodePiece(piece, protect, scratch, ids); });
}

absl::Status SpecTokenizer::EncodeSegment(std::string_view text, TextSegment segment, bool parse,
                                          const std::vector<ByteRange>* trusted,
                                          EncodeScratch* scratch, std::vector<int32_t>* ids) const {
  const std::string_view part = text.substr(segment.begin, segment.end - segment.begin);
  const bool at_start = segment.begin == 0;
  const bool protect = !parse || trusted != nullptr;
  const bool find_more = parse && !normalized_added_->empty();
  if (!find_more && (!normalizes_ || normalizer_.LeavesAlone(part))) {
    return EncodeText(part, at_start, protect, scratch, ids);
  }
  TrackedText tracked;
  tracked.text = part;
  if (find_more && trusted != nullptr) {
    tracked.track = true;
    tracked.trusted.assign(part.size(), '\0');
    for (const ByteRange& range : *trusted) {
      const size_t begin = std::max(range.begin, segment.begin);
      const size_t end = std::min(range.end, segment.end);
      for (size_t i = begin; i < end; ++i) tracked.trusted[i - segment.begin] = '\1';
    }
  }
  MS_RETURN_IF_ERROR(normalizer_.Normalize(&scratch->regex, &tracked));
  if (!find_more) return EncodeText(tracked.text, at_start, protect, scratch, ids);

  const std::vector<ByteRange> ranges = TrustedRanges(tracked.trusted);
  scratch->segments.clear();
  normalized_added_->Split(tracked.text, tracked.track ? &ranges : nullptr, &scratch->segments);
  for (const TextSegment& piece : scratch->segments) {
    if (piece.id >= 0) {
      ids->push_back(piece.id);
      continue;
    }
    const std::string_view between =
        std::string_view(tracked.text).substr(piece.begin, piece.end - piece.begin);
    MS_RETURN_IF_ERROR(EncodeText(between, at_start && piece.begin == 0, protect, scratch, ids));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> SpecTokenizer::Encode(std::string_view text,
                                                           const EncodeOptions& options) const {
  if (text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("text has %d bytes; limit is %d", text.size(), kTextBytesMax));
  }
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrFormat("text is not valid UTF-8 at byte offset %d", bad));
  }
  ScratchLease lease(text.size());
  EncodeScratch& scratch = *lease;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  std::vector<ByteRange> ranges;
  const std::vector<ByteRange>* trusted = nullptr;
  if (options.trusted != nullptr) {
    ranges = JoinRanges(*options.trusted, text.size());
    // Wholly trusted text is nobody's input: it is encoded as if nothing had been said.
    const bool all = ranges.size() == 1 && ranges[0].end - ranges[0].begin == text.size();
    trusted = all ? nullptr : &ranges;
  }
  scratch.raw_segments.clear();
  if (options.parse_added_tokens) {
    raw_added_->Split(text, trusted, &scratch.raw_segments);
  } else if (!text.empty()) {
    scratch.raw_segments.push_back({0, text.size(), -1});
  }
  for (const TextSegment& segment : scratch.raw_segments) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
    } else {
      MS_RETURN_IF_ERROR(
          EncodeSegment(text, segment, options.parse_added_tokens, trusted, &scratch, &ids));
    }
  }
  if (options.add_special_tokens) post_processor_.Apply(&ids);
  return ids;
}

absl::Status CheckDistinct(const std::vector<AddedToken>& tokens) {
  absl::flat_hash_map<std::string_view, int32_t> seen;
  for (const AddedToken& token : tokens) {
    const auto [it, fresh] = seen.emplace(token.content, token.id);
    if (fresh || token.content.empty()) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("added tokens %d and %d have the same text", it->second, token.id));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> BuildTokenizer(TokenizerSpec spec) {
  MS_CHECK(spec.tokens.size() == spec.present.size());
  const Normalizer normalizer(spec.normalizer);
  RegexScratch scratch;
  std::vector<AddedToken> raw;
  std::vector<AddedToken> normalized;
  for (const AddedToken& token : spec.added) {
    MS_CHECK(token.id >= 0 && static_cast<size_t>(token.id) < spec.tokens.size());
    if (!token.normalized) {
      raw.push_back(token);
      continue;
    }
    // A token that matches in normalised text is normalised itself, and that is the text it stands
    // for.
    TrackedText content;
    content.text = token.content;
    MS_RETURN_IF_ERROR(normalizer.Normalize(&scratch, &content));
    spec.tokens[static_cast<size_t>(token.id)] = content.text;
    normalized.push_back(token);
    normalized.back().content = std::move(content.text);
  }
  MS_RETURN_IF_ERROR(CheckDistinct(raw));
  MS_RETURN_IF_ERROR(CheckDistinct(normalized));
  MS_ASSIGN_OR_RETURN(PieceTable pieces,
                      PieceTable::Create(spec.tokens, spec.present, spec.decoder));
  MS_ASSIGN_OR_RETURN(auto raw_matcher, AddedTokens::Create(std::move(raw)));
  MS_ASSIGN_OR_RETURN(auto normalized_matcher, AddedTokens::Create(std::move(normalized)));
  return std::unique_ptr<Tokenizer>(std::make_unique<SpecTokenizer>(
      std::move(spec), std::move(pieces), std::move(raw_matcher), std::move(normalized_matcher)));
}

}  // namespace morphserve
