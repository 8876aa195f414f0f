// One feature map to one box: recombine, upsample, threshold levels, largest component. The only copy of this arithmetic.
//
// A *block* of threads works on one image and one class together. The same source serves every device; what differs is
// the Block, which offers
//
//   int rank(), int size()                  this thread's number and how many there are
//   void sync()                             barrier; orders all memory accesses of the block
//   add, min, max, load, store              atomic on the integers below, relaxed order; min returns the old value
//   static constexpr int kTileRows          rows upsampled between two barriers
//   static constexpr int kCopies            copies of the level sums, to spread contention or break dependency chains
//   static u64 greater(row, bound, n)       bit i = row[i] > bound, n <= 64
//   static u64 steps(row, stride, n, low)   bit i = low[i] < row[i], low[i] the smallest of the four neighbours
//   static for_bits(words, count, f)        f(bit, ordinal) for every set bit of count words, in ascending order
//   static int nearest(float)               round to nearest even if |value| < 2^24; else any number of the same sign
//   void mark(Stage)                        what ran since the last mark belongs to this stage; normally empty
//
// Contract: train/reference.py is followed bit for bit. Compile without contraction of a*b+c (-ffp-contract=off,
// --fmad=false), without fast-math. Decisions are taken on integers whose sums are exact in any order, so that the
// result depends neither on the number of threads nor on the device. Nothing here allocates, throws or prints, and no
// standard header is included: NVRTC has none.
#pragma once

#include "wgap/problem.h"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define WGAP_HD __host__ __device__ inline
#define WGAP_INDEPENDENT
#define WGAP_RESTRICT __restrict__
#else
#define WGAP_HD __attribute__((always_inline)) inline
#define WGAP_RESTRICT __restrict__
#if defined(__clang__)
#define WGAP_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define WGAP_INDEPENDENT _Pragma("GCC ivdep")
#endif
#endif

// Every translation unit that is compiled for another instruction set names its own namespace: the linker must never
// merge an inline function compiled for AVX-512 with the same one compiled for any x86-64.
#ifndef WGAP_TARGET_NAMESPACE
#define WGAP_TARGET_NAMESPACE portable
#endif

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

// Bilinear taps along one axis: output i blends source lower[i] and upper[i].
struct Taps {
  int* lower;
  int* upper;
  float* blend;
};

// What the threads of a block share besides arrays.
struct State {
  int logit_bits, low_bits;  // largest magnitudes, as float bits
  int map_highest, map_lowest;
  u64 best_class[3];
  u64 best_component;
  int box[4];
  int mask_bound;
  float lane_sum[kExpLanes];
};

// A row's unbroken stretch of mask pixels, [start, end).
struct Run {
  int start, end;
  u32 parent;  // an earlier run of the same component, or itself: the root
  u32 area;    // of the component, at its root
};

struct Scratch {
  State* state;
  u64* level_sums;       // [kCopies][2][kLevelSlots]
  Taps rows, columns;
  float* exps;           // [classes]
  float* low;            // [height, width]
  float* wide;           // [height, map_width]
  int words;             // 64-pixel words in a row of the map
  int* fixed_point;      // window on the map: the last row of the tile before and kTileRows more, words * 64 apart
  u8* lowest;            // smallest neighbouring index, same places
  u64* edges;            // one bit for each of those places: is its index above the smallest neighbour's
  u8* index;             // [map_height] rows `index_stride` apart, border of 255 all around
  int index_stride;
  int run_stride;        // room for runs in a row
  Run* runs;             // [map_height, run_stride]
  int* run_count;        // [map_height]
};

WGAP_HD int float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(x);
#else
  int bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

WGAP_HD float float_from_bits(int bits) {
#if defined(__CUDA_ARCH__)
  return __int_as_float(bits);
#else
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

// Integers in the order of the floats they come from (its own inverse): maxima become integer atomics.
WGAP_HD int ordered(int bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

WGAP_HD int larger(int a, int b) { return a > b ? a : b; }
WGAP_HD int smaller(int a, int b) { return a < b ? a : b; }

// f(i) for every i < n, shared out among the block. The calls must not depend on each other.
template <class Block, class F>
WGAP_HD void each(const Block& block, int n, F f) {
  const int step = block.size();
  WGAP_INDEPENDENT
  for (int i = block.rank(); i < n; i += step) f(i);
}

// f(row)(column) for every place of a grid. f(row) gathers what a row needs, so that the inner loop is plain.
template <class Block, class F>
WGAP_HD void each_row(const Block& block, int first, int last, int columns, F f) {
  if (block.size() == 1) {
    for (int row = first; row < last; ++row) {
      const auto at = f(row);
      WGAP_INDEPENDENT
      for (int column = 0; column < columns; ++column) at(column);
    }
  } else {
    const int places = (last - first) * columns;
    for (int i = block.rank(); i < places; i += block.size()) f(first + i / columns)(i % columns);
  }
}

// ---- scratch memory -------------------------------------------------------------------------------------------------

// Hands out 64-byte aligned pieces of one allocation; with no base it only counts.
struct Carver {
  u8* base;
  u64 used;
  template <class T>
  WGAP_HD T* take(u64 count) {
    T* piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

// Lays scratch memory out for a shape. base must be 64-byte aligned, or null to learn the size in bytes.
template <class Block>
WGAP_HD u64 lay_out(const Shape& s, void* base, Scratch* scratch) {
  Carver carver{static_cast<u8*>(base), 0};
  const u64 H = s.map_height, W = s.map_width, h = s.height;
  scratch->index_stride = static_cast<int>(W < 64 ? W + 1 : (W + 64) / 64 * 64);
  // An odd number of cache lines, so that the rows' first runs do not crowd into a few cache sets.
  scratch->run_stride = static_cast<int>(W <= 8 ? (W + 1) / 2 : ((W + 1) / 2 + 3) / 4 * 4 | 4);
  const u64 index_bytes = (H + 2) * scratch->index_stride + 192;
  const u64 runs = H * scratch->run_stride;
  scratch->state = carver.take<State>(1);
  scratch->level_sums = carver.take<u64>(Block::kCopies * 2 * kLevelSlots);
  scratch->rows = {carver.take<int>(H), carver.take<int>(H), carver.take<float>(H)};
  scratch->columns = {carver.take<int>(W), carver.take<int>(W), carver.take<float>(W)};
  scratch->exps = carver.take<float>(s.classes);
  scratch->low = carver.take<float>(h * s.width);
  scratch->wide = carver.take<float>(h * W);
  scratch->words = static_cast<int>((W + 63) / 64);
  const u64 window = static_cast<u64>(smaller(Block::kTileRows, s.map_height) + 1) * scratch->words;
  scratch->fixed_point = carver.take<int>(window * 64);
  scratch->lowest = carver.take<u8>(window * 64);
  scratch->edges = carver.take<u64>(window);
  u8* index = carver.take<u8>(index_bytes);
  scratch->index = index ? index + 64 + scratch->index_stride : nullptr;
  scratch->runs = carver.take<Run>(runs);
  scratch->run_count = carver.take<int>(H);
  return carver.used;
}

// Half-pixel centres, edges clamped; whole numbers up to the last division (reference: _taps).
template <class Block>
WGAP_HD void fill_taps(Block& block, int in, int out, const Taps& taps) {
  each(block, out, [=](int i) {
    i64 centre = (2 * static_cast<i64>(i) + 1) * in - out;  // source coordinate times 2 * out
    if (centre < 0) centre = 0;
    const i64 lower = centre / (2 * static_cast<i64>(out));
    const int clamped = static_cast<int>(lower < in - 1 ? lower : in - 1);
    taps.lower[i] = clamped;
    taps.upper[i] = smaller(clamped + 1, in - 1);
    taps.blend[i] = static_cast<float>(centre % (2 * static_cast<i64>(out))) / static_cast<float>(2 * static_cast<i64>(out));
  });
}

// Once per shape: what does not change between images. The border of `index` is never written again.
template <class Block>
WGAP_HD void prepare_block(Block& block, const Shape& s, const Scratch& scratch) {
  fill_taps(block, s.height, s.map_height, scratch.rows);
  fill_taps(block, s.width, s.map_width, scratch.columns);
  u8* const index = scratch.index - scratch.index_stride - 64;
  const i64 bytes = (static_cast<i64>(s.map_height) + 2) * scratch.index_stride + 192;
  for (i64 i = block.rank(); i < bytes; i += block.size()) index[i] = 255;
  block.sync();
}

// ---- the steps ------------------------------------------------------------------------------------------------------

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

// The class to localize; its probability goes to the result. -1 if a logit is not finite.
template <class Block>
WGAP_HD int choose_class(Block& block, const Problem& problem, const Scratch& scratch, Result* result) {
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
    block.max(&state->logit_bits, bits);
    block.max(&state->best_class[pass % 3], best);
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
    result->class_id = chosen;
    result->logit = logits[chosen];
    result->score = exps[chosen] / sum;
  }
  return chosen;
}

WGAP_HD float map_weight(float w, int map) {
  if (map == kSigned) return w;
  if (map == kPositive) return w > 0.0f ? w : 0.0f;
  return float_from_bits(float_bits(w) & 0x7fffffff);
}

// Class activation map at feature resolution (Eq. 3): one rounded product and sum per channel, in channel order.
// False if a feature is not finite or the sum too large: both survive in the sums, so features need no pass of their own.
template <class Block>
WGAP_HD bool recombine(Block& block, const Problem& problem, const float* weight, const Scratch& scratch) {
  const int C = problem.shape.channels;
  const int places = problem.shape.height * problem.shape.width;
  const int map = problem.map;
  float* const WGAP_RESTRICT low = scratch.low;
  constexpr int kTogether = 8;  // channels per visit of the sums
  int c = 0;
  each(block, places, [=](int p) { low[p] = 0.0f; });
  for (; c + kTogether <= C; c += kTogether) {
    float w[kTogether];
    for (int i = 0; i < kTogether; ++i) w[i] = map_weight(weight[c + i], map);
    const float* const WGAP_RESTRICT f = problem.features + static_cast<i64>(c) * places;
    const i64 step = places;
    each(block, places, [=](int p) {
      float sum = low[p];
      sum += w[0] * f[p];
      sum += w[1] * f[p + step];
      sum += w[2] * f[p + 2 * step];
      sum += w[3] * f[p + 3 * step];
      sum += w[4] * f[p + 4 * step];
      sum += w[5] * f[p + 5 * step];
      sum += w[6] * f[p + 6 * step];
      sum += w[7] * f[p + 7 * step];
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
  block.max(&scratch.state->low_bits, bits);
  block.sync();
  return block.load(&scratch.state->low_bits) <= kLargestBits;
}

WGAP_HD float blend_between(float a, float b, float t) { return a + t * (b - a); }

// Stretches the rows to the map's width; the columns follow row by row in `quantise_rows`.
template <class Block>
WGAP_HD void widen(Block& block, const Shape& s, const Scratch& scratch) {
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

// Exact extremes of the upsampled map without upsampling it: a + t * (b - a) is monotone in t, rounding included, so that
// in each column only the first and last output row of every source interval can hold them.
template <class Block>
WGAP_HD void find_extremes(Block& block, const Shape& s, const Scratch& scratch) {
  const int H = s.map_height, W = s.map_width;
  int highest = -0x7fffffff - 1, lowest = 0x7fffffff;
  const Taps taps = scratch.rows;
  for (int y = 0; y < H; ++y) {
    if (y > 0 && y + 1 < H && taps.lower[y - 1] == taps.lower[y] && taps.lower[y + 1] == taps.lower[y]) continue;
    const float* const WGAP_RESTRICT above = scratch.wide + static_cast<i64>(taps.lower[y]) * W;
    const float* const WGAP_RESTRICT below = scratch.wide + static_cast<i64>(taps.upper[y]) * W;
    const float t = taps.blend[y];
    for (int x = block.rank(); x < W; x += block.size()) {
      const int key = ordered(float_bits(blend_between(above[x], below[x], t)));
      highest = larger(highest, key);
      lowest = smaller(lowest, key);
    }
  }
  block.max(&scratch.state->map_highest, highest);
  block.min(&scratch.state->map_lowest, lowest);
  block.sync();
}

struct Scale {
  float base, span, scale;
};

// How an index follows from a fixed-point value: (value + add) >> shift. Adaptive: ceil(value / 2^19), how many levels'
// masks hold the pixel. Fixed threshold: 1 if the value exceeds it.
struct Indexing {
  int add, shift;
};

WGAP_HD Indexing indexing_of(int fixed) {
  if (fixed < 0) return {(1 << kLevelShift) - 1, kLevelShift};
  return {(1 << 30) - 1 - fixed, 30};
}

// Rows [first, last) of the map in fixed point, into the window from its row 1 on, and each pixel's index.
// kPlain: the base is zero and no value is below it, as for every recombined map of features after a ReLU.
template <bool kPlain, class Block>
WGAP_HD void quantise_rows(Block& block, const Problem& problem, const Scratch& scratch, Scale scale, int first, int last) {
  const int W = problem.shape.map_width;
  const Indexing to_index = indexing_of(problem.fixed);
  const Scratch s = scratch;
  each_row(block, first, last, W, [=](int y) {
    const float* const WGAP_RESTRICT above = s.wide + static_cast<i64>(s.rows.lower[y]) * W;
    const float* const WGAP_RESTRICT below = s.wide + static_cast<i64>(s.rows.upper[y]) * W;
    const float t = s.rows.blend[y];
    int* const WGAP_RESTRICT fixed_point = s.fixed_point + static_cast<i64>(y - first + 1) * s.words * 64;
    u8* const WGAP_RESTRICT index = s.index + static_cast<i64>(y) * s.index_stride;
    return [=](int x) {
      const float value = blend_between(above[x], below[x], t);
      const int nearest = Block::nearest((kPlain ? value : value - scale.base) * scale.scale);
      const int rounded = smaller(kPlain ? nearest : larger(nearest, 0), kOne);
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

// Adds those pixels to the level sums, count and sum in one u64: at level m directly, and at the levels m+1..n-1, which a
// smooth map hardly has, as two entries of a difference array.
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
    edge_mean[l] = known[l] ? static_cast<double>(sum) / static_cast<double>(count) / kOne : __builtin_nan("");
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

// ---- largest component ----------------------------------------------------------------------------------------------

// Runs of mask pixels of one row, left to right.
template <class Block>
WGAP_HD void find_runs(const Shape& s, const Scratch& scratch, int y, int bound) {
  const int W = s.map_width;
  const i64 slot = static_cast<i64>(y) * scratch.run_stride;
  const u8* const index = scratch.index + static_cast<i64>(y) * scratch.index_stride;
  Run* const WGAP_RESTRICT runs = scratch.runs + slot;
  int found = 0;
  u64 carried = 0;  // was the last pixel of the word before in the mask
  // Up to and including the first place beyond the row, where a run that reaches the border ends.
  for (int x = 0; x <= W; x += 64) {
    const u64 mask = x < W ? Block::greater(index + x, bound, smaller(64, W - x)) : 0;
    u64 turns = mask ^ (mask << 1 | carried);
    carried = mask >> 63;
    for (; turns != 0; turns &= turns - 1, ++found) {
      Run& run = runs[found / 2];
      const int at = x + Block::first_bit(turns);
      if (found % 2) {
        run.end = at;
      } else {
        run = {at, at, static_cast<u32>(slot + found / 2), 0};
      }
    }
  }
  scratch.run_count[y] = found / 2;
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
    a = old;  // another thread hung a below old meanwhile: old and b still have to meet
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
  for (int y = block.rank(); y < H; y += block.size()) find_runs<Block>(s, scratch, y, bound);
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
  block.max(&state->best_component, best);
  block.sync();
  const u32 root = ~static_cast<u32>(block.load(&state->best_component));
  int box[4] = {0x7fffffff, 0x7fffffff, 0, 0};
  for (int y = block.rank(); y < H; y += block.size()) {
    const u32 slot = static_cast<u32>(y) * static_cast<u32>(scratch.run_stride);
    for (u32 run = slot, end = slot + static_cast<u32>(scratch.run_count[y]); run < end; ++run) {
      if (runs[run].parent != root) continue;
      box[0] = smaller(box[0], runs[run].start);
      box[1] = smaller(box[1], y);
      box[2] = larger(box[2], runs[run].end);
      box[3] = larger(box[3], y + 1);
    }
  }
  for (int i = 0; i < 2; ++i) block.min(&state->box[i], box[i]);
  for (int i = 2; i < 4; ++i) block.max(&state->box[i], box[i]);
  block.sync();
}

// ---- the whole ------------------------------------------------------------------------------------------------------

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
// block at a time may use it. All of the block's threads call this; the result is complete when all have returned.
template <class Block>
WGAP_HD void localize_block(Block& block, const Problem& problem, const Scratch& scratch, Result* result) {
  const Shape& shape = problem.shape;
  const int H = shape.map_height;
  State* const state = scratch.state;
  const bool leader = block.rank() == 0;
  clear(block, scratch);
  const int chosen = choose_class(block, problem, scratch, result);
  if (chosen < 0) {
    if (leader) result->outcome = kBadLogits;
    return;
  }
  block.mark(kClass);
  const float* const weight = problem.weight + static_cast<i64>(chosen) * shape.channels;
  if (!recombine(block, problem, weight, scratch)) {
    if (leader) result->outcome = kBadFeatures;
    return;
  }
  block.mark(kRecombine);
  widen(block, shape, scratch);
  find_extremes(block, shape, scratch);
  block.mark(kWiden);
  const float lowest = float_from_bits(ordered(block.load(&state->map_lowest)));
  const float base = problem.map == kSigned ? lowest : 0.0f;
  const float span = float_from_bits(ordered(block.load(&state->map_highest))) - base;
  if (leader) {
    result->outcome = kDone;
    for (int l = 0; l <= kLevels; ++l) result->edge_mean[l] = __builtin_nan("");
  }
  if (span < kFlattest) {
    if (problem.heatmap)
      each_row(block, 0, H, shape.map_width, [=](int y) {
        float* const to = problem.heatmap + static_cast<i64>(y) * shape.map_width;
        return [=](int x) { to[x] = 0.0f; };
      });
    if (leader) {
      result->degenerate = 1;
      result->level = -1;
      result->threshold = 0.0;
      result->box[0] = result->box[1] = 0;
      result->box[2] = shape.map_width;
      result->box[3] = H;
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
    if (problem.fixed >= 0) continue;
    // A row's edges need the row below it: one row of each tile waits for the next.
    const int from = larger(y - 1, 0), held = from - y + 1;
    const int rows = (last == H ? H : last - 1) - from;
    find_edges(block, shape, scratch, from, held, rows);
    add_edges(block, scratch, held, rows);
    block.sync();
    block.mark(kEdges);
    if (last == H) break;
    const i64 pitch = static_cast<i64>(scratch.words) * 64;
    each(block, shape.map_width, [=](int x) {
      scratch.fixed_point[x] = scratch.fixed_point[static_cast<i64>(last - y) * pitch + x];
    });
    block.sync();
  }
  if (leader) {
    result->degenerate = 0;
    const int level = problem.fixed < 0 ? choose_level<Block>(scratch.level_sums, result->edge_mean) : -1;
    state->mask_bound = level < 0 ? 0 : level;
    result->level = level;
    result->threshold = level < 0 ? problem.fixed_eta : static_cast<double>(level) / kLevels;
  }
  block.sync();
  block.mark(kLevel);
  largest_component(block, shape, scratch, state->mask_bound);
  if (leader)
    for (int i = 0; i < 4; ++i) result->box[i] = state->box[i];
  block.mark(kComponent);
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
