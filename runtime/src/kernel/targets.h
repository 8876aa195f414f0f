// The kernel's entry points, once per instruction set, and which of them this machine runs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "wgap/kernel/problem.h"

namespace wgap {

// Interleaved 8-bit image rows.
struct ImageView {
  const std::uint8_t* data;
  std::ptrdiff_t row_bytes;
  int height, width;
};

struct Target {
  const char* name;
  bool (*supported)();
  // Bytes of scratch memory (64-byte aligned) for a shape.
  std::size_t (*scratch_bytes)(const Shape&);
  // Fills what does not change between images; once after allocation or a change of shape.
  void (*prepare)(const Shape&, void* scratch);
  void (*localize)(const Problem&, void* scratch, Record*);
  // Bytes of scratch memory for a resize.
  std::size_t (*resize_bytes)(int channels, const ImageView& from, int height, int width);
  void (*resize)(int channels, const ImageView& from, std::uint8_t* to, std::ptrdiff_t to_row_bytes, int height,
                 int width, void* scratch);
#if defined(WGAP_PROFILE)  // where the time goes; for benchmarks
  // localize, with the clock ticks spent in each Stage.
  void (*profile)(const Problem&, void* scratch, Record*, u64* ticks);
  // Reads memory once, as fast as this instruction set can; returns the sum of its words.
  u64 (*read_once)(const void* memory, std::size_t bytes);
#endif
};

extern const Target kBaseline;
#if defined(WGAP_X86)
extern const Target kAvx2;
extern const Target kAvx512;
#endif

// Names of the targets this machine runs, best last; ends with null.
const char* const* supported_names();

const Target& best_target();

// The best target, or the one WGAP_TARGET names. Null if it names one that is unknown or unsupported.
const Target* default_target();

// By name ("baseline", "avx2", "avx512"); null if unknown or unsupported here.
const Target* target_named(const char* name);

}  // namespace wgap
