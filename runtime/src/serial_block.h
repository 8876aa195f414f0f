// The CPU's Block: one thread per image. Its wide comparisons exist once per instruction set, chosen at compile time.
#pragma once

#include "wgap/localize_block.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

// The block primitives that only look at memory, shared by every Block that runs on a CPU.
struct CpuLanes {
  static WGAP_HD int first_bit(u64 bits) { return __builtin_ctzll(bits); }

  // Default rounding mode: to nearest, ties to even.
  static WGAP_HD int nearest(float value) {
#if defined(__clang__)
    return static_cast<int>(__builtin_lrintf(value));
#else
    return __builtin_irintf(value);
#endif
  }

  // All bits below n.
  static WGAP_HD u64 below(int n) { return ~0ULL >> (64 - n); }

#if defined(__AVX512BW__)
  static WGAP_HD u64 greater(const u8* row, int bound, int n) {
    const __m512i v = _mm512_maskz_loadu_epi8(below(n), row);
    return _mm512_cmpgt_epu8_mask(v, _mm512_set1_epi8(static_cast<char>(bound)));
  }

  static WGAP_HD u64 steps(const u8* row, int stride, int n, u8* low) {
    const u64 lanes = below(n);
    const auto at = [=](const u8* p) { return _mm512_maskz_loadu_epi8(lanes, p); };
    const __m512i m = _mm512_min_epu8(_mm512_min_epu8(at(row - stride), at(row + stride)),
                                      _mm512_min_epu8(at(row - 1), at(row + 1)));
    _mm512_storeu_si512(low, m);
    return _mm512_cmplt_epu8_mask(m, at(row));
  }
#elif defined(__AVX2__)
  // Bytes past n are read (the index has a border) and their bits dropped.
  static WGAP_HD u64 greater(const u8* row, int bound, int n) {
    const __m256i limit = _mm256_set1_epi8(static_cast<char>(bound));
    u64 bits = 0;
    for (int half = 0; half < 2; ++half) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 32 * half));
      const __m256i not_greater = _mm256_cmpeq_epi8(_mm256_min_epu8(v, limit), v);
      bits |= static_cast<u64>(~static_cast<u32>(_mm256_movemask_epi8(not_greater))) << (32 * half);
    }
    return bits & below(n);
  }

  static WGAP_HD u64 steps(const u8* row, int stride, int n, u8* low) {
    const auto at = [](const u8* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
    u64 bits = 0;
    for (int half = 0; half < 2; ++half) {
      const u8* const p = row + 32 * half;
      const __m256i m = _mm256_min_epu8(_mm256_min_epu8(at(p - stride), at(p + stride)),
                                        _mm256_min_epu8(at(p - 1), at(p + 1)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + 32 * half), m);
      const __m256i v = at(p);
      const __m256i not_less = _mm256_cmpeq_epi8(_mm256_min_epu8(m, v), v);
      bits |= static_cast<u64>(~static_cast<u32>(_mm256_movemask_epi8(not_less))) << (32 * half);
    }
    return bits & below(n);
  }
#elif defined(__SSE2__)
  static WGAP_HD u64 greater(const u8* row, int bound, int n) {
    const __m128i limit = _mm_set1_epi8(static_cast<char>(bound));
    u64 bits = 0;
    for (int part = 0; part < 4; ++part) {
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 16 * part));
      const __m128i not_greater = _mm_cmpeq_epi8(_mm_min_epu8(v, limit), v);
      bits |= static_cast<u64>(0xffff & ~_mm_movemask_epi8(not_greater)) << (16 * part);
    }
    return bits & below(n);
  }

  static WGAP_HD u64 steps(const u8* row, int stride, int n, u8* low) {
    const auto at = [](const u8* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); };
    u64 bits = 0;
    for (int part = 0; part < 4; ++part) {
      const u8* const p = row + 16 * part;
      const __m128i m =
          _mm_min_epu8(_mm_min_epu8(at(p - stride), at(p + stride)), _mm_min_epu8(at(p - 1), at(p + 1)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(low + 16 * part), m);
      const __m128i v = at(p);
      const __m128i not_less = _mm_cmpeq_epi8(_mm_min_epu8(m, v), v);
      bits |= static_cast<u64>(0xffff & ~_mm_movemask_epi8(not_less)) << (16 * part);
    }
    return bits & below(n);
  }
#else
  static WGAP_HD u64 greater(const u8* row, int bound, int n) {
    u64 bits = 0;
    for (int i = 0; i < n; ++i) bits |= static_cast<u64>(row[i] > bound) << i;
    return bits;
  }

  static WGAP_HD u64 steps(const u8* row, int stride, int n, u8* low) {
    u64 bits = 0;
    for (int i = 0; i < n; ++i) {
      const u8* const p = row + i;
      const int vertical = smaller(p[-stride], p[stride]), horizontal = smaller(p[-1], p[1]);
      low[i] = static_cast<u8>(smaller(vertical, horizontal));
      bits |= static_cast<u64>(low[i] < *p) << i;
    }
    return bits;
  }
#endif
};

struct SerialBlock : CpuLanes {
  static constexpr int kTileRows = 4;  // keeps the fixed-point rows in the first-level cache
  static constexpr int kCopies = 4;    // neighbouring pixels hit the same level: hides the store-to-load latency

  static constexpr int rank() { return 0; }
  static constexpr int size() { return 1; }
  static constexpr void sync() {}

  template <class T>
  static WGAP_HD void add(T* at, T value) {
    *at += value;
  }
  template <class T>
  static WGAP_HD T min(T* at, T value) {
    const T old = *at;
    if (value < old) *at = value;
    return old;
  }
  template <class T>
  static WGAP_HD void max(T* at, T value) {
    if (value > *at) *at = value;
  }
  template <class T>
  static WGAP_HD T load(const T* at) {
    return *at;
  }
  template <class T>
  static WGAP_HD void store(T* at, T value) {
    *at = value;
  }
};

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
