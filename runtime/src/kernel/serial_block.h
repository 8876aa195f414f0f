// The CPU's Block: one thread per image. Its wide comparisons exist once per instruction set, chosen at compile time.
#pragma once

#include <time.h>

#include "wgap/kernel/localize_block.h"

#if defined(__SSE2__)
// GCC 12 warns of its own header's deliberately undefined values.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace wgap {
inline namespace WGAP_TARGET_NAMESPACE {

// The block primitives that only look at memory, shared by every Block that runs on a CPU.
struct CpuLanes {
  static WGAP_HD int first_bit(u64 bits) { return __builtin_ctzll(bits); }

  // Default rounding mode: to nearest, ties to even. Clang makes vector code of rintf, not of lrintf; before SSE4.1, which
  // has an instruction for it, adding 2^23 rounds (beyond it every float is whole).
  static WGAP_HD int nearest(float value) {
#if !defined(__clang__)
    return __builtin_irintf(value);
#elif defined(__SSE2__) && !defined(__SSE4_1__)
    const float whole = __builtin_copysignf(8388608.0f, value);
    return static_cast<int>(__builtin_fabsf(value) < 8388608.0f ? (value + whole) - whole : value);
#else
    return static_cast<int>(__builtin_rintf(value));
#endif
  }

  static constexpr int kLanes = 1;
  static constexpr int kChannels = 8;
  static constexpr int kMostWords = 64;

  template <class T>
  static WGAP_HD T highest(T value) {
    return value;
  }
  template <class T>
  static WGAP_HD T lowest(T value) {
    return value;
  }
  static WGAP_HD u64 total(u64 value) { return value; }

  // The positions are listed first, without a branch per bit, and then visited in one predictable loop.
  template <class F>
  static WGAP_HD void for_bits(const u64* words, int count, F f) {
    u16 list[kMostWords * 64 + 64];
    int found = 0;
    for (int word = 0; word < count; ++word) found = list_bits(words[word], word * 64, list, found);
#pragma GCC unroll 4
    for (int i = 0; i < found; ++i) f(list[i], i);
  }

  // Appends base + index of every set bit; may write up to 64 entries more than it counts.
#if defined(__AVX512VBMI2__)
  static WGAP_HD int list_bits(u64 bits, int base, u16* list, int count) {
    const int found = __builtin_popcountll(bits);
    alignas(64) static constexpr u8 kOrder[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                                  16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                                  32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                                  48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    const __m512i order = _mm512_maskz_compress_epi8(bits, _mm512_load_si512(kOrder));
    const __m512i from = _mm512_set1_epi16(static_cast<short>(base));
    _mm512_storeu_si512(list + count, _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(order)), from));
    if (found > 32)
      _mm512_storeu_si512(list + count + 32,
                          _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_maskz_extracti64x4_epi64(0xf, order, 1)), from));
    return count + found;
  }
#else
  static WGAP_HD int list_bits(u64 bits, int base, u16* list, int count) {
    const int found = __builtin_popcountll(bits);
    u16* out = list + count;
    for (int written = 0; written < found; written += 4) {
      for (int i = 0; i < 4; ++i) {
        out[written + i] = static_cast<u16>(base + __builtin_ctzll(bits | 1ULL << 63));
        bits &= bits - 1;
      }
    }
    return count + found;
  }
#endif

  // All bits below n.
  static WGAP_HD u64 below(int n) { return ~0ULL >> (64 - n); }

  // Bytes past n are read (the index has a border) and their bits dropped.
#if defined(__AVX512BW__)
  static WGAP_HD u64 greater(const u8* row, int bound, int n) {
    return _mm512_cmpgt_epu8_mask(_mm512_loadu_si512(row), _mm512_set1_epi8(static_cast<char>(bound))) & below(n);
  }

  static WGAP_HD u64 steps(const u8* row, int stride, int n, u8* low) {
    const auto at = [](const u8* p) { return _mm512_loadu_si512(p); };
    const __m512i m =
        _mm512_min_epu8(_mm512_min_epu8(at(row - stride), at(row + stride)), _mm512_min_epu8(at(row - 1), at(row + 1)));
    _mm512_storeu_si512(low, m);
    return _mm512_cmplt_epu8_mask(m, at(row)) & below(n);
  }
#elif defined(__AVX2__)
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
      const __m256i m =
          _mm256_min_epu8(_mm256_min_epu8(at(p - stride), at(p + stride)), _mm256_min_epu8(at(p - 1), at(p + 1)));
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
      const __m128i m = _mm_min_epu8(_mm_min_epu8(at(p - stride), at(p + stride)), _mm_min_epu8(at(p - 1), at(p + 1)));
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
  static constexpr int kTileRows = 12;  // keeps the window in the first-level
                                        // caches, and lists of edge pixels long
  static constexpr int kCopies = 4;     // neighbouring pixels hit the same level:
                                        // hides the store-to-load latency

  static constexpr int kColourCopies = 4;
  static constexpr int kSpan = kMostWords;

  static constexpr int rank() { return 0; }
  static constexpr int size() { return 1; }
  static constexpr void sync() {}
  static constexpr void mark(Stage) {}

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

#if defined(WGAP_PROFILE)
// The same, with a clock at every mark: where the time goes.
struct ProfilingBlock : SerialBlock {
  u64 last = ticks();
  u64 spent[kStages] = {};

  static WGAP_HD u64 ticks() {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    u64 now;
    asm volatile("mrs %0, cntvct_el0" : "=r"(now));
    return now;
#else
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<u64>(now.tv_sec) * 1000000000ULL + static_cast<u64>(now.tv_nsec);
#endif
  }
  WGAP_HD void mark(Stage stage) {
    const u64 now = ticks();
    spent[stage] += now - last;
    last = now;
  }
};
#endif

}  // namespace WGAP_TARGET_NAMESPACE
}  // namespace wgap
