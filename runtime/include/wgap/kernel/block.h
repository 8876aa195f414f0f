// What every step of the kernel stands on: the Block, and the few words that make one source fit every device.
//
// A *block* of threads works on one image and one class together. What differs between devices is the Block, which offers
//
//   int rank(), int size()                  this thread's number and how many there are; size is a multiple of kLanes
//   static constexpr int kLanes             threads that act in step: threads n * kLanes ... n * kLanes + kLanes - 1 are
//                                           the lanes of group n (a GPU's warp; 1 on a CPU, whose lanes are in the vectors)
//   void sync()                             barrier; orders all memory accesses of the block
//   add, min, max, load, store              atomic on int, u32 and u64, relaxed order; min returns the old value
//   static constexpr int kTileRows          rows upsampled between two barriers
//   static constexpr int kCopies            copies of the level sums, to spread contention or break dependency chains
//   static constexpr int kSpan              words of 64 pixels that a group takes at a time
//   static constexpr int kChannels          channels whose loads are in flight together
//   static constexpr int kColourCopies      copies of the colour counts, likewise
//   static int first_bit(u64)               index of the lowest set bit
//   static int nearest(float)               round to nearest even if |value| < 2^24; else any number of the same sign
//   void mark(Stage)                        what ran since the last mark belongs to this stage; normally empty
//
// and these, which all lanes of a group call together with the same arguments (`value` apart) and which answer them all:
//
//   u64 greater(row, bound, n)              bit i = row[i] > bound, n <= 64
//   u64 steps(row, stride, n, low)          bit i = low[i] < row[i], low[i] the smallest of the four neighbours
//   for_bits(words, count, f)               f(bit, ordinal) for every set bit of count <= kSpan words, each in one of the
//                                           lanes; bits that are visited at the same time differ in their ordinals
//   T highest(T value), T lowest(T value)   the extreme of the group's values
//   u64 total(u64 value)                    their sum
//
// No standard header is included here or in the steps: NVRTC has none.
#pragma once

#include "wgap/kernel/problem.h"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define WGAP_HD __host__ __device__ inline
#define WGAP_INDEPENDENT
#define WGAP_UNROLL _Pragma("unroll")
#define WGAP_RESTRICT __restrict__
#else
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WGAP_HD inline  // readable reports, quick builds
#else
#define WGAP_HD __attribute__((always_inline)) inline
#endif
#define WGAP_RESTRICT __restrict__
#if defined(__clang__)
#define WGAP_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define WGAP_UNROLL _Pragma("clang loop unroll(full)")
#else
#define WGAP_INDEPENDENT _Pragma("GCC ivdep")
#define WGAP_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

// Every translation unit that is compiled for another instruction set names its own namespace: the linker must never
// merge an inline function compiled for AVX-512 with the same one compiled for any x86-64.
#ifndef WGAP_TARGET_NAMESPACE
#define WGAP_TARGET_NAMESPACE portable
#endif

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

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

WGAP_HD double not_a_number() { return static_cast<double>(float_from_bits(0x7fc00000)); }

// Integers in the order of the floats they come from (its own inverse): maxima become integer atomics.
WGAP_HD int ordered(int bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

WGAP_HD int larger(int a, int b) { return a > b ? a : b; }
WGAP_HD int smaller(int a, int b) { return a < b ? a : b; }

template <class Block>
WGAP_HD int lane_of(const Block& block) {
  return Block::kLanes == 1 ? 0 : block.rank() % Block::kLanes;
}
template <class Block>
WGAP_HD int group_of(const Block& block) {
  return Block::kLanes == 1 ? block.rank() : block.rank() / Block::kLanes;
}
template <class Block>
WGAP_HD int groups_of(const Block& block) {
  return Block::kLanes == 1 ? block.size() : block.size() / Block::kLanes;
}

// The extreme of every thread's value, into one place that all share.
template <class Block, class T>
WGAP_HD void max_into(Block& block, T* at, T value) {
  const T highest = block.highest(value);
  if (lane_of(block) == 0) block.max(at, highest);
}
template <class Block, class T>
WGAP_HD void min_into(Block& block, T* at, T value) {
  const T lowest = block.lowest(value);
  if (lane_of(block) == 0) block.min(at, lowest);
}

// The sum of every thread's value, added to one place that all share.
template <class Block>
WGAP_HD void add_into(Block& block, u64* at, u64 value) {
  const u64 total = block.total(value);
  if (lane_of(block) == 0) block.add(at, total);
}

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
  } else if (Block::kLanes > 1) {
    for (int row = first + group_of(block); row < last; row += groups_of(block)) {
      const auto at = f(row);
      for (int column = lane_of(block); column < columns; column += Block::kLanes) at(column);
    }
  } else {
    const int places = (last - first) * columns;
    for (int i = block.rank(); i < places; i += block.size()) f(first + i / columns)(i % columns);
  }
}

// f(row)(word) for every word of a grid, called by all lanes of the group that takes it.
template <class Block, class F>
WGAP_HD void each_word(const Block& block, int rows, int words, F f) {
  if (Block::kLanes == 1) {
    each_row(block, 0, rows, words, f);
  } else {
    const int places = rows * words;
    for (int i = group_of(block); i < places; i += groups_of(block)) f(i / words)(i % words);
  }
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
