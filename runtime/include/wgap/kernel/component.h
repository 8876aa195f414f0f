// Last step: the heaviest 8-connected components of a mask, from runs of pixels, and their boxes.
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
        run.weight = static_cast<u64>(at - run.start);
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

// An empty mask: the whole map.
WGAP_HD void write_whole(const Shape& shape, Record* record) {
  record->degenerate = 1;
  record->boxes = 1;
  record->box[0] = record->box[1] = 0;
  record->box[2] = shape.map_width;
  record->box[3] = shape.map_height;
}

// f(run, row) for every run, a thread for each row.
template <class Block, class F>
WGAP_HD void each_run(Block& block, const Shape& s, const Scratch& scratch, F f) {
  for (int y = block.rank(); y < s.map_height; y += block.size()) {
    const u32 slot = static_cast<u32>(y) * static_cast<u32>(scratch.run_stride);
    for (u32 run = slot, end = slot + static_cast<u32>(scratch.run_count[y]); run < end; ++run) f(run, y);
  }
}

// to(run, sum) for every run, of value_of(row)(column) over its pixels; a group for each row.
template <class Block, class F, class To>
WGAP_HD void sum_runs(Block& block, const Shape& s, const Scratch& scratch, F value_of, To to) {
  for (int y = group_of(block); y < s.map_height; y += groups_of(block)) {
    const auto value = value_of(y);
    const u32 slot = static_cast<u32>(y) * static_cast<u32>(scratch.run_stride);
    for (u32 run = slot, end = slot + static_cast<u32>(scratch.run_count[y]); run < end; ++run) {
      i64 sum = 0;
      for (int x = scratch.runs[run].start + lane_of(block), last = scratch.runs[run].end; x < last; x += Block::kLanes)
        sum += value(x);
      const u64 total = block.total(static_cast<u64>(sum));
      if (lane_of(block) == 0) to(run, total);
    }
  }
}

// The components of index > bound: every run's parent is its component's first run in raster order, whose weight is the
// component's. weigh(): between two barriers, may give runs another weight than their pixels.
template <class Block, class Weigh>
WGAP_HD void find_components(Block& block, const Shape& s, const Scratch& scratch, int bound, Weigh weigh) {
  const int H = s.map_height;
  for (int y = group_of(block); y < H; y += groups_of(block)) find_runs(block, s, scratch, y, bound);
  block.sync();
  for (int y = block.rank(); y < H; y += block.size())
    if (y > 0) join_rows(block, scratch, y);
  weigh();
  block.sync();
  Run* const runs = scratch.runs;
  each_run(block, s, scratch, [=, &block](u32 run, int) {
    const u32 root = root_of(block, runs, run);
    block.store(&runs[run].parent, root);
    if (root != run) block.add(&runs[root].weight, runs[run].weight);
  });
  block.sync();
}

// The boxes of the heaviest components, each of at least a tenth of the heaviest's weight, into the records, of which the
// first is complete but for its box. least: a smaller weight does not count; 0 for that tenth.
template <class Block>
WGAP_HD void write_boxes(Block& block, const Problem& problem, const Scratch& scratch, u64 least, Record* records) {
  State* const state = scratch.state;
  Run* const runs = scratch.runs;
  const Shape& s = problem.shape;
  const bool leader = block.rank() == 0;
  u64 last_weight = 0;
  u32 last = 0;
  int boxes = 0;
  for (; boxes < problem.max_boxes; ++boxes) {
    u64 weight = 0;
    u32 best = ~0u;
    each_run(block, s, scratch, [&](u32 run, int) {
      if (runs[run].parent != run) return;
      const u64 mine = runs[run].weight;
      if (boxes > 0 && (mine > last_weight || (mine == last_weight && run <= last))) return;
      if (best != ~0u && mine <= weight) return;
      weight = mine;
      best = run;
    });
    max_into(block, &state->best_weight, weight);
    block.sync();
    last_weight = block.load(&state->best_weight);
    min_into(block, &state->best_run, weight == last_weight ? best : ~0u);
    block.sync();
    last = block.load(&state->best_run);
    if (last == ~0u || last_weight < least) break;
    if (boxes == 0 && least == 0) least = (last_weight + kLightest - 1) / kLightest;
    int x0 = 0x7fffffff, y0 = 0x7fffffff, x1 = 0, y1 = 0;
    each_run(block, s, scratch, [&](u32 run, int y) {
      if (runs[run].parent != last) return;
      x0 = smaller(x0, runs[run].start);
      y0 = smaller(y0, y);
      x1 = larger(x1, runs[run].end);
      y1 = larger(y1, y + 1);
    });
    min_into(block, &state->box[0], x0);
    min_into(block, &state->box[1], y0);
    max_into(block, &state->box[2], x1);
    max_into(block, &state->box[3], y1);
    block.sync();
    if (leader) {
      if (boxes > 0) records[boxes] = records[0];
      for (int i = 0; i < 4; ++i) records[boxes].box[i] = state->box[i];
      reset_best(state);
    }
    if (boxes + 1 < problem.max_boxes) block.sync();
  }
  if (leader)
    for (int i = 0; i < boxes; ++i) records[i].boxes = boxes - i;
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
