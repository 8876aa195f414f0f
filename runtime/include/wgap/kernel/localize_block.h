// The outputs for one image to boxes: recombine, upsample, threshold levels (or scores and colours), components. The only copy of this
// arithmetic, for every device: a block of threads (see block.h) runs it for one image and one class.
//
// Contract: train/reference.py is followed bit for bit. Compile without contraction of a*b+c (-ffp-contract=off,
// --fmad=false), without fast-math. Decisions are taken on integers whose sums are exact in any order, so that the
// record depends neither on the number of threads nor on the device. Nothing here allocates, throws or prints.
#pragma once

#include "wgap/kernel/activation_map.h"
#include "wgap/kernel/component.h"
#include "wgap/kernel/foreground.h"
#include "wgap/kernel/threshold_level.h"

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

template <class Block>
WGAP_HD void clear(Block& block, const Scratch& scratch) {
  if (block.rank() == 0) {
    State* const state = scratch.state;
    state->logit_bits = state->low_bits = state->score_bits = 0;
    state->map_highest = -0x7fffffff - 1;
    state->map_lowest = 0x7fffffff;
    state->best_class[0] = 0;
    state->highest_score = state->right_inside = state->right_outside = 0;
    for (int set = 0; set < kColourSets; ++set) state->colour_pixels[set] = 0;
    reset_best(state);
  }
  each(block, Block::kCopies * 2 * kLevelSlots, [=](int i) { scratch.level_sums[i] = 0; });
  block.sync();
}

// A class's map from the features: scratch.wide and what it is normalised by; *flat where there is nothing to normalise.
// False if a feature is not finite.
template <class Block>
WGAP_HD bool class_map(Block& block, const Problem& problem, const Scratch& scratch, int chosen, Scale* scale,
                       bool* flat) {
  const Shape& shape = problem.shape;
  State* const state = scratch.state;
  const float* const weight = problem.weight + static_cast<i64>(chosen) * shape.channels;
  if (!recombine(block, problem, weight, scratch)) return false;
  block.mark(kRecombine);
  upsample_columns(block, shape, scratch);
  find_extremes(block, shape, scratch);
  block.mark(kColumns);
  const float lowest = float_from_bits(ordered(block.load(&state->map_lowest)));
  const float base = problem.rule.map == kSigned ? lowest : 0.0f;
  const float span = float_from_bits(ordered(block.load(&state->map_highest))) - base;
  *flat = span < kFlattest;
  *scale = {base, span, static_cast<float>(kOne) / span, base == 0.0f && lowest >= 0.0f};
  return true;
}

// The class's map to one level and its mask's boxes.
template <class Block>
WGAP_HD void cut_class_map(Block& block, const Problem& problem, const Scratch& scratch, Scale scale, Record* records) {
  const Shape& shape = problem.shape;
  const int H = shape.map_height;
  State* const state = scratch.state;
  const bool leader = block.rank() == 0, adaptive = problem.rule.kind == kAdaptive;
  if (problem.heatmap) write_heatmap(block, problem, scratch, scale);
  block.mark(kHeatmap);
  for (int y = 0; y < H; y += Block::kTileRows) {
    const int last = smaller(y + Block::kTileRows, H);
    if (scale.plain) {
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
    records->level = level;
    records->threshold = adaptive ? static_cast<double>(level) / kLevels : problem.rule.eta;
  }
  block.sync();
  block.mark(kLevel);
  find_components(block, shape, scratch, state->mask_bound, [] {});
  write_boxes(block, problem, scratch, 0, records);
  block.mark(kComponent);
}

// Outputs of one image to the boxes of one class. Scratch is laid out and prepared for problem.shape; one block at a time
// may use it. All of the block's threads call this; the records are complete when all have returned; they are only
// written.
template <class Block>
WGAP_HD void localize_block(Block& block, const Problem& problem, const Scratch& scratch, Record* records) {
  const Shape& shape = problem.shape;
  const bool leader = block.rank() == 0;
  clear(block, scratch);
  if (leader) {
    records->struct_size = sizeof(Record);
    records->status = kDone;
    records->level = -1;
    records->degenerate = 0;
    records->boxes = 1;
    records->threshold = 0.0;
  }
  if (problem.edge_means) each(block, kLevels + 1, [=](int l) { problem.edge_means[l] = not_a_number(); });
  const int chosen = choose_class(block, problem, scratch, records);
  block.mark(kClass);
  Scale scale{};
  bool flat = true;
  if (chosen < 0) {
    if (leader) records->status = kBadLogits;
  } else if (problem.rule.map != kNoMap && !class_map(block, problem, scratch, chosen, &scale, &flat)) {
    if (leader) records->status = kBadFeatures;
  } else if (problem.rule.kind >= kForeground) {
    if (narrow_scores<Block>(scratch)) {
      localize_scores<int>(block, problem, scratch, scale, flat, records);
    } else {
      localize_scores<i64>(block, problem, scratch, scale, flat, records);
    }
  } else if (flat) {
    if (problem.heatmap)
      each_row(block, 0, shape.map_height, shape.map_width, [=](int y) {
        float* const to = problem.heatmap + static_cast<i64>(y) * shape.map_width;
        return [=](int x) { to[x] = 0.0f; };
      });
    if (leader) write_whole(shape, records);
  } else {
    cut_class_map(block, problem, scratch, scale, records);
  }
  if (!leader) return;
  for (int i = records->boxes; i < problem.max_boxes; ++i) {
    records[i] = records[0];
    records[i].boxes = 0;
    for (int corner = 0; corner < 4; ++corner) records[i].box[corner] = 0;
  }
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
