// Second step: every level's edge set in one pass over the map, and the level to threshold at (Sec. 4.3).
#pragma once

#include "wgap/scratch.h"

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

// Marks the edge pixels of `rows` rows: from row y of the map and row `held` of the window on. With m the smallest of a
// pixel's neighbours, a pixel of index n is an edge pixel exactly for the levels m..n-1.
template <class Block>
WGAP_HD void find_edges(Block& block, const Shape& s, const Scratch& scratch, int y, int held, int rows) {
  const int W = s.map_width, words = scratch.words;
  const Scratch to = scratch;
  each_row(block, 0, rows, words, [=](int row) {
    const i64 place = (static_cast<i64>(held) + row) * words;
    const u8* const index = to.index + static_cast<i64>(y + row) * to.index_stride;
    u64* const edges = to.edges + place;
    u8* const lowest = to.lowest + place * 64;
    return [=](int word) {
      const int x = word * 64;
      edges[word] = Block::steps(index + x, to.index_stride, smaller(64, W - x), lowest + x);
    };
  });
  block.sync();
}

// Adds those pixels to the level sums, count and sum in one u64: at level m directly, and at the levels m+1..n-1, which
// a smooth map hardly has, as two entries of a difference array.
template <class Block>
WGAP_HD void add_edges(Block& block, const Scratch& scratch, int held, int rows) {
  const i64 first = static_cast<i64>(held) * scratch.words, last = first + static_cast<i64>(rows) * scratch.words;
  const i64 stride = static_cast<i64>(block.size()) * Block::kSpan;
  for (i64 word = first + static_cast<i64>(block.rank()) * Block::kSpan; word < last; word += stride) {
    const int count = static_cast<int>(last - word < Block::kSpan ? last - word : Block::kSpan);
    const int* const WGAP_RESTRICT value = scratch.fixed_point + word * 64;
    const u8* const WGAP_RESTRICT lowest = scratch.lowest + word * 64;
    u64* const WGAP_RESTRICT sums = scratch.level_sums;
    Block::for_bits(scratch.edges + word, count, [=, &block](int at, int ordinal) {
      const int v = value[at], m = lowest[at];
      const u64 pixel = (1ULL << kCountShift) | static_cast<u32>(v);
      u64* const at_level = sums + (ordinal + block.rank()) % Block::kCopies * (2 * kLevelSlots);
      block.add(at_level + m, pixel);
      if (v <= (m + 1) << kLevelShift) return;
      u64* const onwards = at_level + kLevelSlots;
      block.add(onwards + m + 1, pixel);
      block.add(onwards + ((v + ((1 << kLevelShift) - 1)) >> kLevelShift), ~pixel + 1);
    });
  }
}

// The two-stage rule (Sec. 4.3): the smallest level whose |V_l - V_(l-1)| exceeds the mean of all twenty.
template <class Block>
WGAP_HD int choose_level(const u64* level_sums, double* edge_mean) {
  u64 onwards = 0;
  bool known[kLevels + 1];
  for (int l = 0; l <= kLevels; ++l) {
    u64 total = 0;
    for (int copy = 0; copy < Block::kCopies; ++copy) {
      total += level_sums[copy * 2 * kLevelSlots + l];
      onwards += level_sums[(copy * 2 + 1) * kLevelSlots + l];
    }
    total += onwards;
    const u64 count = total >> kCountShift, sum = total & ((1ULL << kCountShift) - 1);
    known[l] = count != 0;
    edge_mean[l] = known[l] ? static_cast<double>(sum) / static_cast<double>(count) / kOne : not_a_number();
  }
  double difference[kLevels + 1];
  double mean = 0.0;
  for (int l = 1; l <= kLevels; ++l) {
    const double d = edge_mean[l] - edge_mean[l - 1];
    difference[l] = known[l] && known[l - 1] ? (d < 0.0 ? -d : d) : 0.0;
    mean += difference[l];
  }
  mean /= kLevels;
  for (int l = 1; l <= kLevels; ++l)
    if (difference[l] > mean) return l;
  return kFallbackLevel;
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
