#include "engine/model/step_rows.h"

#include <algorithm>

#include "engine/base/check.h"

namespace morphserve {
namespace {

void AddRows(const StepSegment& segment, std::vector<int32_t>* list) {
  for (int32_t r = 0; r < segment.row_count; ++r) list->push_back(segment.row_begin + r);
}

RowSet SetOf(const std::vector<int32_t>& list, size_t all) {
  return {.list = list.size() == all ? nullptr : list.data(),
          .count = static_cast<int32_t>(list.size())};
}

template <typename Segment>
int32_t FirstChunk(const std::vector<Segment>& segments) {
  const auto first = std::find_if(segments.begin(), segments.end(),
                                  [](const Segment& segment) { return segment.row_count > 1; });
  return static_cast<int32_t>(first - segments.begin());
}

}  // namespace

void StepRows::Split(const StepBatch& batch, int32_t layer) {
  const auto l = static_cast<size_t>(layer);
  full.clear();
  linear.clear();
  attention.clear();
  mixer.clear();
  emits.clear();
  batch_segment.clear();
  page_of_row.assign(static_cast<size_t>(batch.rows()), -1);
  offset_of_row.assign(static_cast<size_t>(batch.rows()), 0);
  for (size_t s = 0; s < batch.segments.size(); ++s) {
    const StepSegment& segment = batch.segments[s];
    if (segment.plan->kind(layer) == LayerKind::kLinear) {
      const UnitAddress slot = segment.caches->slots[l];
      MS_CHECK(slot >= 0);
      mixer.push_back({.row_begin = static_cast<int32_t>(linear.size()),
                       .row_count = segment.row_count,
                       .position = segment.position,
                       .src_slot = slot,
                       .dst_slot = slot,
                       .emit_begin = static_cast<int32_t>(emits.size()),
                       .emit_count = segment.emit_count});
      for (int32_t e = 0; e < segment.emit_count; ++e) {
        const SnapshotEmit& emit = batch.emits[static_cast<size_t>(segment.emit_begin + e)];
        emits.push_back({.rows = emit.rows, .slot = (*emit.slots)[l]});
      }
      batch_segment.push_back(static_cast<int32_t>(s));
      AddRows(segment, &linear);
      continue;
    }
    const std::vector<UnitAddress>& pages = segment.caches->pages[l];
    attention.push_back({.row_begin = static_cast<int32_t>(full.size()),
                         .row_count = segment.row_count,
                         .kv_len = segment.position + segment.row_count,
                         .page_table = pages.data()});
    for (int32_t r = 0; r < segment.row_count; ++r) {
      const auto row = static_cast<size_t>(segment.row_begin + r);
      const int32_t position = segment.position + r;
      const auto page = static_cast<size_t>(position / kPageTokens);
      MS_DCHECK(page < pages.size());
      page_of_row[row] = pages[page];
      offset_of_row[row] = position % kPageTokens;
    }
    AddRows(segment, &full);
  }
  nonfinite.assign(mixer.size(), 0);
}

LayerRows StepRows::View() {
  LayerRows view = {.full = SetOf(full, page_of_row.size()),
                    .attention = attention,
                    .page_of_row = page_of_row.data(),
                    .offset_of_row = offset_of_row.data(),
                    .linear = SetOf(linear, page_of_row.size()),
                    .mixer = mixer,
                    .emits = emits,
                    .nonfinite = nonfinite.data()};
  view.attention_first_chunk = FirstChunk(attention);
  view.mixer_first_chunk = FirstChunk(mixer);
  for (const kernels::AttentionSegment& segment : attention) {
    view.attention_rows_max = std::max(view.attention_rows_max, segment.row_count);
    view.attention_single_rows = view.attention_single_rows || segment.row_count == 1;
    view.kv_len_max = std::max(view.kv_len_max, segment.kv_len);
  }
  for (const kernels::MixerSegment& segment : mixer) {
    view.mixer_rows_max = std::max(view.mixer_rows_max, segment.row_count);
    view.mixer_single_rows = view.mixer_single_rows || segment.row_count == 1;
  }
  return view;
}

}  // namespace morphserve
