// Second step: every level's edge set in one pass over the map, and the level to threshold at (Sec. 4.3).
#pragma once

#include "wgap/kernel/scratch.h"

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

// Marks the edge pixels of `rows` rows: from row y of the map and row `held` of the window on. With m the smallest of a
// pixel's neighbours, a pixel of index n is an edge pixel exactly for the levels m..n-1.
template <class Block>
WGAP_HD void find_edges(Block& block, const Shape& s, const Scratch& scratch, int y, int held, int rows) {
  const int W = s.map_width, words = scratch.words;
  const Scratch to = scratch;
  each_word(block, rows, words, [=, &block](int row) {
    const i64 place = (static_cast<i64>(held) + row) * words;
    const u8* const index = to.index + static_cast<i64>(y + row) * to.index_stride;
    u64* const edges = to.edges + place;
    u8* const lowest = to.lowest + place * 64;
    return [=, &block](int word) {
      const int x = word * 64;
      const u64 bits = block.steps(index + x, to.index_stride, smaller(64, W - x), lowest + x);
      if (lane_of(block) == 0) edges[word] = bits;
    };
  });
  block.sync();
}

// Adds those pixels to the level sums, count and sum in one u64: at level m directly, and at the levels m+1..n-1, which
// a smooth map hardly has, as two entries of a difference array.
template <class Block>
WGAP_HD void add_edges(Block& block, const Scratch& scratch, int held, int rows) {
  const i64 first = static_cast<i64>(held) * scratch.words, last = first + static_cast<i64>(rows) * scratch.words;
  const i64 stride = static_cast<i64>(groups_of(block)) * Block::kSpan;
  for (i64 word = first + static_cast<i64>(group_of(block)) * Block::kSpan; word < last; word += stride) {
    const int count = static_cast<int>(last - word < Block::kSpan ? last - word : Block::kSpan);
    const int* const WGAP_RESTRICT value = scratch.fixed_point + word * 64;
    const u8* const WGAP_RESTRICT lowest = scratch.lowest + word * 64;
    u64* const WGAP_RESTRICT sums = scratch.level_sums;
    block.for_bits(scratch.edges + word, count, [=, &block](int at, int ordinal) {
      const int v = value[at], m = lowest[at];
      const u64 pixel = (1ULL << kCountShift) | static_cast<u32>(v);
      u64* const at_level = sums + (ordinal + group_of(block)) % Block::kCopies;
      block.add(at_level + m * Block::kCopies, pixel);
      if (v <= (m + 1) << kLevelShift) return;
      u64* const onwards = at_level + kLevelSlots * Block::kCopies;
      block.add(onwards + (m + 1) * Block::kCopies, pixel);
      block.add(onwards + ((v + ((1 << kLevelShift) - 1)) >> kLevelShift) * Block::kCopies, ~pixel + 1);
    });
  }
}

// The two-stage rule (Sec. 4.3): the smallest level whose |V_l - V_(l-1)| exceeds the mean of all twenty goes to
// state->mask_bound; V_l to edge_means, where that is not null.
template <class Block>
WGAP_HD void choose_level(Block& block, const Scratch& scratch, double* edge_means) {
  u64* const sums = scratch.level_sums;
  double* const edge_mean = scratch.state->edge_mean;
  each(block, 2 * kLevelSlots, [=](int i) {
    u64 total = 0;
    for (int copy = 0; copy < Block::kCopies; ++copy) total += sums[i * Block::kCopies + copy];
    sums[i * Block::kCopies] = total;
  });
  block.sync();
  each(block, kLevels + 1, [=](int l) {
    u64 total = sums[l * Block::kCopies];
    for (int before = 0; before <= l; ++before) total += sums[(kLevelSlots + before) * Block::kCopies];
    const u64 count = total >> kCountShift, sum = total & ((1ULL << kCountShift) - 1);
    edge_mean[l] = count != 0 ? static_cast<double>(sum) / static_cast<double>(count) / kOne : not_a_number();
    if (edge_means) edge_means[l] = edge_mean[l];
  });
  block.sync();
  double* const difference = scratch.state->difference;
  each(block, kLevels, [=](int l) {
    const double d = edge_mean[l + 1] - edge_mean[l];
    difference[l + 1] = d < 0.0 ? -d : (d >= 0.0 ? d : 0.0);  // 0 where either is NaN: its edge set is empty
  });
  block.sync();
  if (block.rank() != 0) return;
  double mean = 0.0;
  for (int l = 1; l <= kLevels; ++l) mean += difference[l];
  mean /= kLevels;
  int level = kFallbackLevel;
  for (int l = kLevels; l >= 1; --l)
    if (difference[l] > mean) level = l;
  scratch.state->mask_bound = level;
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
