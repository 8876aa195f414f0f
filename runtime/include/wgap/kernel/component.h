// Last step: the largest 8-connected component of a mask, from runs of pixels.
#pragma once

#include "wgap/kernel/scratch.h"

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

// Runs of mask pixels of one row, left to right.
template <class Block>
WGAP_HD void find_runs(Block& block, const Shape& s, const Scratch& scratch, int y, int bound) {
  const int W = s.map_width;
  const i64 slot = static_cast<i64>(y) * scratch.run_stride;
  const u8* const index = scratch.index + static_cast<i64>(y) * scratch.index_stride;
  Run* const WGAP_RESTRICT runs = scratch.runs + slot;
  int found = 0;
  u64 carried = 0;  // was the last pixel of the word before in the mask
  // Up to and including the first place beyond the row, where a run that reaches the border ends.
  for (int x = 0; x <= W; x += 64) {
    const u64 mask = x < W ? block.greater(index + x, bound, smaller(64, W - x)) : 0;
    u64 turns = mask ^ (mask << 1 | carried);
    carried = mask >> 63;
    for (; turns != 0; turns &= turns - 1, ++found) {
      if (lane_of(block) != 0) continue;
      Run& run = runs[found / 2];
      const int at = x + Block::first_bit(turns);
      if (found % 2) {
        run.end = at;
      } else {
        run = {at, at, static_cast<u32>(slot + found / 2), 0};
      }
    }
  }
  if (lane_of(block) == 0) scratch.run_count[y] = found / 2;
}

template <class Block>
WGAP_HD u32 root_of(Block& block, Run* runs, u32 run) {
  u32 next = block.load(&runs[run].parent);
  while (next != run) {
    run = next;
    next = block.load(&runs[run].parent);
  }
  return run;
}

// Joins two runs' components; the smaller index stays root, whatever the order in which threads arrive.
template <class Block>
WGAP_HD void join(Block& block, Run* runs, u32 a, u32 b) {
  for (;;) {
    a = root_of(block, runs, a);
    b = root_of(block, runs, b);
    if (a == b) return;
    if (a < b) {
      const u32 other = a;
      a = b;
      b = other;
    }
    const u32 old = block.min(&runs[a].parent, b);
    if (old == a) return;
    a = old;  // another thread hung a below old meanwhile: old and b still have
              // to meet
  }
}

// Joins the runs of row y with the runs of row y - 1 they touch, diagonals included.
template <class Block>
WGAP_HD void join_rows(Block& block, const Scratch& scratch, int y) {
  const i64 here = static_cast<i64>(y) * scratch.run_stride, above = here - scratch.run_stride;
  const int n = scratch.run_count[y], m = scratch.run_count[y - 1];
  Run* const runs = scratch.runs;
  for (int i = 0, j = 0; i < n && j < m;) {
    const Run& run = runs[here + i];
    const Run& run_above = runs[above + j];
    if (run.start <= run_above.end && run_above.start <= run.end)
      join(block, runs, static_cast<u32>(here + i), static_cast<u32>(above + j));
    if (run.end < run_above.end) {
      ++i;
    } else {
      ++j;
    }
  }
}

// Box of the largest 8-connected component of index > bound. A component's root is its first run in raster order, which
// settles ties in area.
template <class Block>
WGAP_HD void largest_component(Block& block, const Shape& s, const Scratch& scratch, int bound) {
  State* const state = scratch.state;
  const int H = s.map_height;
  for (int y = group_of(block); y < H; y += groups_of(block)) find_runs(block, s, scratch, y, bound);
  block.sync();
  for (int y = block.rank(); y < H; y += block.size())
    if (y > 0) join_rows(block, scratch, y);
  block.sync();
  Run* const runs = scratch.runs;
  for (int y = block.rank(); y < H; y += block.size()) {
    const u32 slot = static_cast<u32>(y) * static_cast<u32>(scratch.run_stride);
    for (u32 run = slot, end = slot + static_cast<u32>(scratch.run_count[y]); run < end; ++run) {
      const u32 root = root_of(block, runs, run);
      block.store(&runs[run].parent, root);
      block.add(&runs[root].area, static_cast<u32>(runs[run].end - runs[run].start));
    }
  }
  block.sync();
  u64 best = 0;
  for (int y = block.rank(); y < H; y += block.size()) {
    const u32 slot = static_cast<u32>(y) * static_cast<u32>(scratch.run_stride);
    for (u32 run = slot, end = slot + static_cast<u32>(scratch.run_count[y]); run < end; ++run) {
      const u64 key = (static_cast<u64>(runs[run].area) << 32) | static_cast<u32>(~run);
      best = key > best ? key : best;
    }
  }
  max_into(block, &state->best_component, best);
  block.sync();
  const u32 root = ~static_cast<u32>(block.load(&state->best_component));
  int x0 = 0x7fffffff, y0 = 0x7fffffff, x1 = 0, y1 = 0;
  for (int y = block.rank(); y < H; y += block.size()) {
    const u32 slot = static_cast<u32>(y) * static_cast<u32>(scratch.run_stride);
    for (u32 run = slot, end = slot + static_cast<u32>(scratch.run_count[y]); run < end; ++run) {
      if (runs[run].parent != root) continue;
      x0 = smaller(x0, runs[run].start);
      y0 = smaller(y0, y);
      x1 = larger(x1, runs[run].end);
      y1 = larger(y1, y + 1);
    }
  }
  min_into(block, &state->box[0], x0);
  min_into(block, &state->box[1], y0);
  max_into(block, &state->box[2], x1);
  max_into(block, &state->box[3], y1);
  block.sync();
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
