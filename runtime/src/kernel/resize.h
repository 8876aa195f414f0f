// Bilinear resize of 8-bit images in whole numbers: 11-bit weights in each direction, one rounding at the end, so that
// the result is the same bytes whatever the order of the passes or the instruction set.
#pragma once

#include "targets.h"
#include "wgap/kernel/localize_block.h"

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

constexpr int kWeightBits = 11;

struct ByteTap {
  int lower, upper;  // source indices
  int weight;        // of upper, 0..2^11
};

// Half-pixel centres, edges clamped, weight rounded to nearest.
WGAP_HD ByteTap byte_tap(int i, int in, int out) {
  const i64 twice = 2 * static_cast<i64>(out);
  i64 centre = (2 * static_cast<i64>(i) + 1) * in - out;  // source coordinate times 2 * out
  if (centre < 0) centre = 0;
  const i64 lower = centre / twice;
  if (lower >= in - 1) return {in - 1, in - 1, 0};
  const i64 rest = centre - lower * twice;
  return {static_cast<int>(lower), static_cast<int>(lower) + 1,
          static_cast<int>(((rest << (kWeightBits + 1)) + twice) / (2 * twice))};
}

// One source row, stretched to `width` pixels, scaled by 2^11.
template <int C>
inline void stretch_row(const u8* WGAP_RESTRICT from, const ByteTap* WGAP_RESTRICT taps, int width,
                        int* WGAP_RESTRICT to) {
  for (int x = 0; x < width; ++x) {
    const u8* const a = from + static_cast<i64>(taps[x].lower) * C;
    const u8* const b = from + static_cast<i64>(taps[x].upper) * C;
    const int weight = taps[x].weight;
    for (int c = 0; c < C; ++c) to[x * C + c] = (a[c] << kWeightBits) + (b[c] - a[c]) * weight;
  }
}

inline std::size_t resize_bytes(int channels, const ImageView&, int, int width) {
  const std::size_t row = (static_cast<std::size_t>(width) * channels * sizeof(int) + 63) / 64 * 64;
  return 2 * row + static_cast<std::size_t>(width) * sizeof(ByteTap);
}

template <int C>
inline void resize_with(const ImageView& from, u8* to, std::ptrdiff_t to_row_bytes, int height, int width,
                        void* scratch) {
  const std::size_t row = (static_cast<std::size_t>(width) * C * sizeof(int) + 63) / 64 * 64;
  int* rows[2] = {static_cast<int*>(scratch), reinterpret_cast<int*>(static_cast<u8*>(scratch) + row)};
  ByteTap* const taps = reinterpret_cast<ByteTap*>(static_cast<u8*>(scratch) + 2 * row);
  for (int x = 0; x < width; ++x) taps[x] = byte_tap(x, from.width, width);
  int held[2] = {-1, -1};  // which source rows `rows` hold
  for (int y = 0; y < height; ++y) {
    const ByteTap tap = byte_tap(y, from.height, height);
    if (held[1] == tap.lower) {
      int* const swapped = rows[0];
      rows[0] = rows[1];
      rows[1] = swapped;
      held[1] = held[0];
      held[0] = tap.lower;
    }
    const int wanted[2] = {tap.lower, tap.upper};
    for (int i = 0; i < 2; ++i) {
      if (held[i] == wanted[i]) continue;
      stretch_row<C>(from.data + from.row_bytes * wanted[i], taps, width, rows[i]);
      held[i] = wanted[i];
    }
    const int* const WGAP_RESTRICT above = rows[0];
    const int* const WGAP_RESTRICT below = rows[1];
    u8* const WGAP_RESTRICT out = to + to_row_bytes * y;
    const int lower_weight = (1 << kWeightBits) - tap.weight, upper_weight = tap.weight;
    WGAP_INDEPENDENT
    for (int x = 0; x < width * C; ++x)
      out[x] = static_cast<u8>((above[x] * lower_weight + below[x] * upper_weight + (1 << (2 * kWeightBits - 1))) >>
                               (2 * kWeightBits));
  }
}

inline void resize_image(int channels, const ImageView& from, u8* to, std::ptrdiff_t to_row_bytes, int height,
                         int width, void* scratch) {
  switch (channels) {
    case 1: return resize_with<1>(from, to, to_row_bytes, height, width, scratch);
    case 2: return resize_with<2>(from, to, to_row_bytes, height, width, scratch);
    case 3: return resize_with<3>(from, to, to_row_bytes, height, width, scratch);
    default: return resize_with<4>(from, to, to_row_bytes, height, width, scratch);
  }
}

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
