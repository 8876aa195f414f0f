// The foreground rules: a score map, above 0 on the object, to a mask, in whole numbers from the scores on; and the step that
// asks the picture's own colours (reference: box_from_scores).
#pragma once

#include "wgap/kernel/activation_map.h"
#include "wgap/kernel/component.h"

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

// The map's score at (y, x) in its unit, 2^-16 / (rows' unit * columns' unit): value(x) of row y.
template <class Int>
struct ScoreRow {
  const Int* WGAP_RESTRICT above;
  const Int* WGAP_RESTRICT below;
  Int from_above, from_below;
  WGAP_HD Int operator()(int x) const { return above[x] * from_above + below[x] * from_below; }
};

template <class Int>
WGAP_HD ScoreRow<Int> score_row(const Scratch& scratch, int map_width, int y) {
  const ExactTaps& rows = scratch.score_rows;
  const Int* const wide = static_cast<const Int*>(scratch.columns_of_scores);
  const Int below = static_cast<Int>(rows.blend[y]);
  return {wide + static_cast<i64>(rows.lower[y]) * map_width, wide + static_cast<i64>(rows.upper[y]) * map_width,
          static_cast<Int>(rows.unit) - below, below};
}

// Scores in fixed point, and upsampled along the rows of the map. False if one is not finite.
template <class Int, class Block>
WGAP_HD bool read_scores(Block& block, const Problem& problem, const Scratch& scratch) {
  const Shape& s = problem.shape;
  constexpr float kMost = static_cast<float>(kMostScore);
  int* const WGAP_RESTRICT cells = scratch.scores;
  const float* const WGAP_RESTRICT given = problem.scores;
  int bits = 0;
  for (int i = block.rank(), n = s.score_height * s.score_width; i < n; i += block.size()) {
    bits = larger(bits, float_bits(given[i]) & 0x7fffffff);
    float scaled = given[i] * static_cast<float>(1 << kScoreShift);
    scaled = scaled > -kMost ? scaled : -kMost;  // and NaN
    cells[i] = Block::nearest(scaled < kMost ? scaled : kMost);
  }
  max_into(block, &scratch.state->score_bits, bits);
  block.sync();
  if (block.load(&scratch.state->score_bits) >= kInfinityBits) return false;
  const ExactTaps taps = scratch.score_columns;
  Int* const wide = static_cast<Int*>(scratch.columns_of_scores);
  each_row(block, 0, s.score_height, s.map_width, [=](int y) {
    const int* const WGAP_RESTRICT from = cells + static_cast<i64>(y) * s.score_width;
    Int* const WGAP_RESTRICT to = wide + static_cast<i64>(y) * s.map_width;
    return [=](int x) {
      const Int blend = static_cast<Int>(taps.blend[x]), rest = static_cast<Int>(taps.unit) - blend;
      to[x] = static_cast<Int>(from[taps.lower[x]]) * rest + static_cast<Int>(from[taps.upper[x]]) * blend;
    };
  });
  block.sync();
  return true;
}

// What of the map is above 0, over its maximum, as floats.
template <class Int, class Block>
WGAP_HD void write_scores(Block& block, const Problem& problem, const Scratch& scratch) {
  const int H = problem.shape.map_height, W = problem.shape.map_width;
  u64 highest = 0;
  for (int y = group_of(block); y < H; y += groups_of(block)) {
    const ScoreRow<Int> row = score_row<Int>(scratch, W, y);
    for (int x = lane_of(block); x < W; x += Block::kLanes) {
      const u64 above = row(x) > 0 ? static_cast<u64>(row(x)) : 0;
      highest = above > highest ? above : highest;
    }
  }
  max_into(block, &scratch.state->highest_score, highest);
  block.sync();
  highest = block.load(&scratch.state->highest_score);
  const float span = static_cast<float>(highest > 0 ? highest : 1);
  const Scratch s = scratch;
  float* const heatmap = problem.heatmap;
  each_row(block, 0, H, W, [=](int y) {
    const ScoreRow<Int> row = score_row<Int>(s, W, y);
    float* const WGAP_RESTRICT to = heatmap + static_cast<i64>(y) * W;
    return [=](int x) { to[x] = static_cast<float>(row(x) > 0 ? row(x) : 0) / span; };
  });
}

// How many pixels there are of each colour, quadrant by quadrant, outside and inside the mask in `index`.
template <class Block>
WGAP_HD void count_colours(Block& block, const Problem& problem, const Scratch& scratch) {
  constexpr int kCopies = Block::kColourCopies;
  const int H = problem.shape.map_height, W = problem.shape.map_width;
  u32* const counts = scratch.colour_counts;
  u16* const colours = scratch.colours;
  const u8* const picture = problem.picture;
  each(block, kQuadrants * kCopies * kColourTable, [=](int i) { counts[i] = 0; });
  const Scratch s = scratch;
  each_row(block, 0, H, W, [=](int y) {
    const u8* const WGAP_RESTRICT from = picture + static_cast<i64>(y) * W * 3;
    const u8* const WGAP_RESTRICT inside = s.index + static_cast<i64>(y) * s.index_stride;
    u16* const WGAP_RESTRICT to = colours + static_cast<i64>(y) * W;
    return [=](int x) {
      const int red = from[3 * x] >> 5, green = from[3 * x + 1] >> 5, blue = from[3 * x + 2] >> 5;
      to[x] = static_cast<u16>(inside[x] * kColours | red << 6 | green << 3 | blue);
    };
  });
  block.sync();
  for (int y = group_of(block); y < H; y += groups_of(block)) {
    const u16* const WGAP_RESTRICT colour = colours + static_cast<i64>(y) * W;
    for (int right = 0; right < 2; ++right) {
      u32* const WGAP_RESTRICT of_quadrant = counts + (2 * (2 * y >= H) + right) * kCopies * kColourTable;
      const int end = right ? W : (W + 1) / 2;
      int x = right ? (W + 1) / 2 : 0;
      for (; Block::kLanes == 1 && x + kCopies <= end; x += kCopies) {
        WGAP_UNROLL
        for (int copy = 0; copy < kCopies; ++copy) block.add(of_quadrant + copy * kColourTable + colour[x + copy], 1u);
      }
      for (x += lane_of(block); x < end; x += Block::kLanes)
        block.add(of_quadrant + x % kCopies * kColourTable + colour[x], 1u);
    }
  }
  block.sync();
  u32* const sums = scratch.colour_sums;
  each_row(block, 0, kQuadrants, 2 * kColours, [=](int quadrant) {
    const u32* const WGAP_RESTRICT of_quadrant = counts + quadrant * kCopies * kColourTable;
    u32* const WGAP_RESTRICT to = sums + quadrant * 2 * kColours;
    return [=](int i) {
      u32 sum = 0;
      WGAP_UNROLL
      for (int copy = 0; copy < kCopies; ++copy) sum += of_quadrant[copy * kColourTable + i];
      to[i] = sum;
    };
  });
  block.sync();
  for (int set = 0; set < kColourSets; ++set) {
    u64 sum = 0;
    for (int colour = block.rank(); colour < kColours; colour += block.size()) sum += sums[set * kColours + colour];
    add_into(block, &scratch.state->colour_pixels[set], sum);
  }
  block.sync();
}

// Moves the mask in `index` to where the colours speak for the object: by the logarithm of how much more frequent a colour
// is inside than outside, weighted by how well three quadrants' colours tell inside from outside in the fourth.
template <class Int, class Block>
WGAP_HD void apply_colours(Block& block, const Problem& problem, const Scratch& scratch) {
  const int H = problem.shape.map_height, W = problem.shape.map_width;
  State* const state = scratch.state;
  i64 outside[5], inside[5];  // pixels beyond quadrant j; at 4 of all
  outside[4] = inside[4] = 0;
  for (int j = 0; j < 4; ++j) {
    outside[4] += static_cast<i64>(block.load(&state->colour_pixels[2 * j]));
    inside[4] += static_cast<i64>(block.load(&state->colour_pixels[2 * j + 1]));
  }
  if (outside[4] == 0 || inside[4] == 0) return;
  for (int j = 0; j < 4; ++j) {
    outside[j] = outside[4] - static_cast<i64>(block.load(&state->colour_pixels[2 * j]));
    inside[j] = inside[4] - static_cast<i64>(block.load(&state->colour_pixels[2 * j + 1]));
  }
  const int* const logs = problem.logs;
  const auto ratio = [&](u32 a, u32 b, int j) {
    return logs[a + 1] - logs[inside[j] + kColours] - logs[b + 1] + logs[outside[j] + kColours];
  };
  const u32* const sums = scratch.colour_sums;
  Int* const evidence = reinterpret_cast<Int*>(scratch.evidence);
  u64 right_inside = 0, right_outside = 0;
  for (int colour = block.rank(); colour < kColours; colour += block.size()) {
    u32 a[4], b[4], every_a = 0, every_b = 0;
    for (int j = 0; j < 4; ++j) {
      b[j] = sums[2 * j * kColours + colour], a[j] = sums[(2 * j + 1) * kColours + colour];
      every_b += b[j], every_a += a[j];
    }
    if (every_a + every_b == 0) continue;
    evidence[colour] = ratio(every_a, every_b, 4);
    for (int j = 0; j < 4; ++j) {
      if (a[j] + b[j] == 0) continue;
      if (ratio(every_a - a[j], every_b - b[j], j) > 0) {
        right_inside += a[j];
      } else {
        right_outside += b[j];
      }
    }
  }
  add_into(block, &state->right_inside, right_inside);
  add_into(block, &state->right_outside, right_outside);
  block.sync();
  const i64 all = inside[4] * outside[4];
  const i64 skill = static_cast<i64>(block.load(&state->right_inside)) * outside[4] +
                    static_cast<i64>(block.load(&state->right_outside)) * inside[4] - all;
  const i64 weight = skill > 0 ? 256 * skill / all : 0;
  const i64 unit = static_cast<i64>(scratch.score_rows.unit) * scratch.score_columns.unit;
  for (int colour = block.rank(); colour < kColours; colour += block.size()) {
    u32 any = 0;
    for (int set = 0; set < kColourSets; ++set) any += sums[set * kColours + colour];
    if (any != 0)  // looked up by colours outside the mask and inside
      evidence[colour] = evidence[kColours + colour] = static_cast<Int>((weight * evidence[colour] >> 8) * unit);
  }
  block.sync();
  if (Block::kLanes == 1 && block.size() == 1) {
    // Looked up one by one, and not in the loop that compares: vectors that gather are slower on most processors.
    constexpr int kTogether = 16;
    Int* const of_row = reinterpret_cast<Int*>(scratch.fixed_point);
    for (int y = 0; y < H; ++y) {
      const ScoreRow<Int> row = score_row<Int>(scratch, W, y);
      const u16* const colour = scratch.colours + static_cast<i64>(y) * W;
      int x = 0;
      for (; x + kTogether <= W; x += kTogether) {
        WGAP_UNROLL
        for (int i = 0; i < kTogether; ++i) of_row[x + i] = evidence[colour[x + i]];
      }
      for (; x < W; ++x) of_row[x] = evidence[colour[x]];
      u8* const WGAP_RESTRICT index = scratch.index + static_cast<i64>(y) * scratch.index_stride;
      WGAP_INDEPENDENT
      for (int i = 0; i < W; ++i) index[i] = static_cast<u8>(row(i) + of_row[i] > 0);
    }
    return;
  }
  const Scratch s = scratch;
  each_row(block, 0, H, W, [=](int y) {
    const ScoreRow<Int> row = score_row<Int>(s, W, y);
    const u16* const WGAP_RESTRICT colour = s.colours + static_cast<i64>(y) * W;
    u8* const WGAP_RESTRICT index = s.index + static_cast<i64>(y) * s.index_stride;
    return [=](int x) { index[x] = static_cast<u8>(row(x) + evidence[colour[x]] > 0); };
  });
  block.sync();
}

// The components whose weight is heavy enough weigh what they have of the class's map, and 1; the others nothing.
template <class Block>
WGAP_HD void weigh_by_class(Block& block, const Problem& problem, const Scratch& scratch, Scale scale, bool flat) {
  const Shape& shape = problem.shape;
  State* const state = scratch.state;
  Run* const runs = scratch.runs;
  u64 heaviest = 0;
  each_run(block, shape, scratch, [&](u32 run, int) {
    if (runs[run].parent == run && runs[run].weight > heaviest) heaviest = runs[run].weight;
  });
  max_into(block, &state->best_weight, heaviest);
  block.sync();
  heaviest = block.load(&state->best_weight);
  each_run(block, shape, scratch, [=](u32 run, int) {
    if (runs[run].parent == run) runs[run].weight = kLightest * runs[run].weight >= heaviest ? 1 : 0;
  });
  block.sync();
  if (block.rank() == 0) reset_best(state);
  if (!flat) {
    const Scratch s = scratch;
    sum_runs(
        block, shape, scratch, [=](int y) { return fixed_point_row<Block>(s, shape.map_width, scale, y); },
        [=, &block](u32 run, u64 mass) {
          u64* const weight = &runs[runs[run].parent].weight;
          if (block.load(weight) != 0) block.add(weight, mass);
        });
  }
  block.sync();
}

// Scores, and for the colours the picture, to the boxes of one image. The record is complete but for boxes and flag.
template <class Int, class Block>
WGAP_HD void localize_scores(Block& block, const Problem& problem, const Scratch& scratch, Scale scale, bool flat,
                             Record* records) {
  const Shape& shape = problem.shape;
  const int H = shape.map_height, W = shape.map_width;
  const bool leader = block.rank() == 0;
  if (!read_scores<Int>(block, problem, scratch)) {
    if (leader) records->status = kBadScores;
    return;
  }
  const Scratch s = scratch;
  each_row(block, 0, H, W, [=](int y) {
    const ScoreRow<Int> row = score_row<Int>(s, W, y);
    u8* const WGAP_RESTRICT index = s.index + static_cast<i64>(y) * s.index_stride;
    return [=](int x) { index[x] = static_cast<u8>(row(x) > 0); };
  });
  if (problem.heatmap) write_scores<Int>(block, problem, scratch);
  block.mark(kScores);
  if (problem.rule.kind == kForegroundColour) {
    count_colours(block, problem, scratch);  // first of all of the pixels that this thread has just written
    apply_colours<Int>(block, problem, scratch);
    block.mark(kColour);
  } else {
    block.sync();
  }
  find_components(block, shape, scratch, 0, [&] {
    Run* const runs = scratch.runs;
    sum_runs(
        block, shape, scratch,
        [=](int y) {
          const ScoreRow<Int> row = score_row<Int>(s, W, y);
          return [=](int x) { return static_cast<i64>(row(x) > 0 ? row(x) : 0); };
        },
        [=](u32 run, u64 sum) { runs[run].weight = sum; });
  });
  const bool by_class = problem.rule.map != kNoMap;
  if (by_class) weigh_by_class(block, problem, scratch, scale, flat);
  if (leader) records->boxes = 0;
  write_boxes(block, problem, scratch, by_class ? 1 : 0, records);
  if (leader && records->boxes == 0) write_whole(shape, records);
  block.mark(kComponent);
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
