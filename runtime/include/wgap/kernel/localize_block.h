// One feature map to one box: recombine, upsample, threshold levels, largest component. The only copy of this
// arithmetic, for every device: a block of threads (see block.h) runs it for one image and one class.
//
// Contract: train/reference.py is followed bit for bit. Compile without contraction of a*b+c (-ffp-contract=off,
// --fmad=false), without fast-math. Decisions are taken on integers whose sums are exact in any order, so that the
// record depends neither on the number of threads nor on the device. Nothing here allocates, throws or prints.
#pragma once

#include "wgap/kernel/activation_map.h"
#include "wgap/kernel/component.h"
#include "wgap/kernel/threshold_level.h"

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

template <class Block>
WGAP_HD void clear(Block& block, const Scratch& scratch) {
  if (block.rank() == 0) {
    State* const state = scratch.state;
    state->logit_bits = state->low_bits = 0;
    state->map_highest = -0x7fffffff - 1;
    state->map_lowest = 0x7fffffff;
    state->best_class[0] = state->best_component = 0;
    state->box[0] = state->box[1] = 0x7fffffff;
    state->box[2] = state->box[3] = 0;
  }
  each(block, Block::kCopies * 2 * kLevelSlots, [=](int i) { scratch.level_sums[i] = 0; });
  block.sync();
}

// Features and logits of one image to the box of one class. Scratch is laid out and prepared for problem.shape; one
// block at a time may use it. All of the block's threads call this; the record is complete when all have returned; it is only written.
template <class Block>
WGAP_HD void localize_block(Block& block, const Problem& problem, const Scratch& scratch, Record* record) {
  const Shape& shape = problem.shape;
  const int H = shape.map_height;
  State* const state = scratch.state;
  const bool leader = block.rank() == 0;
  clear(block, scratch);
  if (leader) {
    record->struct_size = sizeof(Record);
    record->status = kDone;
    record->boxes = 1;
  }
  if (problem.edge_means) each(block, kLevels + 1, [=](int l) { problem.edge_means[l] = not_a_number(); });
  const int chosen = choose_class(block, problem, scratch, record);
  if (chosen < 0) {
    if (leader) record->status = kBadLogits;
    return;
  }
  block.mark(kClass);
  const float* const weight = problem.weight + static_cast<i64>(chosen) * shape.channels;
  if (!recombine(block, problem, weight, scratch)) {
    if (leader) record->status = kBadFeatures;
    return;
  }
  block.mark(kRecombine);
  upsample_columns(block, shape, scratch);
  find_extremes(block, shape, scratch);
  block.mark(kColumns);
  const float lowest = float_from_bits(ordered(block.load(&state->map_lowest)));
  const float base = problem.rule.map == kSigned ? lowest : 0.0f;
  const float span = float_from_bits(ordered(block.load(&state->map_highest))) - base;
  const bool adaptive = problem.rule.kind == kAdaptive;
  if (span < kFlattest) {
    if (problem.heatmap)
      each_row(block, 0, H, shape.map_width, [=](int y) {
        float* const to = problem.heatmap + static_cast<i64>(y) * shape.map_width;
        return [=](int x) { to[x] = 0.0f; };
      });
    if (leader) {
      record->degenerate = 1;
      record->level = -1;
      record->threshold = 0.0;
      record->box[0] = record->box[1] = 0;
      record->box[2] = shape.map_width;
      record->box[3] = H;
    }
    return;
  }
  const Scale scale{base, span, static_cast<float>(kOne) / span};
  if (problem.heatmap) write_heatmap(block, problem, scratch, scale);
  block.mark(kHeatmap);
  const bool plain = base == 0.0f && lowest >= 0.0f;
  for (int y = 0; y < H; y += Block::kTileRows) {
    const int last = smaller(y + Block::kTileRows, H);
    if (plain) {
      quantise_rows<true>(block, problem, scratch, scale, y, last);
    } else {
      quantise_rows<false>(block, problem, scratch, scale, y, last);
    }
    block.sync();
    block.mark(kQuantise);
    if (!adaptive) continue;
    // A row's edges need the row below it: one row of each tile waits for the next.
    const int from = larger(y - 1, 0), held = from - y + 1;
    const int rows = (last == H ? H : last - 1) - from;
    find_edges(block, shape, scratch, from, held, rows);
    add_edges(block, scratch, held, rows);
    block.sync();
    block.mark(kEdges);
    if (last == H) break;
    const i64 pitch = static_cast<i64>(scratch.words) * 64;
    each(block, shape.map_width,
         [=](int x) { scratch.fixed_point[x] = scratch.fixed_point[static_cast<i64>(last - y) * pitch + x]; });
    block.sync();
  }
  if (adaptive) choose_level(block, scratch, problem.edge_means);
  if (leader) {
    const int level = adaptive ? state->mask_bound : -1;
    if (!adaptive) state->mask_bound = 0;
    record->degenerate = 0;
    record->level = level;
    record->threshold = adaptive ? static_cast<double>(level) / kLevels : problem.rule.eta;
  }
  block.sync();
  block.mark(kLevel);
  largest_component(block, shape, scratch, state->mask_bound);
  if (leader)
    for (int i = 0; i < 4; ++i) record->box[i] = state->box[i];
  block.mark(kComponent);
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
