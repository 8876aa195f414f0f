// First steps: the class, its activation map at feature resolution, and the upsampled map in fixed point (Sec. 4.2).
#pragma once

#include "wgap/kernel/scratch.h"

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

// exp(x) for x <= 0 with the same bits everywhere (Cephes' polynomial, relative error below 2e-7).
WGAP_HD float exp_of_negative(float x) {
  x = x > -87.0f ? x : -87.0f;
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float n = (x * 1.44269504f + rounder) - rounder;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * float_from_bits((static_cast<int>(n) + 127) << 23);
}

// The class to localize; its probability goes to the record. -1 if a logit is not finite.
template <class Block>
WGAP_HD int choose_class(Block& block, const Problem& problem, const Scratch& scratch, Record* record) {
  State* const state = scratch.state;
  const float* const WGAP_RESTRICT logits = problem.logits;
  const int K = problem.shape.classes;
  const int passes = problem.class_id >= 0 ? 1 : problem.class_rank + 1;
  const auto logit_of = [](u64 order) {
    return float_from_bits(ordered(static_cast<int>(static_cast<u32>(order >> 32) ^ 0x80000000u)));
  };
  float peak = 0.0f;
  u64 bound = ~0ULL;
  for (int pass = 0; pass < passes; ++pass) {
    int bits = 0;
    u64 best = 0;
    for (int k = block.rank(); k < K; k += block.size()) {
      bits = larger(bits, float_bits(logits[k]) & 0x7fffffff);
      // The order of the classes as an integer: the logit above, the complement of the index below. Adding 0 makes -0
      // equal 0.
      const u32 key = static_cast<u32>(ordered(float_bits(logits[k] + 0.0f))) ^ 0x80000000u;
      const u64 order = (static_cast<u64>(key) << 32) | static_cast<u32>(~k);
      best = order < bound && order > best ? order : best;
    }
    max_into(block, &state->logit_bits, bits);
    max_into(block, &state->best_class[pass % 3], best);
    // Three places in turn: one being filled, one that a slower thread may still read, one to clear. One barrier does.
    if (block.rank() == 0) block.store(&state->best_class[(pass + 1) % 3], 0ULL);
    block.sync();
    if (block.load(&state->logit_bits) >= kInfinityBits) return -1;
    bound = block.load(&state->best_class[pass % 3]);
    if (pass == 0) peak = logit_of(bound);
  }
  const int chosen = problem.class_id >= 0 ? problem.class_id : static_cast<int>(~static_cast<u32>(bound));

  float* const WGAP_RESTRICT exps = scratch.exps;
  each(block, K, [=](int k) { exps[k] = exp_of_negative(logits[k] - peak); });
  block.sync();
  each(block, kExpLanes, [=](int lane) {
    float sum = 0.0f;
    for (int k = lane; k < K; k += kExpLanes) sum += exps[k];
    state->lane_sum[lane] = sum;
  });
  block.sync();
  if (block.rank() == 0) {
    float sum = 0.0f;
    for (int lane = 0; lane < kExpLanes; ++lane) sum += state->lane_sum[lane];
    record->class_id = chosen;
    record->logit = logits[chosen];
    record->score = exps[chosen] / sum;
  }
  return chosen;
}

WGAP_HD float map_weight(float w, int map) {
  if (map == kSigned) return w;
  if (map == kPositive) return w > 0.0f ? w : 0.0f;
  return float_from_bits(float_bits(w) & 0x7fffffff);
}

// Class activation map at feature resolution (Eq. 3): one rounded product and sum per channel, in channel order.
// False if a feature is not finite or the sum too large: both survive in the sums, so features need no pass of their
// own.
template <class Block>
WGAP_HD bool recombine(Block& block, const Problem& problem, const float* weight, const Scratch& scratch) {
  const int C = problem.shape.channels;
  const int places = problem.shape.height * problem.shape.width;
  const int map = problem.rule.map;
  float* const WGAP_RESTRICT low = scratch.low;
  constexpr int kTogether = Block::kChannels;  // per visit of the sums
  int c = 0;
  each(block, places, [=](int p) { low[p] = 0.0f; });
  for (; c + kTogether <= C; c += kTogether) {
    float w[kTogether];
    for (int i = 0; i < kTogether; ++i) w[i] = map_weight(weight[c + i], map);
    const float* const WGAP_RESTRICT f = problem.features + static_cast<i64>(c) * places;
    const i64 step = places;
    each(block, places, [=](int p) {
      float sum = low[p];
      WGAP_UNROLL
      for (int i = 0; i < kTogether; ++i) sum += w[i] * f[p + i * step];
      low[p] = sum;
    });
  }
  for (; c < C; ++c) {
    const float w = map_weight(weight[c], map);
    const float* const WGAP_RESTRICT f = problem.features + static_cast<i64>(c) * places;
    each(block, places, [=](int p) { low[p] += w * f[p]; });
  }
  int bits = 0;
  for (int p = block.rank(); p < places; p += block.size()) bits = larger(bits, float_bits(low[p]) & 0x7fffffff);
  max_into(block, &scratch.state->low_bits, bits);
  block.sync();
  return block.load(&scratch.state->low_bits) <= kLargestBits;
}

WGAP_HD float blend_between(float a, float b, float t) { return a + t * (b - a); }

// Stretches the rows to the map's width; the columns follow row by row in `quantise_rows`.
template <class Block>
WGAP_HD void upsample_columns(Block& block, const Shape& s, const Scratch& scratch) {
  const int w = s.width, W = s.map_width;
  const Taps taps = scratch.columns;
  const float* const low = scratch.low;
  float* const wide = scratch.wide;
  each_row(block, 0, s.height, W, [=](int row) {
    const float* const WGAP_RESTRICT from = low + static_cast<i64>(row) * w;
    float* const WGAP_RESTRICT to = wide + static_cast<i64>(row) * W;
    const int* const WGAP_RESTRICT lower = taps.lower;
    const int* const WGAP_RESTRICT upper = taps.upper;
    const float* const WGAP_RESTRICT blend = taps.blend;
    return [=](int x) { to[x] = blend_between(from[lower[x]], from[upper[x]], blend[x]); };
  });
  block.sync();
}

// Exact extremes of the upsampled map without upsampling it: a + t * (b - a) is monotone in t, rounding included, so
// that in each column only the first and last output row of every source interval can hold them.
template <class Block>
WGAP_HD void find_extremes(Block& block, const Shape& s, const Scratch& scratch) {
  const int H = s.map_height, W = s.map_width;
  int highest = -0x7fffffff - 1, lowest = 0x7fffffff;
  const Taps taps = scratch.rows;
  for (int y = group_of(block); y < H; y += groups_of(block)) {
    if (y > 0 && y + 1 < H && taps.lower[y - 1] == taps.lower[y] && taps.lower[y + 1] == taps.lower[y]) continue;
    const float* const WGAP_RESTRICT above = scratch.wide + static_cast<i64>(taps.lower[y]) * W;
    const float* const WGAP_RESTRICT below = scratch.wide + static_cast<i64>(taps.upper[y]) * W;
    const float t = taps.blend[y];
    for (int x = lane_of(block); x < W; x += Block::kLanes) {
      const int key = ordered(float_bits(blend_between(above[x], below[x], t)));
      highest = larger(highest, key);
      lowest = smaller(lowest, key);
    }
  }
  max_into(block, &scratch.state->map_highest, highest);
  min_into(block, &scratch.state->map_lowest, lowest);
  block.sync();
}

struct Scale {
  float base, span, scale;
  bool plain;  // the base is zero and no value is below it, as for every recombined map of features after a ReLU
};

// The map's fixed-point value at (y, x): value(x) of row y.
template <class Block>
struct FixedPointRow {
  const float* WGAP_RESTRICT above;
  const float* WGAP_RESTRICT below;
  float blend;
  Scale scale;
  WGAP_HD int operator()(int x) const {
    const float scaled = (blend_between(above[x], below[x], blend) - scale.base) * scale.scale;
    return smaller(Block::nearest(scaled > 0.0f ? scaled : 0.0f), kOne);
  }
};

template <class Block>
WGAP_HD FixedPointRow<Block> fixed_point_row(const Scratch& scratch, int map_width, Scale scale, int y) {
  const Taps& rows = scratch.rows;
  return {scratch.wide + static_cast<i64>(rows.lower[y]) * map_width,
          scratch.wide + static_cast<i64>(rows.upper[y]) * map_width, rows.blend[y], scale};
}

// How an index follows from a fixed-point value: (value + add) >> shift. Adaptive: ceil(value / 2^19), how many levels'
// masks hold the pixel. Fixed threshold: 1 if the value exceeds it.
struct Indexing {
  int add, shift;
};

WGAP_HD Indexing indexing_of(const Rule& rule) {
  if (rule.kind == kAdaptive) return {(1 << kLevelShift) - 1, kLevelShift};
  return {(1 << 30) - 1 - rule.bound, 30};
}

// Rows [first, last) of the map in fixed point, into the window from its row 1 on, and each pixel's index.
// kPlain: Scale's plain.
template <bool kPlain, class Block>
WGAP_HD void quantise_rows(Block& block, const Problem& problem, const Scratch& scratch, Scale scale, int first,
                           int last) {
  const int W = problem.shape.map_width;
  const Indexing to_index = indexing_of(problem.rule);
  const Scratch s = scratch;
  each_row(block, first, last, W, [=](int y) {
    const float* const WGAP_RESTRICT above = s.wide + static_cast<i64>(s.rows.lower[y]) * W;
    const float* const WGAP_RESTRICT below = s.wide + static_cast<i64>(s.rows.upper[y]) * W;
    const float t = s.rows.blend[y];
    int* const WGAP_RESTRICT fixed_point = s.fixed_point + static_cast<i64>(y - first + 1) * s.words * 64;
    u8* const WGAP_RESTRICT index = s.index + static_cast<i64>(y) * s.index_stride;
    return [=](int x) {
      const float value = blend_between(above[x], below[x], t);
      const float scaled = (kPlain ? value : value - scale.base) * scale.scale;
      const int rounded = smaller(Block::nearest(kPlain || scaled > 0.0f ? scaled : 0.0f), kOne);
      fixed_point[x] = rounded;
      index[x] = static_cast<u8>((rounded + to_index.add) >> to_index.shift);
    };
  });
}

// The optional float map, u = (M - base) / span.
template <class Block>
WGAP_HD void write_heatmap(Block& block, const Problem& problem, const Scratch& scratch, Scale scale) {
  const int W = problem.shape.map_width;
  const Scratch s = scratch;
  float* const heatmap = problem.heatmap;
  each_row(block, 0, problem.shape.map_height, W, [=](int y) {
    const float* const WGAP_RESTRICT above = s.wide + static_cast<i64>(s.rows.lower[y]) * W;
    const float* const WGAP_RESTRICT below = s.wide + static_cast<i64>(s.rows.upper[y]) * W;
    const float t = s.rows.blend[y];
    float* const WGAP_RESTRICT to = heatmap + static_cast<i64>(y) * W;
    return [=](int x) {
      const float u = (blend_between(above[x], below[x], t) - scale.base) / scale.span;
      to[x] = u > 0.0f ? u : 0.0f;
    };
  });
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
