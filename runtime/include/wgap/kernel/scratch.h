// The memory a block works in: one allocation, laid out for a shape and used again for every image of that shape.
#pragma once

#include "wgap/kernel/block.h"

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
  int logit_bits, low_bits, score_bits;  // largest magnitudes, as float bits
  int map_highest, map_lowest;
  u64 best_class[3];
  u64 best_weight;
  u32 best_run;
  int box[4];
  int mask_bound;
  u64 highest_score;
  u64 colour_pixels[kColourSets];
  u64 right_inside, right_outside;  // pixels that the other quadrants' colours predict
  float lane_sum[kExpLanes];
  double edge_mean[kLevels + 1], difference[kLevels + 1];
};

// A row's unbroken stretch of mask pixels, [start, end).
struct Run {
  int start, end;
  u32 parent;  // an earlier run of the same component, or itself: the root
  u64 weight;  // of the run; at its root, of the component
};

// Bilinear taps in whole numbers: output i is lower[i]'s value times (unit - blend[i]) plus upper[i]'s times blend[i].
struct ExactTaps {
  int* lower;
  int* upper;
  int* blend;
  int unit;
};

struct Scratch {
  State* state;
  u64* level_sums;  // [2][kLevelSlots][kCopies]
  Taps rows, columns;
  float* exps;       // [classes]
  float* low;        // [height, width]
  float* wide;       // [height, map_width]
  int words;         // 64-pixel words in a row of the map
  int* fixed_point;  // window on the map: the last row of the tile before and
                     // kTileRows more, words * 64 apart
  u8* lowest;        // smallest neighbouring index, same places
  u64* edges;        // one bit for each of those places: is its index above the
                     // smallest neighbour's
  u8* index;         // [map_height] rows `index_stride` apart, border of 255 all around
  int index_stride;
  int run_stride;  // room for runs in a row
  Run* runs;       // [map_height, run_stride]
  int* run_count;  // [map_height]
  ExactTaps score_rows, score_columns;
  int* scores;              // [score_height, score_width] in units of 2^-16
  void* columns_of_scores;  // [score_height, map_width] int, or i64 where the unit is too large for it
  u32* colour_sums;         // [kQuadrants][2 * kColours]: pixels of each colour outside the mask, then inside
  u32* colour_counts;       // [kQuadrants][kColourCopies][kColourTable], of which colour_sums are the sums
  i64* evidence;            // [2][kColours], in units of the upsampled scores
  u16* colours;             // [map_height, map_width], with kColours added inside the mask
};

// A small memory that is fast to reach, such as a GPU's shared memory: pieces go there while they fit.
struct Fast {
  void* base;  // 64-byte aligned; null only counts
  u64 room, used;
};

// Hands out 64-byte aligned pieces, of the fast memory first, then of the other; with no base it only counts.
struct Carver {
  u8* base;
  u64 used;
  Fast* fast;
  template <class T>
  WGAP_HD T* take(u64 count) {
    const u64 bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (fast && bytes <= fast->room - fast->used) {
      T* const piece = fast->base ? reinterpret_cast<T*>(static_cast<u8*>(fast->base) + fast->used) : nullptr;
      fast->used += bytes;
      return piece;
    }
    T* const piece = base ? reinterpret_cast<T*>(base + used) : nullptr;
    used += bytes;
    return piece;
  }
};

// The whole number that exact taps count in.
WGAP_HD int unit_of(int in, int out) {
  int a = in, b = out;
  while (b != 0) {
    const int rest = a % b;
    a = b;
    b = rest;
  }
  return 2 * (out / a);
}

// Whether 32 bits hold the upsampled scores. |score| <= 2^20 and |evidence| < 2^16 ln(2^20 + 512) < 2^19.8, so that with a
// unit of 2^10 their sum stays below 2^30.9.
template <class Block>
WGAP_HD bool narrow_scores(const Scratch& scratch) {
  return Block::kLanes == 1 && static_cast<i64>(scratch.score_rows.unit) * scratch.score_columns.unit <= kNarrowUnit;
}

// Lays scratch memory out for a shape. base must be 64-byte aligned, or null to learn how many bytes it needs, which is
// what is returned. The pieces that are reached most come first.
template <class Block>
WGAP_HD u64 lay_out(const Shape& s, void* base, Scratch* scratch, Fast* fast = nullptr) {
  Carver carver{static_cast<u8*>(base), 0, fast};
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
  scratch->low = carver.take<float>(h * s.width);
  scratch->wide = carver.take<float>(h * W);
  scratch->words = static_cast<int>((W + 63) / 64);
  const u64 window = static_cast<u64>(smaller(Block::kTileRows, s.map_height) + 1) * scratch->words;
  scratch->fixed_point = carver.take<int>(window * 64);
  scratch->lowest = carver.take<u8>(window * 64);
  scratch->edges = carver.take<u64>(window);
  u8* index = carver.take<u8>(index_bytes);
  scratch->index = index ? index + 64 + scratch->index_stride : nullptr;
  scratch->run_count = carver.take<int>(H);
  scratch->exps = carver.take<float>(s.classes);
  const u64 h_scores = s.score_height, colours = s.colour ? 1 : 0;
  const u64 rows = h_scores ? H : 0, columns = h_scores ? W : 0;
  scratch->score_rows = {carver.take<int>(rows), carver.take<int>(rows), carver.take<int>(rows),
                         unit_of(s.score_height, s.map_height)};
  scratch->score_columns = {carver.take<int>(columns), carver.take<int>(columns), carver.take<int>(columns),
                            unit_of(s.score_width, s.map_width)};
  scratch->scores = carver.take<int>(h_scores * s.score_width);
  scratch->columns_of_scores =
      carver.take<u8>(h_scores * W * (narrow_scores<Block>(*scratch) ? sizeof(int) : sizeof(i64)));
  scratch->colour_sums = carver.take<u32>(colours * kQuadrants * 2 * kColours);
  scratch->colour_counts = carver.take<u32>(colours * kQuadrants * Block::kColourCopies * kColourTable);
  scratch->evidence = carver.take<i64>(colours * 2 * kColours);
  scratch->runs = carver.take<Run>(runs);
  scratch->colours = carver.take<u16>(colours * H * W);
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
    taps.blend[i] =
        static_cast<float>(centre % (2 * static_cast<i64>(out))) / static_cast<float>(2 * static_cast<i64>(out));
  });
}

// Whole numbers throughout (reference: _exact_taps).
template <class Block>
WGAP_HD void fill_taps(Block& block, int in, int out, const ExactTaps& taps) {
  const i64 common = 2 * static_cast<i64>(out) / taps.unit;
  each(block, out, [=](int i) {
    i64 centre = (2 * static_cast<i64>(i) + 1) * in - out;
    centre = centre < 0 ? 0 : centre / common;
    const i64 lower = centre / taps.unit;
    const int clamped = static_cast<int>(lower < in - 1 ? lower : in - 1);
    taps.lower[i] = clamped;
    taps.upper[i] = smaller(clamped + 1, in - 1);
    taps.blend[i] = static_cast<int>(centre % taps.unit);
  });
}

// Nothing has been found yet.
WGAP_HD void reset_best(State* state) {
  state->best_weight = 0;
  state->best_run = ~0u;
  state->box[0] = state->box[1] = 0x7fffffff;
  state->box[2] = state->box[3] = 0;
}

// Once per shape: what does not change between images. The border of `index` is never written again.
template <class Block>
WGAP_HD void prepare_block(Block& block, const Shape& s, const Scratch& scratch) {
  if (s.height > 0) {
    fill_taps(block, s.height, s.map_height, scratch.rows);
    fill_taps(block, s.width, s.map_width, scratch.columns);
  }
  if (s.score_height > 0) {
    fill_taps(block, s.score_height, s.map_height, scratch.score_rows);
    fill_taps(block, s.score_width, s.map_width, scratch.score_columns);
  }
  u8* const index = scratch.index;
  const int stride = scratch.index_stride, W = s.map_width;
  each(block, 64 + stride, [=](int i) { index[-1 - i] = 255; });
  each_row(block, 0, s.map_height, stride - W, [=](int y) {
    u8* const after = index + static_cast<i64>(y) * stride + W;
    return [=](int x) { after[x] = 255; };
  });
  u8* const below = index + static_cast<i64>(s.map_height) * stride;
  each(block, stride + 128, [=](int i) { below[i] = 255; });
  block.sync();
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
